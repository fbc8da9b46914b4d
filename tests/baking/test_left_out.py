"""What keys get without their own rows is what the fallback would find in a table made without them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from csgmv import fallback, raw_results, records, rules
from csgmv.baking import left_out
from csgmv.baking.choose import Chosen, choose
from csgmv.baking.collect import Found
from csgmv.baking.defaults import on_average
from fabricated import BETTER, document, finalist, record


def layer(input_dim: int, stages: int, *, gpu: str = "NVIDIA H200", triton: str = "3.6.0", rank: int = 64) -> Any:
    """A file of three keys whose winner is told by its stages; the third has the default."""
    row = [*BETTER[:6], stages, *BETTER[7:]]
    made = [
        record(chunk_size=size, finalists=[finalist(row, us)]) for size, us in ((16, 20.0), (64, 21.0), (128, 29.9))
    ]
    return document(*made, input_dim=input_dim, gpu=gpu, triton=triton, max_rank=rank)


@pytest.fixture(scope="module")
def choice() -> Chosen:
    contents = [
        layer(512, 2),
        layer(1024, 3),
        layer(4096, 4, rank=16),
        layer(1024, 5, triton="3.5.1"),
        layer(1024, 1, gpu="NVIDIA H100"),
    ]
    assert not any(map(raw_results.faults, contents))
    return choose(Found("a.json", result) for content in contents for result in raw_results.results(content))


def test_as_if_the_tables_were_made_without_them(choice: Chosen) -> None:
    """In every way, for every key: rows and defaults of what is left alone."""
    cases = list(left_out.cases(choice))
    assert {case.left_out for case in cases} == left_out.WAYS.keys()
    for way, result, served in cases:
        in_common = left_out.WAYS[way]
        rest = [other for other in choice.results if in_common(other) != in_common(result)]
        rows: dict[fallback.Head, dict[rules.Key, rules.Row | None]] = defaultdict(dict)
        for other in rest if way != "all rows" else ():
            rows[other.gpu, other.triton][other.key] = records.baked_row(other)
        by_layer = {target: fallback.by_layer(of) for target, of in rows.items()}
        tables = fallback.Tables(by_layer, choice.gpus, on_average(rest))
        assert served == fallback.serve(result.key, left_out.target(choice, result), tables)


def test_every_key_is_left_out_in_every_way(choice: Chosen) -> None:
    """Once."""
    for way in left_out.WAYS:
        keys = [
            (case.result.gpu, case.result.triton, case.result.key)
            for case in left_out.cases(choice)
            if case.left_out == way
        ]
        assert sorted(keys) == sorted((one.gpu, one.triton, one.key) for one in choice.results)
