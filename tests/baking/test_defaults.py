"""An architecture's defaults: what is best on average over the keys of about as many rows."""

from __future__ import annotations

from typing import Any

import pytest

from csgmv import raw_results, records
from csgmv.baking.defaults import on_average
from fabricated import ADD_LORA, BETTER, DEFAULT, EXPAND, document, finalist, record

SAFE = (16, 32, 128, 1, 1, 4, 2, None, False)
FAST = tuple(BETTER)
EXPAND_ROW = (64, 64, 64, 4, 4, 3, None, True)


def results(*contents: dict[str, Any]) -> list[records.Result]:
    assert not any(map(raw_results.faults, contents))
    return [result for content in contents for result in raw_results.results(content)]


def timed(input_dim: int, times: dict[tuple[Any, ...], float], **more: Any) -> dict[str, Any]:
    """A file of one key at which the default takes 30 µs."""
    finalists = [finalist(list(row), us) for row, us in times.items()]
    return document(record(finalists=finalists, candidates=[], **more), input_dim=input_dim)


def test_the_lowest_mean_slowdown_counts() -> None:
    """Twice the best and once 1.9 times it loses to a row that is always 1.2 times the best."""
    best = {(16, 16, 64, 1, 1, 4, 2, 96, False): 10.0, (16, 16, 64, 1, 1, 4, 2, 128, False): 20.0}
    files = [
        timed(512, {FAST: 10.0, SAFE: 12.0}),
        timed(1024, {FAST: 10.0, SAFE: 12.0}),
        timed(2048, {FAST: 19.0, SAFE: 12.0, **best}),
    ]
    assert on_average(results(*files)) == {"9.0": {"shrink": {128: SAFE}}}


def test_what_was_not_measured_is_no_better_than_the_default() -> None:
    """A row that was the best at one key, and at the others nobody knows, does not win by that."""
    files = [timed(512, {SAFE: 15.0, FAST: 10.0}), timed(1024, {SAFE: 10.0}), timed(2048, {SAFE: 10.0})]
    assert on_average(results(*files)) == {"9.0": {"shrink": {128: SAFE}}}


def test_the_default_itself_may_be_the_best() -> None:
    """It is a row like others."""
    assert on_average(results(timed(512, {tuple(DEFAULT): 30.0, SAFE: 31.0}))) == {
        "9.0": {"shrink": {128: tuple(DEFAULT)}}
    }


def test_architectures_operations_and_numbers_of_rows_are_apart() -> None:
    """GPUs and Triton versions of one architecture are together; float32 has no default."""
    other = document(record(chunk_size=64), gpu="NVIDIA A100")
    other["runs"][0]["compute_capability"] = "8.0"
    files = [
        timed(512, {SAFE: 15.0, FAST: 10.0}),
        {**timed(512, {SAFE: 10.0, FAST: 25.0}), "gpu": "NVIDIA H100", "triton": "3.5.1"},
        {**timed(512, {FAST: 10.0}, chunk_size=32), "dtype": "float32"},
        other,
    ]
    assert on_average(results(*files)) == {"8.0": {"shrink": {512: FAST}}, "9.0": {"shrink": {128: SAFE}}}


def test_the_whole_rank_at_once_is_said_for_any_rank() -> None:
    """Of expand, and of it in add_lora; rows that differ in nothing else are one."""
    narrow = (*EXPAND_ROW[:2], 16, *EXPAND_ROW[3:])
    wide = (*EXPAND_ROW[:2], 128, *EXPAND_ROW[3:])
    for rank, row in ((64, EXPAND_ROW), (32, EXPAND_ROW), (64, wide)):
        content = document(record(finalists=[finalist(list(row), 20.0)], candidates=[], default=None), **EXPAND)
        defaults = on_average(results({**content, "max_rank": rank}))
        assert defaults["9.0"]["expand"] == {128: (64, 64, 256, *EXPAND_ROW[3:])}
    content = document(record(finalists=[finalist(list(narrow), 20.0)], candidates=[], default=None), **EXPAND)
    assert on_average(results(content))["9.0"]["expand"] == {128: narrow}
    both = [*BETTER, *EXPAND_ROW, True]
    content = document(record(finalists=[finalist(both, 20.0)], candidates=[], default=None), **ADD_LORA)
    assert on_average(results(content))["9.0"]["add_lora"] == {128: (*BETTER, 64, 64, 256, *EXPAND_ROW[3:], True)}


@pytest.mark.parametrize("depths", [(64, 128), (128, 64)])
def test_of_rows_that_are_one_the_faster_time_counts(depths: tuple[int, int]) -> None:
    """In whatever order they were measured."""
    rows = [(*EXPAND_ROW[:2], depth, *EXPAND_ROW[3:]) for depth in depths]
    other = (16, 32, 64, 1, 4, 1, None, False)
    times = {rows[0]: 20.0, rows[1]: 25.0, other: 22.0}
    finalists = [finalist(list(row), us) for row, us in times.items()]
    content = document(record(finalists=finalists, candidates=[], default=None), **EXPAND)
    assert on_average(results(content))["9.0"]["expand"] == {128: (64, 64, 256, *EXPAND_ROW[3:])}
    content["records"][0]["candidates"] = [[list(row), us, 12, False] for row, us in reversed(times.items())]
    assert on_average(results(content))["9.0"]["expand"] == {128: (64, 64, 256, *EXPAND_ROW[3:])}
