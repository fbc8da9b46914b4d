"""sglang's LoRABatchInfo as csgmv's Segments: a batch of its csgmv backend, in version 0.5.11 or 0.5.23."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from csgmv import batch_faults, plain_arguments
from csgmv.segments import Segments


class BatchInfo(Protocol):
    """What is read of sglang's LoRABatchInfo; all tensors are on the GPU.

    Attributes:
        use_cuda_graph: the tensors are static, and weight_indices is as long as its capacity.
        num_segments: number of segments now.
        seg_indptr: int32 [num_segments + 1 or more], positions at which segments begin.
        weight_indices: int32 [num_segments or more], adapter slot of each segment.
        lora_ranks: int32 [num_loras].
        scalings: float32 [num_loras].
        max_len: most rows of a segment (the chunk size).
        permutation: int32 [num_tokens or more], position → row.
        expected_tokens: may be missing; a number in the batches of an lm_head, whose rows are not sorted by adapter.
    """

    use_cuda_graph: bool
    num_segments: int
    seg_indptr: torch.Tensor
    weight_indices: torch.Tensor
    lora_ranks: torch.Tensor
    scalings: torch.Tensor
    max_len: int
    permutation: torch.Tensor


_ATTRIBUTES = tuple(BatchInfo.__annotations__)


class _Batch(NamedTuple):
    """A LoRABatchInfo as it was when its Segments were made. While it is held here its id is nobody else's."""

    batch_info: BatchInfo
    segments: Segments


# id of a LoRABatchInfo → what was made of it: every layer of a model asks for the same one in turn.
_batches: dict[int, _Batch] = {}
_MOST_BATCHES = 8


def segments(batch_info: BatchInfo, rows: int | None = None) -> Segments:
    """A LoRABatchInfo as Segments that share its tensors; the same ones again until an attribute is replaced.

    Under use_cuda_graph the segments are counted by weight_indices.shape[0], so that a graph captured with them replays
    right with any number; those past num_segments must then be of length zero, as sglang 0.5.23 leaves them (0.5.11
    does not, unless `install` sees to it).

    Args:
        batch_info: sglang's LoRABatchInfo, or any object with the attributes of `BatchInfo`.
        rows: rows of x, if known. There cannot be more segments of any length, and a graph that was captured with x is
            replayed with no more: its grid need not have the capacity of the largest batch.

    Raises:
        TypeError: an attribute is missing, or of another type or dtype.
        ValueError: max_len is None or below 1, or there is no permutation, or a tensor is too short.
    """
    known = _batches.get(id(batch_info))
    if known is not None:
        count, made = _count(batch_info, rows), known.segments
        if (
            made.permutation is batch_info.permutation
            and made.seg_indptr is batch_info.seg_indptr
            and made.weight_indices is batch_info.weight_indices
            and made.lora_ranks is batch_info.lora_ranks
            and made.scalings is batch_info.scalings
            and made.chunk_size == batch_info.max_len
            and made.num_segments == count
        ):
            return made
    made = _read(batch_info, rows)
    if len(_batches) >= _MOST_BATCHES:
        _batches.clear()
    _batches[id(batch_info)] = _Batch(batch_info, made)
    return made


def _count(batch_info: BatchInfo, rows: int | None) -> int:
    """Segments that launches are to have programs for."""
    if not batch_info.use_cuda_graph:
        return batch_info.num_segments
    count = batch_info.weight_indices.shape[0]
    return count if rows is None else min(rows, count)


def _read(batch_info: BatchInfo, rows: int | None) -> Segments:
    if missing := [name for name in _ATTRIBUTES if not hasattr(batch_info, name)]:
        raise TypeError(
            f"batch_info: expected an object with the attributes {', '.join(_ATTRIBUTES)}, "
            f"got {type(batch_info).__name__} without {', '.join(missing)}"
        )
    permutation = batch_info.permutation
    if permutation is None:
        raise ValueError("batch_info.permutation: expected a tensor, got None (is this a batch of the csgmv backend?)")
    if batch_info.max_len is None:
        raise ValueError("batch_info.max_len: expected the chunk size, got None")
    plain_arguments.whole("batch_info.max_len", batch_info.max_len, 1)
    if rows is not None:
        plain_arguments.whole("rows", rows, 0)
    count = _count(batch_info, rows)
    made = Segments(
        permutation,
        batch_info.seg_indptr,
        batch_info.weight_indices,
        batch_info.lora_ranks,
        batch_info.scalings,
        batch_info.max_len,
        count,
        permutation.shape[0],
    )
    # Rows of an lm_head keep the order of their requests: an adapter may come again after another one, and each time
    # counts for `tiles.deal` as one adapter more.
    made.active_adapters = count if getattr(batch_info, "expected_tokens", None) is not None else 0
    batch_faults.check_layout(made, "batch_info")
    return made
