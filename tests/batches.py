"""Batches for the kernels' tests: ragged, gathered, mixed in rank and scaling, NaN wherever nothing may be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from csgmv import Segments

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 products are wrong in Triton's interpreter (it takes their bits for integers): they are for the GPU.
DTYPES = (torch.float16, torch.float32) if DEVICE == "cpu" else (torch.float16, torch.bfloat16, torch.float32)
# Error allowed, relative to the norm of a row.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
NAN = float("nan")


@dataclass
class Batch:
    """One call's tensors; `base_output` is wider than output_dim by as much as x is wider than input_dim."""

    x: torch.Tensor
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    base_output: torch.Tensor
    segments: Segments
    slice_offsets: tuple[int, ...]
    padded: bool

    @property
    def num_slices(self) -> int:
        """1 to 4."""
        return len(self.slice_offsets) - 1


def make_batch(
    ranks: list[int],
    max_rank: int,
    input_dim: int,
    widths: list[int],
    num_tokens: int,
    *,
    chunk_size: int | None = 16,
    padded: bool = False,
    dtype: torch.dtype = torch.float16,
    extra: int = 0,
    seed: int = 0,
) -> Batch:
    """Rows drawn at random for the adapters and for none; the last adapter that has a rank gets no row at all."""
    draw = torch.Generator().manual_seed(seed)
    num_loras, num_slices, output_dim = len(ranks), len(widths), sum(widths)
    empty = max(slot for slot, rank in enumerate(ranks) if rank) if num_loras > 1 else num_loras
    slots = torch.tensor([-1, *(slot for slot in range(num_loras) if slot != empty)])
    ids = slots[torch.randint(len(slots), (num_tokens,), generator=draw)]
    scalings = (torch.rand(num_loras, generator=draw) * 4 - 2).tolist()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    lora_a = normal(num_loras, num_slices * max_rank, input_dim) / input_dim**0.5
    lora_b = normal(num_loras, output_dim, max_rank) / max_rank**0.5
    for slot, rank in enumerate(ranks):
        if padded:
            lora_a[slot].view(num_slices, max_rank, input_dim)[:, rank:] = NAN
        else:
            lora_a[slot, num_slices * rank :] = NAN
        lora_b[slot, :, rank:] = NAN
    offsets = [0]
    for width in widths:
        offsets.append(offsets[-1] + width)
    x = normal(num_tokens, input_dim + extra)
    x[:, input_dim:] = NAN
    return Batch(
        x.to(DEVICE, dtype)[:, :input_dim],
        lora_a.to(DEVICE, dtype),
        lora_b.to(DEVICE, dtype),
        normal(num_tokens, output_dim + extra).to(DEVICE, dtype),
        Segments.from_tokens(ids, ranks, scalings, chunk_size=chunk_size, device=DEVICE),
        tuple(offsets),
        padded,
    )


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Fresh memory in which everything that is read before it is written shows."""
    return torch.full(shape, NAN, device=DEVICE, dtype=dtype)


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal but for the rounding of dtype, row by row; NaN only where NaN is expected."""
    expected = expected.to(got.device)
    assert torch.equal(got.isnan(), expected.isnan()), "NaN where there should be none, or the other way round"
    error = (got.float() - expected).nan_to_num().norm(dim=-1)
    norm = expected.nan_to_num().norm(dim=-1)
    worst = (error - TOLERANCE[dtype] * norm).max().item() if len(error) else 0.0
    assert worst <= 1e-6, f"worst row is off by {worst} beyond {TOLERANCE[dtype]} of its norm"
