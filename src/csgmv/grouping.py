"""Rows gathered by adapter and cut into segments: torch operations, without a loop, on host or GPU.

Gathering the rows of an adapter with a permutation, so that they share its weights, is SGMV (Chen et al., Punica,
https://arxiv.org/abs/2310.18547). Cutting each gathered group into chunks, so that a long group feeds many programs,
is sglang's chunked SGMV (https://github.com/sgl-project/sglang, lora/backend/chunked_backend.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Grouping(NamedTuple):
    """Three of the tensors that `Segments` describes, int64, on the device that they were computed on."""

    seg_indptr: torch.Tensor
    weight_indices: torch.Tensor
    permutation: torch.Tensor


class Gathered(NamedTuple):
    """Rows gathered by adapter, not cut yet; on the host.

    Attributes:
        slot_starts: int64 [num_loras + 1], position of each slot's first row, and last the number of rows.
        permutation: int64 [rows], as `Segments` describes it.
    """

    slot_starts: torch.Tensor
    permutation: torch.Tensor

    def active_adapters(self) -> int:
        """The number of slots that have rows."""
        return int(self.slot_starts.diff().count_nonzero())

    def cut(self, chunk_size: int, num_segments: int | None = None) -> Grouping:
        """Segments of at most chunk_size rows: num_segments of them, the last ones empty; None for no empty ones."""
        return Grouping(*_cut(self.slot_starts, chunk_size, num_segments), self.permutation)


def segment_capacity(num_tokens: int, num_loras: int, chunk_size: int) -> int:
    """The most segments that num_tokens rows of num_loras slots can make.

    A slot's first row opens a segment, and so does every chunk_size-th row after it: of the rows that are no slot's
    first, at most one in chunk_size opens one, and batches that reach this bound exist.
    """
    first_rows = min(num_tokens, num_loras)
    return first_rows + (num_tokens - first_rows) // chunk_size if num_loras else 0


def gather_runs(lens: torch.Tensor, ids: torch.Tensor, ranks: torch.Tensor) -> Gathered:
    """Gathers runs of rows by adapter, on the host. Sorts the runs, never the rows.

    Args:
        lens: int64 [num_runs], rows of each run; the runs follow one another in x.
        ids: int64 [num_runs], slot of each run, or -1.
        ranks: integers [num_loras]; rows of a rank-0 slot are left out.
    """
    num_loras = ranks.numel()
    slots = _slots(ids, ranks)
    order = torch.argsort(slots, stable=True)
    first_rows = (lens.cumsum(0) - lens)[order]
    slot_rows = lens.new_zeros(num_loras + 1).scatter_add_(0, slots, lens)
    slot_starts = slot_rows.cumsum(0) - slot_rows
    rows = int(slot_starts[-1])
    lens = lens.where(slots < num_loras, 0)[order]  # runs without an adapter are last in order, and now empty
    positions = lens.cumsum(0) - lens
    permutation = torch.repeat_interleave(first_rows - positions, lens, output_size=rows)
    permutation += torch.arange(rows, device=lens.device)
    return Gathered(slot_starts, permutation)


def group_tokens(ids: torch.Tensor, ranks: torch.Tensor, chunk_size: int, num_segments: int) -> Grouping:
    """Groups rows by adapter on the device that ids and ranks are on, without a wait for it.

    Args:
        ids: integers [num_tokens], slot of each row; any number that is no slot means none.
        ranks: integers [num_loras]; rows of a rank-0 slot are left out.
        chunk_size: most rows of a segment.
        num_segments: segments to return, the last ones empty; at least as many as there are (`segment_capacity`).

    Returns:
        The grouping; rows without an adapter stand in its permutation [num_tokens] after all segments.
    """
    slots, permutation = torch.sort(_slots(ids, ranks), stable=True)
    slot_starts = torch.searchsorted(slots, torch.arange(ranks.numel() + 1, device=ids.device))
    return Grouping(*_cut(slot_starts, chunk_size, num_segments), permutation)


def _slots(ids: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """The slot of each id, int64; num_loras, which sorts last, for an id that has none or one of rank 0."""
    none = ranks.numel()
    ids = ids.long()  # narrow types would wrap what they are compared with
    slots = ids.where((ids >= 0) & (ids < none), none)
    return slots.where(torch.cat((ranks, ranks.new_zeros(1)))[slots] > 0, none)


def _cut(slot_starts: torch.Tensor, chunk_size: int, num_segments: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """seg_indptr and weight_indices, from the position of each slot's first row (and, last, the number of rows)."""
    slot_segments = (slot_starts.diff() + (chunk_size - 1)) // chunk_size
    ends = slot_segments.cumsum(0)
    if num_segments is None:
        num_segments = int(ends[-1]) if ends.numel() else 0
    segment_starts = torch.cat((ends.new_zeros(1), ends))
    segments = torch.arange(num_segments + 1, device=ends.device)
    slots = torch.searchsorted(ends, segments, right=True)  # num_loras from the end of the last segment on
    starts = slot_starts[slots] + (segments - segment_starts[slots]) * chunk_size
    return torch.minimum(starts, slot_starts[-1]), slots[:-1].clamp(max=max(ends.numel() - 1, 0))
