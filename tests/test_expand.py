"""lora_expand agrees with plain float32 torch on every kind of batch, and touches nothing else."""

from __future__ import annotations

import pytest
import torch

from batches import DEVICE, DTYPES, Batch, assert_close, make_batch
from csgmv import ExpandConfig, Segments, lora_expand, reference

CONFIGS = {
    "default": None,
    "rank in steps": ExpandConfig(block_m=16, block_n=32, block_k=16, column_tiles=2),
    "whole rank": ExpandConfig(block_m=16, block_n=32, block_k=64),
    "several tiles": ExpandConfig(block_m=32, block_n=16, block_k=64, column_tiles=3),
    "one tile ahead": ExpandConfig(block_m=32, block_n=16, block_k=64, column_tiles=3, num_stages=1),
}
BATCHES = {
    "mixed ranks, one empty slot": dict(ranks=[8, 3, 0, 16], max_rank=16, widths=[64, 32, 32], num_tokens=37),
    "uneven slices, one of no width": dict(
        ranks=[12, 5, 24], max_rank=24, widths=[40, 0, 7, 9], num_tokens=29, extra=3
    ),
    "full rank": dict(ranks=[64, 64], max_rank=64, widths=[128], num_tokens=70, chunk_size=64, extra=8),
    "rank one": dict(ranks=[1], max_rank=1, widths=[5], num_tokens=9, chunk_size=5),
    "padded, slices narrower than the rank": dict(
        ranks=[40, 8, 48], max_rank=48, widths=[16, 64], num_tokens=33, padded=True
    ),
}


def some_h(batch: Batch) -> torch.Tensor:
    """What the shrink kernel would leave: NaN in rows without an adapter and past each adapter's rank."""
    h = reference.lora_shrink(batch.x, batch.lora_a, batch.segments, batch.num_slices, padded=batch.padded)
    return h.to(DEVICE, batch.x.dtype)


def expanded(batch: Batch, h: torch.Tensor, config: ExpandConfig | None) -> torch.Tensor:
    """The result, written onto a copy of the base that keeps the base's strides."""
    base = batch.base_output.clone()
    got = lora_expand(h, batch.lora_b, batch.segments, batch.slice_offsets, base, padded=batch.padded, config=config)
    assert got is base
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", BATCHES.values(), ids=BATCHES)
def test_agrees_with_the_reference(kind: dict, config: ExpandConfig | None, dtype: torch.dtype) -> None:
    """Every kind of batch, every variant of the kernel."""
    batch = make_batch(input_dim=32, dtype=dtype, **kind)
    h = some_h(batch)
    expected = reference.lora_expand(
        h, batch.lora_b, batch.segments, batch.slice_offsets, batch.base_output, padded=batch.padded
    )
    assert_close(expanded(batch, h, config), expected, dtype)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_float32_is_rounded_to_the_weights_dtype(config: ExpandConfig | None, dtype: torch.dtype) -> None:
    """An h of float32 gives the bits that it gives once it is rounded."""
    batch = make_batch([8, 24, 24], 24, 32, [40, 0, 7], 29, dtype=dtype)
    h = reference.lora_shrink(batch.x, batch.lora_a, batch.segments, 3).to(DEVICE)
    got, rounded = expanded(batch, h, config), expanded(batch, h.to(dtype), config)
    assert torch.equal(got.view(torch.int16), rounded.view(torch.int16))
    assert not torch.equal(got, batch.base_output)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_is_rounded_once(config: ExpandConfig | None) -> None:
    """1 + 2⁻¹¹ + 2⁻²² is nearer to float16's next number; with the delta rounded before, it would be a tie, and 1."""
    h, b = torch.ones(3, 2), torch.tensor([2**-10, 2**-21]).expand(1, 15, 2)
    segments = Segments.from_tokens([0] * 3, [2], [0.5], chunk_size=16, device=DEVICE)
    base = torch.ones(3, 17).half().to(DEVICE)
    lora_expand(h.half().to(DEVICE), b.half().contiguous().to(DEVICE), segments, (0, 15), base, config=config)
    assert base.tolist() == [[1 + 2**-10] * 15 + [1.0] * 2] * 3


def test_rows_and_columns_that_are_not_its_own_keep_their_bits() -> None:
    """Rows without an adapter, and columns past output_dim, even where they hold NaN."""
    batch = make_batch([8, 16, 16], 16, 32, [24, 8], 30, extra=5)
    batch.base_output[:, 32:] = float("nan")
    used = batch.segments.permutation.long()
    unused = torch.ones(30, dtype=torch.bool, device=DEVICE).index_fill_(0, used, False)
    assert unused.any()
    batch.base_output[unused] = float("nan")
    got = expanded(batch, some_h(batch), None).view(torch.int16)
    before = batch.base_output.view(torch.int16)
    assert torch.equal(got[unused], before[unused])
    assert torch.equal(got[:, 32:], before[:, 32:])
    assert not torch.equal(got[used, :32], before[used, :32])


def test_negative_zero_and_large_scalings() -> None:
    """Scalings are applied in float32, each row its own adapter's."""
    batch = make_batch([8, 8, 8, 8], 8, 32, [16], 24, dtype=torch.float32)
    scalings = [0.0, -3.0, 1e4, 1.0]
    batch.segments = Segments.from_tokens([0, 1, 2] * 8, [8] * 4, scalings, chunk_size=16, device=DEVICE)
    h = some_h(batch)
    expected = reference.lora_expand(h, batch.lora_b, batch.segments, batch.slice_offsets, batch.base_output)
    got = expanded(batch, h, None)
    assert_close(got, expected, torch.float32)
    assert torch.equal(got[::3], batch.base_output[::3])


def test_batches_without_work() -> None:
    """No rows, no adapters, or no width: the base comes back as it was."""
    base = torch.randn(6, 16, device=DEVICE, dtype=torch.float16)
    before = base.clone()
    none = Segments.from_tokens([-1] * 6, [4], [1.0], chunk_size=16, device=DEVICE)
    some = Segments.from_tokens([0] * 6, [4], [1.0], chunk_size=16, device=DEVICE)
    h, b = base.new_ones(6, 4), base.new_ones(1, 16, 4)
    assert lora_expand(h, b, none, (0, 16), base) is base
    assert lora_expand(h, b[:, :0], some, (0, 0), base) is base
    assert lora_expand(h[:0], b, Segments.from_tokens([], [4], [1.0], device=DEVICE), (0, 16), base[:0]).shape == (
        0,
        16,
    )
    assert torch.equal(base, before)
