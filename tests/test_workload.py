"""Workloads: batches as asked for, bytes counted by hand, and errors that are seen."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from csgmv import launch, reference, workload

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels on the CPU")


def small(**changes):
    """Two uneven slices, ranks 16, 0 and 5, one token in seven without an adapter."""
    arguments = {"ids": [None if t % 7 == 3 else t % 3 for t in range(21)], "ranks": [16, 0, 5]} | changes
    return workload.make(48, (40, 7), **arguments, dtype=torch.float16, chunk_size=16, device=CPU)


def test_even_deals_tokens_in_turn():
    """Neighbouring tokens have different adapters, so that rows must be gathered."""
    assert workload.adapter_ids("even", 7, 3) == [0, 1, 2, 0, 1, 2, 0]


def test_zipf_halves_thirds_and_quarters():
    """Adapter k has 1/(k+1) of adapter 0's tokens; all tokens are dealt; the order is random but the same each time."""
    ids = workload.adapter_ids("zipf", 2500, 4)
    assert Counter(ids) == {0: 1200, 1: 600, 2: 400, 3: 300}
    assert ids != sorted(ids)
    assert ids == workload.adapter_ids("zipf", 2500, 4)


@pytest.mark.parametrize(("tokens", "adapters"), [(1, 1), (1, 8), (8, 8), (13, 8), (100, 100), (0, 3)])
def test_zipf_deals_exactly_the_tokens_that_there_are(tokens, adapters):
    """One to each adapter first; where there are fewer tokens than adapters, to the first ones."""
    ids = workload.adapter_ids("zipf", tokens, adapters)
    assert len(ids) == tokens
    assert set(ids) == set(range(min(tokens, adapters)))


def test_one_leaves_the_other_adapters_idle():
    """Every token uses adapter 0."""
    assert workload.adapter_ids("one", 3, 8) == [0, 0, 0]


def test_an_unknown_distribution_is_named():
    """The error says what there is."""
    with pytest.raises(ValueError, match=r"distribution: expected one of even, zipf, one, got 'normal'"):
        workload.adapter_ids("normal", 8, 2)


def test_bytes_are_those_counted_by_hand():
    """Rank 4 with 3 rows and rank 2 with 5, 10 → 6+1, two slices, 2 bytes an element."""
    active = [(4, 3), (2, 5)]
    x, lora_a, h, lora_b, base = 8 * 10, 2 * (4 + 2) * 10, 2 * (4 * 3 + 2 * 5), (4 + 2) * 7, 2 * 8 * 7
    assert workload.moved_bytes("shrink", 10, (6, 1), active, 2) == 2 * (x + lora_a + h)
    assert workload.moved_bytes("expand", 10, (6, 1), active, 2) == 2 * (h + lora_b + base)
    assert workload.moved_bytes("add_lora", 10, (6, 1), active, 2) == 2 * (x + lora_a + lora_b + base)


def test_floor_of_the_published_table():
    """Qwen3-Embedding-0.6B's qkv for 30,720 tokens at rank 64: 75 MB to shrink, 516 MB to expand, and the weights."""
    widths, active = (2048, 1024, 1024), [(64, 30720)]
    assert workload.moved_bytes("shrink", 1024, widths, active, 2) == 2 * 30720 * (1024 + 192) + 2 * 192 * 1024
    assert workload.moved_bytes("expand", 1024, widths, active, 2) == 2 * 30720 * (2 * 4096 + 192) + 2 * 64 * 4096


def test_rows_and_adapters_that_take_no_part_move_no_bytes():
    """Tokens without an adapter, rank-0 slots and idle adapters are not read."""
    work = small(ranks=[16, 0, 5, 16])
    used = [(16, work.ids.count(0)), (5, work.ids.count(2))]
    assert work.moved_bytes("add_lora") == workload.moved_bytes("add_lora", 48, (40, 7), used, 2)


def test_what_lies_beyond_a_rank_is_poisoned():
    """A kernel that uses a row of A, a column of B or of h beyond the adapter's rank gives NaN."""
    work = small()
    assert work.lora_a[2, 10:].isnan().all()
    assert not work.lora_a[2, :10].isnan().any()
    assert work.lora_b[2, :, 5:].isnan().all()
    assert work.h[work.ids.index(2)].isnan().tolist() == [False] * 10 + [True] * 22
    assert work.h[work.ids.index(None)].isnan().all()


@interpreted
@pytest.mark.parametrize("op", ["shrink", "expand", "add_lora"])
def test_kernels_agree_with_the_reference(op):
    """Uneven slices, mixed ranks and scalings, rows without an adapter: the error is within the tolerance."""
    assert small().error(op) <= workload.TOLERANCE[torch.float16]


@pytest.mark.parametrize("op", ["shrink", "expand", "add_lora"])
def test_a_wrong_column_is_seen(op, monkeypatch):
    """One element off by a quarter is far outside the tolerance; NaN never passes."""
    work = small()
    expanded = reference.lora_expand(work.h, work.lora_b, work.segments, work.slice_offsets, work.base_output)
    right = work.h if op == "shrink" else expanded.half()
    for off, fits in ((0.0, True), (0.25, False), (math.nan, False)):
        got = right.clone()
        got[0, 1] += off
        monkeypatch.setattr(workload.Workload, "run", lambda *_, got=got: got)
        assert (work.error(op) <= workload.TOLERANCE[torch.float16]) is fits


def test_a_touched_row_without_an_adapter_is_seen(monkeypatch):
    """However small the change: those rows keep their bits."""
    work = small()

    def run(_self, _op, _config, base_output):
        base_output[3] *= 1.001
        return base_output

    monkeypatch.setattr(workload.Workload, "run", run)
    assert work.error("add_lora") == math.inf
