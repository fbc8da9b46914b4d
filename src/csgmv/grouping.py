"""Rows gathered by adapter and cut into segments: on the host a loop over runs of rows, on a GPU torch operations.

Gathering the rows of an adapter with a permutation, so that they share its weights, is SGMV (Chen et al., Punica,
https://arxiv.org/abs/2310.18547). Cutting each gathered group into chunks, so that a long group feeds many programs,
is sglang's chunked SGMV (https://github.com/sgl-project/sglang, lora/backend/chunked_backend.py).
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch

from csgmv import rules

_ITEM = 4  # bytes of an int32
_LEAST_NUMBERED = 2**16  # rows; most batches have fewer, and so find their numbers ready


class Grouping(NamedTuple):
    """Three of the tensors that `Segments` describes, int64, on the device that they were computed on."""

    seg_indptr: torch.Tensor
    weight_indices: torch.Tensor
    permutation: torch.Tensor


class HostGrouping(NamedTuple):
    """A `Grouping` as the bytes of its int32 numbers, which lack only their place in a buffer."""

    seg_indptr: bytes
    weight_indices: bytes
    permutation: bytes

    @property
    def num_segments(self) -> int:
        """The number of segments, empty ones included."""
        return len(self.weight_indices) // _ITEM


class Gathered(NamedTuple):
    """Rows gathered by adapter, not cut yet; on the host.

    Attributes:
        slot_rows: [num_loras], the number of rows of each slot.
        permutation: bytes of int32 [rows], as `Segments` describes it.
    """

    slot_rows: Sequence[int]
    permutation: bytes

    @property
    def rows(self) -> int:
        """The number of rows of all slots."""
        return len(self.permutation) // _ITEM

    def active_adapters(self) -> int:
        """The number of slots that have rows."""
        return len(self.slot_rows) - self.slot_rows.count(0)

    def cut(self, chunk_size: int, num_segments: int | None = None) -> HostGrouping:
        """Segments of at most chunk_size rows: num_segments of them, the last ones empty; None for no empty ones."""
        if max(self.slot_rows, default=0) > chunk_size:
            seg_starts, weight_indices = self._cut(chunk_size)
        else:  # a segment for each slot that has rows, by no loop
            slots = list(itertools.compress(range(len(self.slot_rows)), self.slot_rows))
            ends = itertools.accumulate(filter(None, self.slot_rows), initial=0)
            seg_starts = struct.pack(f"{len(slots)}i", *itertools.islice(ends, len(slots)))
            weight_indices = struct.pack(f"{len(slots)}i", *slots)
        empty = 0 if num_segments is None else num_segments - len(weight_indices) // _ITEM
        seg_indptr = seg_starts + struct.pack("i", self.rows) * (empty + 1)
        weight_indices += struct.pack("i", max(len(self.slot_rows) - 1, 0)) * empty
        return HostGrouping(seg_indptr, weight_indices, self.permutation)

    def _cut(self, chunk_size: int) -> tuple[bytes, bytes]:
        """Where each segment starts, and its slot."""
        numbers = _row_numbers(max(self.rows, len(self.slot_rows)))
        positions = memoryview(numbers).cast("i")
        starts, slots = [], []
        at = 0
        for slot, rows in enumerate(self.slot_rows):
            if rows:
                starts.append(positions[at : at + rows : chunk_size].tobytes())
                slots.append(numbers[_ITEM * slot : _ITEM * (slot + 1)] * -(-rows // chunk_size))
                at += rows
        return b"".join(starts), b"".join(slots)


def segment_capacity(num_tokens: int, num_loras: int, chunk_size: int) -> int:
    """The most segments that num_tokens rows of num_loras slots can make.

    A slot's first row opens a segment, and so does every chunk_size-th row after it: of the rows that are no slot's
    first, at most one in chunk_size opens one, and batches that reach this bound exist.
    """
    first_rows = min(num_tokens, num_loras)
    return first_rows + (num_tokens - first_rows) // chunk_size if num_loras else 0


def gather_runs(lens: Sequence[int], ids: Sequence[int], rows: int, ranks: Sequence[int]) -> Gathered:
    """Gathers runs of rows by adapter, on the host.

    Args:
        lens: [num_runs], rows of each run; the runs follow one another in x.
        ids: [num_runs], slot of each run, or -1.
        rows: the sum of lens.
        ranks: [num_loras]; rows of a rank-0 slot are left out.
    """
    # Keeping a run together has a price of its own, which runs of a row or two do not earn back.
    return _gather_rows(lens, ids, ranks) if rows < 2 * len(lens) else _gather_runs(lens, ids, ranks)


def _gather_rows(lens: Sequence[int], ids: Sequence[int], ranks: Sequence[int]) -> Gathered:
    """For short runs: row by row."""
    slots: list[list[int]] = [[] for _ in range(len(ranks) + 1)]  # the last one is that of id -1
    single = lens.count(1) == len(lens)
    for row, slot in enumerate(ids if single else itertools.chain.from_iterable(map(itertools.repeat, ids, lens))):
        slots[slot].append(row)
    used = [rows if rank else [] for rows, rank in zip(slots, ranks)]
    permutation = list(itertools.chain.from_iterable(used))
    return Gathered(list(map(len, used)), struct.pack(f"{len(permutation)}i", *permutation))


def _gather_runs(lens: Sequence[int], ids: Sequence[int], ranks: Sequence[int]) -> Gathered:
    """For long runs: each one's rows are copied as bytes."""
    numbers = _row_numbers(sum(lens))
    slots: list[list[bytes]] = [[] for _ in range(len(ranks) + 1)]  # the last one is that of id -1
    at = 0
    for length, slot in zip(lens, ids):
        end = at + _ITEM * length
        slots[slot].append(numbers[at:end])
        at = end
    used = [b"".join(runs) if rank else b"" for runs, rank in zip(slots, ranks)]
    return Gathered([len(rows) // _ITEM for rows in used], b"".join(used))


def _row_numbers(count: int) -> bytes:
    """0, 1, 2, … as int32, at least so many: the rows of any run are a part of it."""
    return _numbers(max(rules.power_of_two(count), _LEAST_NUMBERED))


@functools.lru_cache(maxsize=2)
def _numbers(count: int) -> bytes:
    numbers = torch.arange(count, dtype=torch.int32, device="cpu")
    return ctypes.string_at(numbers.data_ptr(), count * _ITEM)


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
