"""The model knows what is cheap at either end: streaming at prefill, latency at decode."""

from __future__ import annotations

import pytest

from csgmv import footprint, rules
from csgmv.config import ExpandConfig, ShrinkConfig
from csgmv.tuning import model
from csgmv.tuning.plan import Batch, Task

H200 = model.Device(footprint.Limits(shared_memory=232448, programmatic_launch=True), sm_count=132)


def task(op: str, chunk_size: int, tokens: int, segments: int) -> Task:
    """A key of rank 64, and the batch that decides."""
    widths = (1536, 256, 256) if op == "expand" else ()
    dims = 0 if op == "expand" else 1536
    key = rules.Key(op, dims, widths, 64, 3, "bfloat16", chunk_size, rules.segment_bucket(segments))
    return Task(key, (Batch(tokens, min(tokens, 8), segments),))


def test_it_prefers_full_tiles_at_prefill_and_many_programs_at_decode() -> None:
    """The two ends that a table is for: streaming, and latency."""
    prefill, decode = task("expand", 128, 30720, 240), task("expand", 128, 8, 8)
    wide, narrow = ExpandConfig(128, 128, 64, 4, 8, 2), ExpandConfig(128, 32, 64, 1, 4, 1)
    assert model.predicted_us(wide, prefill, H200) < model.predicted_us(narrow, prefill, H200)
    assert model.predicted_us(narrow, decode, H200) < model.predicted_us(wide, decode, H200)


def test_tiles_larger_than_a_segment_are_for_batches_that_fill_them() -> None:
    """Where an adapter has several segments they are taken together; where each has one row nothing is gained."""
    full = task("expand", 16, 2048, 128)
    wide, narrow = ExpandConfig(64, 128, 64, 4, 4, 1), ExpandConfig(16, 128, 64, 4, 4, 1)
    assert model.predicted_us(wide, full, H200) < model.predicted_us(narrow, full, H200)
    many = Task(full.key._replace(segment_bucket=32), (Batch(32, 32, 32),))
    assert model.predicted_us(narrow, many, H200) < model.predicted_us(wide, many, H200)
    both = Task(many.key, (Batch(512, 8, 34), Batch(32, 32, 32)), 2)
    one_by_one = [model.predicted_us(wide, both._replace(batches=(batch,), tuned_on=1), H200) for batch in both.batches]
    assert model.predicted_us(wide, both, H200) == pytest.approx((one_by_one[0] * one_by_one[1]) ** 0.5)


def test_partial_sums_cost_a_launch_only_outside_of_a_pair() -> None:
    """Inside add_lora the second kernel sums them."""
    one, config = task("shrink", 16, 8, 8), ShrinkConfig(16, 16, 128, 1, 4)
    plain = ShrinkConfig(16, 16, 128, 1, 1)
    assert model.predicted_us(config, one, H200, paired=True) < model.predicted_us(config, one, H200)
    assert model.predicted_us(plain, one, H200, paired=True) == model.predicted_us(plain, one, H200)
