"""The three operations in plain float32 torch, for tests, tuner and bench: slow, and meant to be seen to be right.

Same arguments and layouts as the kernels', but nothing is changed in place. Where a kernel leaves memory that nobody
may read, there is NaN here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from csgmv.segments import Segments


def lora_shrink(
    x: torch.Tensor, lora_a: torch.Tensor, segments: Segments, num_slices: int = 1, *, padded: bool = False
) -> torch.Tensor:
    """h = x @ A[adapter].T for each row's adapter and each slice.

    Args:
        x: [num_tokens, input_dim].
        lora_a: [num_loras, num_slices · max_rank, input_dim]; slice i of an adapter of rank r is rows i·r … (i+1)·r,
            or, padded, rows i·max_rank … i·max_rank + r.
        segments: which rows use which adapter.
        num_slices: number of slices of lora_a.
        padded: the layout of lora_a and h.

    Returns:
        h, float32 [num_tokens, num_slices · max_rank]: slice i in columns i·r … (i+1)·r, or, padded, from column
        i·max_rank on. All else is NaN.
    """
    max_rank = lora_a.shape[1] // num_slices
    h = torch.full((x.shape[0], num_slices * max_rank), torch.nan, device=x.device)
    for slot, rank, _, rows in _adapters(segments, x.device):
        for i in range(num_slices):
            columns = _columns(i, rank, max_rank, padded)
            h[rows, columns] = x[rows].float() @ lora_a[slot, columns].float().T
    return h


def lora_expand(
    h: torch.Tensor,
    lora_b: torch.Tensor,
    segments: Segments,
    slice_offsets: Sequence[int],
    base_output: torch.Tensor,
    *,
    padded: bool = False,
) -> torch.Tensor:
    """base_output + scaling[adapter] · (h @ B[adapter].T) for each row's adapter and each slice.

    Args:
        h: [num_tokens, num_slices · max_rank], laid out as `lora_shrink` returns it.
        lora_b: [num_loras, output_dim, max_rank]; slice i is rows slice_offsets[i] … slice_offsets[i+1].
        segments: which rows use which adapter.
        slice_offsets: (0, …, output_dim), num_slices + 1 of them.
        base_output: [num_tokens, output_dim or more].
        padded: the layout of h.

    Returns:
        A new float32 tensor of base_output's shape; rows without an adapter, and columns past output_dim, are the
        base's.
    """
    output = base_output.to(torch.float32, copy=True)
    max_rank = lora_b.shape[2]
    for slot, rank, scaling, rows in _adapters(segments, h.device):
        for i, (start, end) in enumerate(pairwise(slice_offsets)):
            part = h[rows, _columns(i, rank, max_rank, padded)].float()
            output[rows, start:end] += scaling * (part @ lora_b[slot, start:end, :rank].float().T)
    return output


def add_lora(
    base_output: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    segments: Segments,
    slice_offsets: Sequence[int],
    *,
    padded: bool = False,
) -> torch.Tensor:
    """`lora_expand` of `lora_shrink`, with h kept in float32; arguments and result as theirs."""
    h = lora_shrink(x, lora_a, segments, len(slice_offsets) - 1, padded=padded)
    return lora_expand(h, lora_b, segments, slice_offsets, base_output, padded=padded)


def _columns(index: int, rank: int, max_rank: int, padded: bool) -> slice:
    start = index * (max_rank if padded else rank)
    return slice(start, start + rank)


def _adapters(segments: Segments, device: torch.device) -> Iterator[tuple[int, int, float, torch.Tensor]]:
    """Slot, rank, scaling and rows of every adapter that has both a rank and rows."""
    indptr, slots = segments.seg_indptr.tolist(), segments.weight_indices.tolist()
    ranks, scalings = segments.lora_ranks.tolist(), segments.scalings.tolist()
    permutation = segments.permutation.long()
    rows: dict[int, list[torch.Tensor]] = {}
    for segment in range(segments.num_segments):
        start, end = indptr[segment], indptr[segment + 1]
        if start < end and ranks[slots[segment]] > 0:
            rows.setdefault(slots[segment], []).append(permutation[start:end])
    for slot, parts in rows.items():
        yield slot, ranks[slot], scalings[slot], torch.cat(parts).to(device)
