"""lora_shrink agrees with plain float32 torch on every kind of batch, and touches nothing else."""

from __future__ import annotations

import pytest
import torch

from batches import DEVICE, DTYPES, Batch, assert_close, make_batch, poisoned
from csgmv import Segments, ShrinkConfig, lora_shrink, reference

CONFIGS = {
    "default": None,
    "small": ShrinkConfig(block_m=16, block_n=16, block_k=16),
    "shared x": ShrinkConfig(block_m=32, block_n=32, block_k=32, column_tiles=3),
    "narrow last tile": ShrinkConfig(block_m=16, block_n=32, block_k=32, column_tiles=2),
    "split": ShrinkConfig(block_m=16, block_n=32, block_k=32, split_k=3),
    "split finer than steps": ShrinkConfig(block_m=16, block_n=64, block_k=64, split_k=16),
    "sliced": ShrinkConfig(block_m=16, block_n=32, block_k=64, sliced_k=True),
    "sliced, shared x": ShrinkConfig(block_m=32, block_n=16, block_k=32, column_tiles=3, num_warps=2, sliced_k=True),
    "sliced, split": ShrinkConfig(block_m=16, block_n=32, block_k=128, split_k=2, num_warps=8, sliced_k=True),
    "sliced, split, shared x": ShrinkConfig(16, 32, 32, column_tiles=2, split_k=3, num_warps=2, sliced_k=True),
}
BATCHES = {
    "mixed ranks, one empty slot": dict(
        ranks=[8, 3, 0, 16], max_rank=16, input_dim=64, widths=[8, 8, 8], num_tokens=37
    ),
    "odd dimensions": dict(ranks=[12, 5, 24], max_rank=24, input_dim=101, widths=[4, 0, 7, 9], num_tokens=29, extra=3),
    "full rank": dict(ranks=[32, 32], max_rank=32, input_dim=96, widths=[8], num_tokens=70, chunk_size=64),
    "long rows": dict(ranks=[16, 7, 16], max_rank=16, input_dim=300, widths=[8, 8], num_tokens=21),
    "rank one": dict(ranks=[1], max_rank=1, input_dim=17, widths=[5, 6], num_tokens=9, chunk_size=5),
    "padded": dict(ranks=[40, 8, 48], max_rank=48, input_dim=64, widths=[8, 8], num_tokens=33, padded=True),
}


def shrunk(batch: Batch, config: ShrinkConfig | None) -> torch.Tensor:
    """h on top of NaN: what the kernel leaves alone stays NaN, as in the reference."""
    out = poisoned(len(batch.x), batch.lora_a.shape[1], dtype=batch.x.dtype)
    arguments = batch.x, batch.lora_a, batch.segments, batch.num_slices
    return lora_shrink(*arguments, out=out, padded=batch.padded, config=config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", BATCHES.values(), ids=BATCHES)
def test_agrees_with_the_reference(kind: dict, config: ShrinkConfig | None, dtype: torch.dtype) -> None:
    """Every kind of batch, every variant of the kernel: right where something is due, untouched elsewhere."""
    batch = make_batch(**kind, dtype=dtype)
    expected = reference.lora_shrink(batch.x, batch.lora_a, batch.segments, batch.num_slices, padded=batch.padded)
    assert_close(shrunk(batch, config), expected, dtype)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
@pytest.mark.parametrize("config", [CONFIGS[name] for name in ("default", "split", "sliced")])
def test_float32_is_not_rounded(config: ShrinkConfig | None, dtype: torch.dtype) -> None:
    """An `out` of float32 gets h as it was accumulated, whatever x's dtype."""
    batch = make_batch([7, 16, 16], 16, 80, [8, 8], 40, dtype=dtype)
    out = poisoned(40, 32, dtype=torch.float32)
    assert lora_shrink(batch.x, batch.lora_a, batch.segments, 2, out=out, config=config) is out
    assert_close(out, reference.lora_shrink(batch.x, batch.lora_a, batch.segments, 2), torch.float32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_is_rounded_once(config: ShrinkConfig | None) -> None:
    """1 + 2⁻¹¹ + 2⁻²² is nearer to float16's next number, wherever its terms are in input_dim; parts of it are not."""
    x, a = torch.ones(3, 96), torch.zeros(1, 15, 96)
    for column, (one, half, rest) in enumerate([(0, 40, 41), (0, 1, 95), (95, 33, 64)]):
        a[0, column::3, [one, half, rest]] = torch.tensor([1, 2**-11, 2**-22])
    segments = Segments.from_tokens([0] * 3, [15], [1.0], chunk_size=16, device=DEVICE)
    h = lora_shrink(x.half().to(DEVICE), a.half().to(DEVICE), segments, config=config)
    assert h.tolist() == [[1 + 2**-10] * 15] * 3


@pytest.mark.parametrize("config", [CONFIGS[name] for name in ("default", "split", "sliced")])
def test_same_inputs_same_bits(config: ShrinkConfig | None) -> None:
    """Nothing is summed in an order that could change."""
    batch = make_batch([7, 16], 16, 80, [8, 8], 40)
    first = shrunk(batch, config)
    for _ in range(3):
        assert torch.equal(shrunk(batch, config).view(torch.int16), first.view(torch.int16))


def test_allocates_what_it_returns() -> None:
    """Without `out`, h is a fresh matrix of x's dtype with the same values."""
    batch = make_batch([16, 16], 16, 64, [8], 20)
    h = lora_shrink(batch.x, batch.lora_a, batch.segments)
    assert h.shape == (20, 16)
    assert h.dtype == batch.x.dtype
    expected = reference.lora_shrink(batch.x, batch.lora_a, batch.segments)
    rows = ~expected.isnan().any(dim=1).to(h.device)
    assert_close(h[rows], expected.to(h.device)[rows], h.dtype)


@pytest.mark.parametrize("num_tokens", [0, 6])
def test_batches_without_work(num_tokens: int) -> None:
    """No rows, or none that uses an adapter: a matrix of the right shape, and no launch."""
    segments = Segments.from_tokens([-1] * num_tokens, [4], [1.0], chunk_size=16, device=DEVICE)
    x = torch.randn(num_tokens, 32, device=DEVICE, dtype=torch.float16)
    lora_a = torch.randn(1, 8, 32, device=DEVICE, dtype=torch.float16)
    assert lora_shrink(x, lora_a, segments, 2).shape == (num_tokens, 8)


def test_refilled_segments_keep_their_capacity() -> None:
    """Empty segments at the tail of static Segments do nothing."""
    batch = make_batch([16, 9], 16, 64, [8], 20)
    static = Segments.allocate(64, 2, chunk_size=16, device=DEVICE)
    static.update_from_tokens([0, -1, 1, 1] * 5, [16, 9], [1.0, 2.0])
    batch.segments = static
    assert_close(shrunk(batch, None), reference.lora_shrink(batch.x, batch.lora_a, static), batch.x.dtype)
