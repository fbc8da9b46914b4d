"""The three operations in plain float32 torch, for tests, tuner and bench: slow, and meant to be seen to be right.

Same arguments and layouts as the kernels', but nothing is changed in place. Where a kernel leaves memory that nobody
may read, there is NaN here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from csgmv import slices
from csgmv.segments import Segments
from csgmv.slices import Sliced, SomeSliced


def lora_shrink(
    x: torch.Tensor, lora_a: Sliced, segments: Segments, num_slices: int = 1, *, padded: bool = False
) -> torch.Tensor:
    """h = x @ A[adapter].T for each row's adapter and each slice.

    Args:
        x: [num_tokens, input_dim].
        lora_a: [num_loras, num_slices · max_rank, input_dim]; slice i of an adapter of rank r is rows i·r … (i+1)·r,
            or, padded, rows i·max_rank … i·max_rank + r. Or a tuple of slices, each [num_loras, max_rank, input_dim].
        segments: which rows use which adapter.
        num_slices: number of slices of lora_a.
        padded: the layout of lora_a and h.

    Returns:
        h, float32 [num_tokens, num_slices · max_rank]: slice i in columns i·r … (i+1)·r, or, padded, from column
        i·max_rank on. All else is NaN.
    """
    parts = slices.parts(lora_a)
    max_rank = parts[0].shape[1] * len(parts) // num_slices
    h = torch.full((x.shape[0], num_slices * max_rank), torch.nan, device=x.device)
    for slot, rank, _, rows in _adapters(segments, x.device):
        for i in range(num_slices):
            columns = _columns(i, rank, max_rank, padded)
            a = parts[0][slot, columns] if len(parts) == 1 else parts[i][slot, :rank]
            h[rows, columns] = x[rows].float() @ a.float().T
    return h


def lora_expand(
    h: torch.Tensor,
    lora_b: Sliced,
    segments: Segments,
    slice_offsets: Sequence[int],
    base_output: SomeSliced,
    *,
    padded: bool = False,
) -> SomeSliced:
    """base_output + scaling[adapter] · (h @ B[adapter].T) for each row's adapter and each slice.

    Args:
        h: [num_tokens, num_slices · max_rank], laid out as `lora_shrink` returns it.
        lora_b: [num_loras, output_dim, max_rank]; slice i is rows slice_offsets[i] … slice_offsets[i+1]. Or a tuple of
            slices, each [num_loras, its width, max_rank].
        segments: which rows use which adapter.
        slice_offsets: (0, …, output_dim), num_slices + 1 of them.
        base_output: [num_tokens, output_dim or more]; or a tuple of slices, each [num_tokens, its width or more].
        padded: the layout of h.

    Returns:
        New float32 tensors like base_output: one, or a tuple of slices; rows without an adapter, and columns past
        output_dim, are the base's.
    """
    weights = slices.parts(lora_b)
    outputs = [base.to(torch.float32, copy=True) for base in slices.parts(base_output)]
    max_rank = weights[0].shape[2]
    for slot, rank, scaling, rows in _adapters(segments, h.device):
        for i, (start, end) in enumerate(pairwise(slice_offsets)):
            part = h[rows, _columns(i, rank, max_rank, padded)].float()
            b = weights[0][slot, start:end] if len(weights) == 1 else weights[i][slot]
            delta = scaling * (part @ b[:, :rank].float().T)
            if len(outputs) == 1:
                outputs[0][rows, start:end] += delta
            else:
                outputs[i][rows, : end - start] += delta
    result: Any = tuple(outputs) if slices.apart(base_output) else outputs[0]
    return result  # type: ignore[no-any-return]


def add_lora(
    base_output: SomeSliced,
    x: torch.Tensor,
    lora_a: Sliced,
    lora_b: Sliced,
    segments: Segments,
    slice_offsets: Sequence[int],
    *,
    padded: bool = False,
) -> SomeSliced:
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
