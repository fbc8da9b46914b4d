"""The reference against a loop over single rows, in float64: nothing is grouped, so nothing can be grouped wrongly."""

from __future__ import annotations

import pytest
import torch

from csgmv import reference
from csgmv.segments import Segments

RANKS, SCALINGS = (5, 0, 16, 1), (0.5, 2.0, -1.25, 3.0)
OFFSETS = (0, 7, 7, 40, 43)  # uneven, one of width zero, one narrower than most ranks
MAX_RANK, INPUT_DIM = 16, 33
IDS = (2, -1, 0, 0, 3, 2, 1, 2, -1, 0, 3)


def batch(ids=IDS, padded=False):
    """Inputs with NaN wherever an adapter's own rank does not reach, in A and B."""
    generator = torch.Generator().manual_seed(7)
    num_slices = len(OFFSETS) - 1
    x = torch.randn(len(ids), INPUT_DIM, generator=generator).half()
    lora_a = torch.randn(len(RANKS), num_slices * MAX_RANK, INPUT_DIM, generator=generator).half()
    lora_b = torch.randn(len(RANKS), OFFSETS[-1], MAX_RANK, generator=generator).half()
    for slot, rank in enumerate(RANKS):
        lora_b[slot, :, rank:] = torch.nan
        for row in range(num_slices * MAX_RANK):
            if row % MAX_RANK >= rank if padded else row >= num_slices * rank:
                lora_a[slot, row] = torch.nan
    base = torch.randn(len(ids), OFFSETS[-1] + 3, generator=generator).half()
    segments = Segments.from_tokens(ids, RANKS, SCALINGS, chunk_size=2, device="cpu")
    return base, x, lora_a, lora_b, segments


def by_rows(base, x, lora_a, lora_b, ids, padded):
    """h and output of each row by itself."""
    h = torch.full((len(ids), lora_a.shape[1]), torch.nan, dtype=torch.float64)
    output = base.double()
    for row, slot in enumerate(ids):
        rank = RANKS[slot] if slot >= 0 else 0
        for i in range(len(OFFSETS) - 1):
            for j in range(rank):
                column = i * MAX_RANK + j if padded else i * rank + j
                h[row, column] = x[row].double() @ lora_a[slot, column].double()
                for out in range(OFFSETS[i], OFFSETS[i + 1]):
                    output[row, out] += SCALINGS[slot] * h[row, column] * lora_b[slot, out, j].double()
    return h, output


@pytest.mark.parametrize("padded", [False, True])
def test_reference_equals_the_loop_over_rows(padded):
    """Mixed ranks and scalings, uneven slices: same h, same output, NaN in h exactly where no rank reaches."""
    base, x, lora_a, lora_b, segments = batch(padded=padded)
    want_h, want = by_rows(base, x, lora_a, lora_b, IDS, padded)
    h = reference.lora_shrink(x, lora_a, segments, len(OFFSETS) - 1, padded=padded)
    torch.testing.assert_close(h, want_h.float(), equal_nan=True, rtol=1e-4, atol=1e-4)
    got = reference.lora_expand(h, lora_b, segments, OFFSETS, base, padded=padded)
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-3)
    both = reference.add_lora(base, x, lora_a, lora_b, segments, OFFSETS, padded=padded)
    assert torch.equal(both, got)
    assert h.dtype == got.dtype == torch.float32


def test_rows_and_columns_outside_are_the_base():
    """Rows without an adapter or with one of rank 0, and columns past output_dim, come back bit for bit."""
    base, x, lora_a, lora_b, segments = batch()
    got = reference.add_lora(base, x, lora_a, lora_b, segments, OFFSETS)
    idle = [row for row, slot in enumerate(IDS) if slot in (-1, 1)]
    assert torch.equal(got[idle], base[idle].float())
    assert torch.equal(got[:, OFFSETS[-1] :], base[:, OFFSETS[-1] :].float())


def test_nothing_is_changed_in_place():
    """A float32 base is copied too, so that a test can hold the kernel's result against it."""
    base, x, lora_a, lora_b, segments = batch()
    base = base.float()
    before = base.clone()
    got = reference.add_lora(base, x, lora_a, lora_b, segments, OFFSETS)
    assert torch.equal(base, before)
    assert not torch.equal(got, before)


@pytest.mark.parametrize("ids", [(), (-1, -1, -1)])
def test_batches_without_work(ids):
    """An empty batch, and one whose rows use no adapter, return the base; h is all NaN."""
    base, x, lora_a, lora_b, segments = batch(ids)
    assert reference.lora_shrink(x, lora_a, segments, 4).isnan().all()
    assert torch.equal(reference.add_lora(base, x, lora_a, lora_b, segments, OFFSETS), base.float())


def test_static_segments_and_their_empty_tail_give_the_same():
    """What stands past the last row of allocated Segments is not read."""
    base, x, lora_a, lora_b, segments = batch()
    static = Segments.allocate(50, len(RANKS), chunk_size=2, device="cpu")
    static.update_from_tokens([3] * 50, RANKS, SCALINGS)
    static.update_from_tokens(IDS, RANKS, SCALINGS)
    want = reference.add_lora(base, x, lora_a, lora_b, segments, OFFSETS)
    assert torch.equal(reference.add_lora(base, x, lora_a, lora_b, static, OFFSETS), want)
