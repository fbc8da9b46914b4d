"""Rows gathered by adapter and cut into segments: by NumPy on the host, by torch on a GPU.

Gathering the rows of an adapter with a permutation, so that they share its weights, is SGMV (Chen et al., Punica,
https://arxiv.org/abs/2310.18547). Cutting each gathered group into chunks, so that a long group feeds many programs,
is sglang's chunked SGMV (https://github.com/sgl-project/sglang, lora/backend/chunked_backend.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from csgmv import rules

Numbers = NDArray[np.integer[Any]]

_NARROW = 2**15  # slots whose numbers are int16
_LEAST_NUMBERED = 2**16  # rows; most batches have fewer, and so find their numbers ready


class Grouping(NamedTuple):
    """Three of the tensors that `Segments` describes, int64, on the device that they were computed on."""

    seg_indptr: torch.Tensor
    weight_indices: torch.Tensor
    permutation: torch.Tensor


class Runs(NamedTuple):
    """Runs of rows that follow one another in x, each with an adapter or none; on the host.

    Attributes:
        lens: int64 [num_runs], rows of each; 0 is allowed.
        ids: int64 [num_runs], slot of each, or -1.
        rows: of all of them.
        single: whether each is one row.
        some_without: whether an id is -1.
    """

    lens: NDArray[np.int64]
    ids: NDArray[np.int64]
    rows: int
    single: bool
    some_without: bool


class HostGrouping(NamedTuple):
    """A `Grouping` on the host; seg_starts is seg_indptr without its last number, which is that of all rows."""

    seg_starts: Numbers
    weight_indices: Numbers
    permutation: Numbers

    @property
    def num_segments(self) -> int:
        """The number of segments, empty ones included."""
        return len(self.weight_indices)


class Gathered(NamedTuple):
    """Rows gathered by adapter, not cut yet; on the host.

    Attributes:
        slot_rows: [num_loras], the number of rows of each slot.
        permutation: [rows], as `Segments` describes it.
    """

    slot_rows: Numbers
    permutation: Numbers

    @property
    def rows(self) -> int:
        """The number of rows of all slots."""
        return len(self.permutation)

    def active_adapters(self) -> int:
        """The number of slots that have rows."""
        return int(np.count_nonzero(self.slot_rows))

    def cut(self, chunk_size: int, num_segments: int | None = None) -> HostGrouping:
        """Segments of at most chunk_size rows: num_segments of them, the last ones empty; None for no empty ones."""
        rows, slot_rows = self.rows, self.slot_rows
        ends = slot_rows.cumsum()
        if rows <= chunk_size or slot_rows.max() <= chunk_size:  # a segment for each slot that has rows
            slots = slot_rows.nonzero()[0]
            starts = (ends - slot_rows)[slots]
        else:
            slot_segments = (slot_rows + (chunk_size - 1)) // chunk_size
            slots = np.arange(len(slot_rows)).repeat(slot_segments)
            ahead = (slot_segments.cumsum() - slot_segments)[slots]  # segments of the slots before
            starts = (ends - slot_rows)[slots] + chunk_size * (np.arange(len(slots)) - ahead)
        if num_segments is not None:
            empty = num_segments - len(slots)
            starts = np.append(starts, np.full(empty, rows))
            slots = np.append(slots, np.full(empty, max(len(slot_rows) - 1, 0)))
        return HostGrouping(starts, slots, self.permutation)


def segment_capacity(num_tokens: int, num_loras: int, chunk_size: int) -> int:
    """The most segments that num_tokens rows of num_loras slots can make.

    A slot's first row opens a segment, and so does every chunk_size-th row after it: of the rows that are no slot's
    first, at most one in chunk_size opens one, and batches that reach this bound exist.
    """
    first_rows = min(num_tokens, num_loras)
    return first_rows + (num_tokens - first_rows) // chunk_size if num_loras else 0


def gather_runs(runs: Runs, ranks: Sequence[int]) -> Gathered:
    """Gathers runs of rows by adapter, on the host.

    Args:
        runs: of the batch.
        ranks: [num_loras]; rows of a rank-0 slot are left out.
    """
    lens, ids, _, single, some_without = runs
    num_loras = len(ranks)
    if 0 in ranks:
        ids = np.where(np.append(ranks, 0)[ids] > 0, ids, -1)  # the last one is that of id -1
        some_without = True
    # NumPy sorts 16 bits by radix, in a fifth of the time.
    order = ids.astype(np.int16 if num_loras < _NARROW else np.int64).argsort(kind="stable")
    if some_without:
        order = order[np.count_nonzero(ids < 0) :]
    gathered_ids = ids[order]
    if single:  # a row's number is that of its run
        return Gathered(np.bincount(gathered_ids, minlength=num_loras), order)
    gathered_lens = lens[order]
    slot_rows = np.bincount(gathered_ids, gathered_lens, num_loras).astype(np.int64)
    ends = gathered_lens.cumsum()
    shifts = (lens.cumsum() - lens)[order] - (ends - gathered_lens)  # from its place to its row, of all rows of a run
    permutation = shifts.astype(np.int32).repeat(gathered_lens)
    permutation += _row_numbers(len(permutation))
    return Gathered(slot_rows, permutation)


def _row_numbers(count: int) -> Numbers:
    """0, 1, 2, … as int32, so many."""
    return _numbers(max(rules.power_of_two(count), _LEAST_NUMBERED))[:count]


@functools.lru_cache(maxsize=2)
def _numbers(count: int) -> Numbers:
    numbers = np.arange(count, dtype=np.int32)
    numbers.flags.writeable = False
    return numbers


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


def _cut(slot_starts: torch.Tensor, chunk_size: int, num_segments: int) -> tuple[torch.Tensor, torch.Tensor]:
    """seg_indptr and weight_indices, from the position of each slot's first row (and, last, the number of rows)."""
    slot_segments = (slot_starts.diff() + (chunk_size - 1)) // chunk_size
    ends = slot_segments.cumsum(0)
    segment_starts = torch.cat((ends.new_zeros(1), ends))
    segments = torch.arange(num_segments + 1, device=ends.device)
    slots = torch.searchsorted(ends, segments, right=True)  # num_loras from the end of the last segment on
    starts = slot_starts[slots] + (segments - segment_starts[slots]) * chunk_size
    return torch.minimum(starts, slot_starts[-1]), slots[:-1].clamp(max=max(ends.numel() - 1, 0))
