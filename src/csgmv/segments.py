"""Batches: which rows of x belong to which adapter, gathered and cut into segments of at most chunk_size rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from csgmv import batch_buffer, batch_faults, chunk_sizes, plain_arguments, rules
from csgmv.adapters import Adapters, Floats, Integers, on_gpu, read_gpu_integers, read_integers, read_runs
from csgmv.grouping import HostGrouping, gather_runs, group_tokens, segment_capacity

_MOST_TOKENS = 2**31 - 1  # positions are int32
_Runs = tuple[Sequence[int], Sequence[int]]  # rows that follow one another in x: how many, and their slot or -1


@dataclass(eq=False, repr=False)
class Segments:
    """One batch's routing: the rows of every adapter, gathered and cut into segments. All tensors are on one device.

    Segment s is positions seg_indptr[s] … seg_indptr[s + 1] of `permutation`, which are rows of x that use adapter slot
    weight_indices[s]. A slot's segments are neighbours, and its rows keep their order. Rows that use no adapter, or one
    of rank 0, are in no segment, so that no kernel touches them.

    Build one with `from_sequences` or `from_tokens`; for CUDA graphs `allocate` one and refill it with
    `update_from_sequences` or `update_from_tokens`. The constructor itself takes tensors as they are, unchecked, see
    `check`. What tensors hold may change; the tensors, chunk_size and num_segments may not.

    Attributes:
        permutation: int32 [rows]; what stands past position seg_indptr[-1] is unspecified.
        seg_indptr: int32 [num_segments + 1], never falling; segments at the tail may be empty.
        weight_indices: int32 [num_segments], each a valid slot, also where the segment is empty; segments of one slot
            follow one another, but see active_adapters.
        lora_ranks: int32 [num_loras], 0 … 256.
        scalings: float32 [num_loras].
        chunk_size: most rows of a segment.
        num_segments: number of segments, empty ones at the tail included: for Segments that were allocated or built on
            the GPU this is the capacity, which no refill changes.
        num_tokens: number of rows of x, or an upper bound of it.
        least_tokens: rows that x must have, as far as the host knows: those of the batch that was put in last.
        largest_rank: of lora_ranks, as far as the host knows; 0 where they came from the GPU.
        active_adapters: slots that have rows, or at most that many; 0 where the host does not know, or where refills
            change it. If a slot's segments are no neighbours (from outside), each place where it has some counts.
    """

    permutation: torch.Tensor
    seg_indptr: torch.Tensor
    weight_indices: torch.Tensor
    lora_ranks: torch.Tensor
    scalings: torch.Tensor
    chunk_size: int
    num_segments: int
    num_tokens: int
    least_tokens: int = 0
    largest_rank: int = 0
    active_adapters: int = 0
    _buffer: torch.Tensor | None = None  # what the five tensors are `batch_buffer.parts` of, if they are
    _refillable: bool = False
    _kind: tuple[Any, Any] | None = field(default=None, init=False)  # see `arguments.batch_kind`

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """permutation, seg_indptr, weight_indices, lora_ranks and scalings, in the order of the kernels' parameters."""
        return self.permutation, self.seg_indptr, self.weight_indices, self.lora_ranks, self.scalings

    @classmethod
    def from_sequences(
        cls,
        seq_lens: Integers,
        adapter_ids: Integers | Sequence[int | None],
        lora_ranks: Integers,
        scalings: Floats,
        *,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> Segments:
        """Segments of sequences that follow one another in x, each using one adapter or none.

        Everything is worked out on the host and sent in one asynchronous copy on the current stream.

        Args:
            seq_lens: [num_sequences] integers on the host, rows of each sequence; 0 is allowed.
            adapter_ids: [num_sequences] integers on the host, adapter slot of each sequence; -1 or None for none.
            lora_ranks: [num_loras] integers from 0 to 256, rank of each slot (0: the slot is empty). A tensor on the
                GPU is copied without looking at it: rows of its rank-0 slots stay in, and the kernels skip them.
            scalings: [num_loras] finite floats; a tensor on the GPU is copied without looking at it.
            chunk_size: most rows of a segment; None for what the table's results found fastest on this GPU for about
                so many rows with an adapter and active adapters (adapters that have rows), or where it has none for
                this GPU, and on the CPU, for 16 below 2048 rows and 64 from there on.
            device: where the tensors go; None for the GPU of a given tensor, else the current GPU, else the CPU.

        Raises:
            TypeError: an argument does not hold (whole) numbers, or is on the GPU where it must be on the host.
            ValueError: lengths differ or are negative, an id has no slot, a rank, scaling or chunk_size is out of
                range, or the stream is being captured.
        """
        adapters = Adapters.read(lora_ranks, scalings)
        runs = _read_sequences(seq_lens, adapter_ids, adapters.num_loras)
        return cls._from_runs(runs, adapters, chunk_size, adapters.device(device))

    @classmethod
    def from_tokens(
        cls,
        adapter_ids: Integers | Sequence[int | None],
        lora_ranks: Integers,
        scalings: Floats,
        *,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> Segments:
        """Segments of tokens that each name their adapter.

        Ids on the host give exactly the segments that are needed. Ids on the GPU are grouped there without waiting for
        it; since the host then never learns how many segments there are, it gets `segment_capacity` of them, the last
        ones empty.

        Args:
            adapter_ids: [num_tokens] integers on host or GPU, adapter slot of each row of x; -1 or (in a list) None
                for none. On the GPU, an id that has no slot counts as none.
            lora_ranks, scalings, chunk_size, device: as for `from_sequences`, except that with ids on the GPU the rows
                of rank-0 slots are left out wherever the ranks are, and chunk_size None goes by num_tokens and
                num_loras, which are what the host knows.

        Raises:
            TypeError, ValueError: as for `from_sequences`.
        """
        adapters = Adapters.read(lora_ranks, scalings)
        if not on_gpu(adapter_ids):
            runs = _read_tokens(adapter_ids, adapters.num_loras)
            return cls._from_runs(runs, adapters, chunk_size, adapters.device(device))
        gpu_ids = read_gpu_integers("adapter_ids", adapter_ids)
        place = adapters.device(device, gpu_ids)
        segments = cls.allocate(gpu_ids.numel(), adapters.num_loras, chunk_size=chunk_size, device=place)
        segments._regroup(gpu_ids, adapters)
        return segments

    @classmethod
    def allocate(
        cls,
        max_tokens: int,
        max_loras: int,
        *,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> Segments:
        """Static Segments for CUDA graphs: room for any batch of these sizes, holding an empty one until refilled.

        A graph captured with them replays right after any refill: with more segments, fewer, one or none.

        Args:
            max_tokens: most rows of x of any batch.
            max_loras: most adapter slots of any batch.
            chunk_size: most rows of a segment; None as for `from_sequences`, for a batch of these sizes.
            device: where the tensors go; None for the current GPU, else the CPU.

        Raises:
            TypeError: a size is not a whole number.
            ValueError: a size is out of range.
        """
        check_chunk_size(chunk_size)
        for name, value in (("max_tokens", max_tokens), ("max_loras", max_loras)):
            plain_arguments.whole(name, value, 0, _MOST_TOKENS)
        place = Adapters.read([], []).device(device)
        if chunk_size is None:
            chunk_size = chunk_sizes.choose(max_tokens, max_loras, place)
        num_segments = segment_capacity(max_tokens, max_loras, chunk_size)
        count = batch_buffer.length(max_loras, num_segments, max_tokens)
        buffer = torch.zeros(count, dtype=torch.int32, device=place)
        segments = cls._of_buffer(buffer, max_loras, chunk_size, num_segments, max_tokens)
        segments._refillable = True
        return segments

    def update_from_sequences(
        self,
        seq_lens: Integers,
        adapter_ids: Integers | Sequence[int | None],
        lora_ranks: Integers,
        scalings: Floats,
    ) -> None:
        """Refills allocated Segments in place.

        The host does not wait, and may refill again before the copy is done. The copy is queued on the current stream:
        work on other streams that reads these Segments must be ordered by the caller. Slots past the given ones get
        rank 0. When something is raised, nothing has been changed.

        Args:
            seq_lens, adapter_ids, lora_ranks, scalings: as for `from_sequences`.

        Raises:
            TypeError, ValueError: as for `from_sequences`; or the batch is larger than what was allocated; or these
                Segments were not allocated.
        """
        adapters = Adapters.read(lora_ranks, scalings)
        self._refill("seq_lens", _read_sequences(seq_lens, adapter_ids, adapters.num_loras), adapters)

    def update_from_tokens(
        self, adapter_ids: Integers | Sequence[int | None], lora_ranks: Integers, scalings: Floats
    ) -> None:
        """Refills allocated Segments in place, with the promises of `update_from_sequences`.

        With all three arguments on the GPU this may itself be captured into a CUDA graph.

        Args:
            adapter_ids, lora_ranks, scalings: as for `from_tokens`.

        Raises:
            TypeError, ValueError: as for `update_from_sequences`.
        """
        adapters = Adapters.read(lora_ranks, scalings)
        if on_gpu(adapter_ids):
            self._regroup(read_gpu_integers("adapter_ids", adapter_ids), adapters)
        else:
            self._refill("adapter_ids", _read_tokens(adapter_ids, adapters.num_loras), adapters)

    def with_adapters(self, lora_ranks: torch.Tensor, scalings: torch.Tensor) -> Segments:
        """The same rows in the same segments, for a layer in which the slots have other ranks and scalings.

        The rest is shared: refilling these Segments refills those, which cannot be refilled themselves. Rows of a slot
        that has rank 0 here are in none of these segments, nor of those; where it has rank 0 there, kernels skip them.

        Args:
            lora_ranks: int32 [num_loras], 0 … 256, on the device of these Segments; used as it is, never looked at.
            scalings: float32 [num_loras], likewise.

        Raises:
            TypeError, ValueError: a tensor has another dtype, shape or device, or is not contiguous.
        """
        for name, given, own in (("lora_ranks", lora_ranks, self.lora_ranks), ("scalings", scalings, self.scalings)):
            if not isinstance(given, torch.Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(given).__name__}")
            if given.dtype != own.dtype:
                raise TypeError(f"{name}: expected {own.dtype}, got {given.dtype}")
            if given.shape != own.shape or given.device != own.device or not given.is_contiguous():
                raise ValueError(
                    f"{name}: expected a contiguous tensor of shape {list(own.shape)} on {own.device}, "
                    f"got shape {list(given.shape)}, strides {list(given.stride())}, on {given.device}"
                )
        return Segments(
            self.permutation,
            self.seg_indptr,
            self.weight_indices,
            lora_ranks,
            scalings,
            self.chunk_size,
            self.num_segments,
            self.num_tokens,
            least_tokens=0 if self._refillable else self.least_tokens,
            active_adapters=self.active_adapters,
        )

    def check(self, num_tokens: int | None = None, max_rank: int = rules.MAX_RANK) -> None:
        """Look whether the tensors hold a batch, which launches never do: to find out what is wrong with one.

        Waits for the GPU. `csgmv.debug` does this before every launch.

        Args:
            num_tokens: rows of x; None for as many as these Segments say.
            max_rank: of lora_a and lora_b.

        Raises:
            TypeError: a size is no whole number, or a tensor is none or has another dtype.
            ValueError: a tensor has another shape or device; or the first index and value that no batch has: a rank out
                of range, a scaling that is not finite, segments that are too long, overlap, are no neighbours of their
                adapter's others or are empty before the tail, a slot that there is not, a row that x has not or that
                comes twice. Or the stream is being captured.
        """
        rows = self.num_tokens if num_tokens is None else plain_arguments.whole("num_tokens", num_tokens, 0)
        plain_arguments.whole("max_rank", max_rank, 1, rules.MAX_RANK)
        batch_faults.check_layout(self)
        batch_faults.check_contents(self, rows, max_rank)

    @classmethod
    def _from_runs(cls, runs: _Runs, adapters: Adapters, chunk_size: int | None, device: torch.device) -> Segments:
        check_chunk_size(chunk_size)
        num_tokens = sum(runs[0])
        if num_tokens > _MOST_TOKENS:
            raise ValueError(f"seq_lens: expected a sum of at most {_MOST_TOKENS}, got {num_tokens}")
        gathered = gather_runs(*runs, num_tokens, adapters.host_ranks())
        if chunk_size is None:
            chunk_size = chunk_sizes.choose(gathered.rows, gathered.active_adapters(), device)
        grouping = gathered.cut(chunk_size)
        num_loras, num_segments = adapters.num_loras, grouping.num_segments
        _refuse_capture(device)
        host = batch_buffer.staged(adapters, grouping, num_loras, num_segments, device)
        buffer = host.to(device, non_blocking=True)
        segments = cls._of_buffer(buffer, num_loras, chunk_size, num_segments, num_tokens)
        segments._take_from_gpu(adapters)
        segments.least_tokens, segments.largest_rank = num_tokens, adapters.largest_rank()
        segments.active_adapters = gathered.active_adapters()
        return segments

    @classmethod
    def _of_buffer(
        cls,
        buffer: torch.Tensor,
        num_loras: int,
        chunk_size: int,
        num_segments: int,
        num_tokens: int,
        least_tokens: int = 0,
        largest_rank: int = 0,
    ) -> Segments:
        """Segments whose tensors are parts of this buffer."""
        parts = batch_buffer.parts(buffer, num_loras, num_segments)
        return cls(*parts, chunk_size, num_segments, num_tokens, least_tokens, largest_rank, _buffer=buffer)

    def _refill(self, name: str, runs: _Runs, adapters: Adapters) -> None:
        """The refill by way of the host; `name` is the argument that says how many tokens there are."""
        num_tokens = sum(runs[0])
        buffer = self._room(name, num_tokens, adapters)
        grouping = gather_runs(*runs, num_tokens, adapters.host_ranks()).cut(self.chunk_size, self.num_segments)
        self._upload(buffer, adapters, grouping, num_tokens)

    def _regroup(self, ids: torch.Tensor, adapters: Adapters) -> None:
        """The refill that never leaves the device of ids."""
        buffer = self._room("adapter_ids", ids.numel(), adapters, ids)
        self._upload(buffer, adapters, None, ids.numel())
        grouping = group_tokens(ids, self.lora_ranks, self.chunk_size, self.num_segments)
        self.seg_indptr.copy_(grouping.seg_indptr)
        self.weight_indices.copy_(grouping.weight_indices)
        self.permutation[: ids.numel()].copy_(grouping.permutation)

    def _room(self, name: str, num_tokens: int, adapters: Adapters, *tensors: torch.Tensor) -> torch.Tensor:
        """The buffer, if a batch of this size fits into it and is on its device."""
        if self._buffer is None or not self._refillable:
            raise ValueError("segments: expected ones made by Segments.allocate, only those are refilled; got others")
        if num_tokens > self.num_tokens:
            most = self.num_tokens
            raise ValueError(f"{name}: expected a batch of at most max_tokens = {most} tokens, got {num_tokens}")
        if adapters.num_loras > self.lora_ranks.numel():
            most = self.lora_ranks.numel()
            raise ValueError(f"lora_ranks: expected at most max_loras = {most} slots, got {adapters.num_loras}")
        adapters.device(self._buffer.device, *tensors)
        return self._buffer

    def _upload(self, buffer: torch.Tensor, adapters: Adapters, grouping: HostGrouping | None, num_tokens: int) -> None:
        """Writes all that is on the host in one copy, and then what is on the GPU."""
        if grouping is not None or not (on_gpu(adapters.ranks) and on_gpu(adapters.scalings)):
            _refuse_capture(buffer.device)
            num_loras = self.lora_ranks.numel()
            host = batch_buffer.staged(adapters, grouping, num_loras, self.num_segments, buffer.device)
            buffer[: host.numel()].copy_(host, non_blocking=True)
        self._take_from_gpu(adapters)
        self.least_tokens, self.largest_rank = num_tokens, adapters.largest_rank()

    def _take_from_gpu(self, adapters: Adapters) -> None:
        """Ranks and scalings that are there."""
        for view, values in ((self.lora_ranks, adapters.ranks), (self.scalings, adapters.scalings)):
            if isinstance(values, torch.Tensor):
                view[: values.numel()].copy_(values)
                view[values.numel() :].zero_()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle has: not `_kind`, whose pointers are those of these very tensors."""
        return {**vars(self), "_kind": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The tensors are parts of the buffer again, which a pickle keeps apart from them."""
        vars(self).update(state)
        if self._buffer is not None:
            parts = batch_buffer.parts(self._buffer, self.lora_ranks.numel(), self.num_segments)
            self.permutation, self.seg_indptr, self.weight_indices, self.lora_ranks, self.scalings = parts

    def __repr__(self) -> str:
        return (
            f"Segments({self.num_tokens} tokens, {self.num_segments} segments of up to {self.chunk_size} rows, "
            f"{self.lora_ranks.shape[0]} adapter slots, {self.permutation.device}"
            f"{'; refillable, these are capacities' if self._refillable else ''})"
        )


def _refuse_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "a copy from the host cannot be captured into a CUDA graph: refill before replaying, "
            "or give adapter_ids, lora_ranks and scalings as tensors on the GPU"
        )


def check_chunk_size(chunk_size: int | None) -> None:
    """Raises TypeError or ValueError, naming the argument, where Segments could not have it."""
    if chunk_size is not None:
        plain_arguments.whole("chunk_size", chunk_size, 1, _MOST_TOKENS)


def _read_sequences(seq_lens: object, adapter_ids: object, num_loras: int) -> _Runs:
    lens = read_integers("seq_lens", seq_lens)
    ids = read_integers("adapter_ids", adapter_ids, least=-1, most=num_loras - 1)
    if len(lens) != len(ids):
        raise ValueError(f"adapter_ids: expected one per sequence ({len(lens)}), got {len(ids)}")
    return lens, ids


def _read_tokens(adapter_ids: object, num_loras: int) -> _Runs:
    """Tokens on the host as runs of equal ids: a batch has few of them, and then they are sequences."""
    return read_runs("adapter_ids", adapter_ids, least=-1, most=num_loras - 1)
