"""The second table: which batches the results tell of, and which chunk size they show to be the fastest there."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from csgmv import raw_results, records, rules
from csgmv.baking.chunk_sizes import ChunkSizes, fastest
from fabricated import ADD_LORA, DEFAULT, EXPAND, document, record_of, timing

SHRINK: dict[str, Any] = {"op": "shrink"}
FULL = (2048, 8)  # tokens, adapters: 256 rows an adapter fill segments of every size


def results(head: Mapping[str, Any], us: Mapping[int, float], batch: tuple[int, int], **more: Any) -> list[Any]:
    """One result for each chunk size that has a time."""
    content = document(*(record_of(head["op"], time, size, *batch, **more) for size, time in us.items()), **head)
    assert not raw_results.faults(content)
    return list(raw_results.results(content))


def sizes(*everything: list[Any]) -> ChunkSizes:
    return fastest(itertools.chain(*everything))


def times(*us: float) -> dict[int, float]:
    return dict(zip((16, 32, 64, 128), us))


def test_the_least_sum_over_the_shapes_wins() -> None:
    """64 is the best of neither shape, and of both."""
    one, other = times(9.0, 20.0, 10.0, 30.0), times(40.0, 21.0, 22.0, 60.0)
    assert sizes(results(ADD_LORA, one, FULL), results(ADD_LORA | {"max_rank": 32}, other, FULL)) == {FULL: 64}


def test_a_cell_is_the_nearest_powers_of_two() -> None:
    """Two batches that fall into one cell are summed; cells are sorted."""
    near, far = results(ADD_LORA, times(50, 40, 30, 20), (30720, 8)), results(ADD_LORA, times(9, 8, 7, 8), FULL)
    assert list(sizes(near, far).items()) == [(FULL, 64), ((32768, 8), 128)]
    other = results(ADD_LORA | {"max_rank": 32}, times(10, 15, 50, 60), (36000, 8))
    assert [sizes(near), sizes(other), sizes(near, other)] == [{(32768, 8): 128}, {(32768, 8): 16}, {(32768, 8): 32}]


def test_a_shape_without_all_chunk_sizes_does_not_count() -> None:
    """A sum with a gap in it would favour the size that is missing."""
    whole, part = times(9.0, 8.0, 7.0, 6.0), {16: 1.0, 32: 100.0, 64: 100.0}
    assert sizes(results(ADD_LORA, whole, FULL), results(ADD_LORA | {"max_rank": 32}, part, FULL)) == {FULL: 128}
    assert sizes(results(ADD_LORA, part, FULL)) == {}


def test_chunk_sizes_that_cut_the_same_segments_are_not_asked_for() -> None:
    """32 rows an adapter: from 32 on every adapter has one segment, whatever was measured for larger sizes there."""
    batch = (256, 8)
    assert sizes(results(ADD_LORA, {16: 9.0, 32: 8.0}, batch)) == {batch: 32}
    assert sizes(results(ADD_LORA, {16: 9.0, 32: 8.0, 64: 1.0, 128: 1.0}, batch)) == {batch: 32}
    assert sizes(results(ADD_LORA, {16: 8.0}, batch)) == {}
    assert sizes(results(ADD_LORA, {16: 8.0}, (128, 8))) == {(128, 8): 16}


def test_a_result_tells_of_its_own_batch_only() -> None:
    """At chunk size 64 and 128 the keys of 256 tokens of 4 adapters hold larger batches: nothing is made up for it."""
    small = results(ADD_LORA, {16: 9.0, 32: 8.0}, (256, 4))
    large = results(ADD_LORA, {64: 7.0, 128: 6.0}, (512, 4))
    assert sizes(small, large) == {}


@pytest.mark.parametrize("joint", [True, False])
def test_an_add_lora_stands_for_its_parts(joint: bool) -> None:
    """Shrink and expand count where there is no add_lora of the shape, as one by themselves; else they do not."""
    parts = results(SHRINK, times(1, 9, 9, 9), FULL) + results(EXPAND, times(9, 1, 5, 18), FULL)
    both = results(ADD_LORA, times(30, 30, 30, 20), FULL) if joint else []
    assert sizes(parts, both) == {FULL: 128 if joint else 16}


def test_another_shapes_parts_are_not_dropped() -> None:
    """An add_lora of rank 64 says nothing of rank 32."""
    other = results(SHRINK | {"max_rank": 32}, times(1, 90, 90, 90), FULL)
    assert sizes(other, results(ADD_LORA, times(30, 30, 30, 20), FULL)) == {FULL: 16}


@pytest.mark.parametrize(
    ("us", "noise", "chunk_size"),
    [((100, 99.95, 99.85, 99.8), 0.3, 16), ((100, 99.95, 99.85, 99.8), 0.1, 64), ((99, 98, 97.9, 97), 50.0, 64)],
)
def test_within_the_noise_the_smaller_one_wins(us: tuple[float, ...], noise: float, chunk_size: int) -> None:
    """However noisy a measurement was, a difference of one percent is one: 97.9 ties with 97 and 98 does not."""
    assert sizes(results(ADD_LORA, times(*us), FULL, noise_us=noise)) == {FULL: chunk_size}


def test_a_launch_takes_the_time_of_what_the_table_says() -> None:
    """Where no finalist beats the default beyond the noise the default is launched, and its time counts."""
    default = timing(DEFAULT, 20.1)
    kept = results(SHRINK, {16: 20.0}, FULL, default=default, noise_us=0.5)
    beaten = results(SHRINK, {32: 20.05, 64: 30, 128: 30}, FULL)
    assert sizes(kept, beaten) == {FULL: 32}
    alone = results(SHRINK, {16: 20.0}, FULL, default=default, finalists=[])
    assert [batch.p50_us for batch in records.batches(alone[0])] == [20.1]


@pytest.mark.parametrize(("tokens", "same_bucket"), [(2048, True), (256, False)])
def test_batches_that_share_a_key_count_where_they_were_timed_too(tokens: int, same_bucket: bool) -> None:
    """2048 tokens of one adapter make as many segments as those of 8: one record a key holds both batches' times.

    256 tokens make fewer: they are served by that key for want of one of their own, and count all the same.
    """
    times_of_other = {16: 30.0, 32: 20.0, 64: 25.0, 128: 40.0}
    both = [
        one
        for us, (chunk_size, time) in zip((4.0, 3.0, 2.0, 1.0), times_of_other.items())
        for one in results(ADD_LORA, {chunk_size: us}, FULL, others=[[tokens, 1, tokens // chunk_size, None, time]])
    ]
    assert sizes(both) == {(tokens, 1): 32, FULL: 128}
    assert sizes(both[:3]) == {}
    assert all(
        (one.key.segment_bucket == rules.segment_bucket(other.num_segments)) == same_bucket
        for one in both
        for other in one.batches[1:]
    )


@pytest.mark.parametrize(("deciding", "chunk_size"), [(20.1, 32), (30.0, 64)])
def test_at_every_batch_the_table_has_one_row(deciding: float, chunk_size: int) -> None:
    """A winner that does not beat the default where that decides is launched nowhere, however fast it is elsewhere."""
    default_us, winner_us = times(30.0, 20.0, 25.0, 40.0), times(20.0, 15.0, 5.0, 10.0)
    default = timing(DEFAULT, deciding)
    everything = [
        results(SHRINK, {size: 20.0}, FULL, default=default, noise_us=0.5, others=[[2048, 1, 2048 // size, *both]])
        for size, both in zip(default_us, zip(default_us.values(), winner_us.values()))
    ]
    assert sizes(*everything) == {(2048, 1): chunk_size, FULL: 16}
