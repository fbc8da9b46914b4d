"""sglang's two chunked SGMV functions, under their own names and argument meanings, on csgmv's kernels.

They take the place of those in sglang.srt.lora.triton_ops (0.5.11) and sglang.kernels.ops.lora.dense (0.5.23); sglang
need not be installed. `segments` gives a batch in csgmv's own terms, for `csgmv.add_lora`, which fuses the two.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, Union

import torch

from csgmv import arguments, dispatch
from csgmv.config import ShrinkConfig
from csgmv.expand import lora_expand
from csgmv.segments import Segments
from csgmv.shrink import lora_shrink

Offsets = Union[torch.Tensor, Sequence[int]]


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
    """

    use_cuda_graph: bool
    num_segments: int
    seg_indptr: torch.Tensor
    weight_indices: torch.Tensor
    lora_ranks: torch.Tensor
    scalings: torch.Tensor
    max_len: int
    permutation: torch.Tensor


class _Batch(NamedTuple):
    """A LoRABatchInfo as it was when its Segments were made. While it is held here its id is nobody else's."""

    batch_info: BatchInfo
    use_cuda_graph: bool
    num_segments: int
    segments: Segments


# id of a LoRABatchInfo → what was made of it: every layer of a model asks for the same one in turn.
_batches: dict[int, _Batch] = {}
_MOST_BATCHES = 8


def segments(batch_info: BatchInfo) -> Segments:
    """A LoRABatchInfo as Segments that share its tensors; the same ones again until an attribute is replaced.

    Under use_cuda_graph the segments are counted by weight_indices.shape[0], so that a graph captured with them replays
    right with any number; those past num_segments must then be of length zero, as sglang 0.5.23 leaves them (0.5.11
    does not). An adapter's segments must follow one another, as they do where rows are sorted by adapter.

    Args:
        batch_info: sglang's own object, or one with the attributes of `BatchInfo`.

    Raises:
        TypeError: a tensor is of another dtype.
        ValueError: max_len is None or below 1, or there is no permutation.
    """
    known = _batches.get(id(batch_info))
    if known is not None:
        _, use_cuda_graph, num_segments, made = known
        if (
            made.permutation is batch_info.permutation
            and made.seg_indptr is batch_info.seg_indptr
            and made.weight_indices is batch_info.weight_indices
            and made.lora_ranks is batch_info.lora_ranks
            and made.scalings is batch_info.scalings
            and made.chunk_size == batch_info.max_len
            and num_segments == batch_info.num_segments
            and use_cuda_graph == batch_info.use_cuda_graph
        ):
            return made
    made = _read(batch_info)
    if len(_batches) >= _MOST_BATCHES:
        _batches.clear()
    _batches[id(batch_info)] = _Batch(batch_info, batch_info.use_cuda_graph, batch_info.num_segments, made)
    return made


def _read(batch_info: BatchInfo) -> Segments:
    permutation, indptr, indices = batch_info.permutation, batch_info.seg_indptr, batch_info.weight_indices
    ranks, scalings, chunk_size = batch_info.lora_ranks, batch_info.scalings, batch_info.max_len
    if permutation is None:
        raise ValueError("batch_info.permutation: expected a tensor, got None (is this a batch of the csgmv backend?)")
    if not (
        permutation.dtype == indptr.dtype == indices.dtype == ranks.dtype == torch.int32
        and scalings.dtype == torch.float32
    ):
        given = {"permutation": permutation, "seg_indptr": indptr, "weight_indices": indices, "lora_ranks": ranks}
        faults = [f"{name} {tensor.dtype}" for name, tensor in given.items() if tensor.dtype != torch.int32]
        faults += [f"scalings {scalings.dtype}"] if scalings.dtype != torch.float32 else []
        raise TypeError(f"batch_info: expected int32 tensors and float32 scalings, got {', '.join(faults)}")
    if chunk_size is None or chunk_size < 1:
        raise ValueError(f"batch_info.max_len: expected the chunk size, 1 or more, got {chunk_size}")
    count = indices.shape[0] if batch_info.use_cuda_graph else batch_info.num_segments
    return Segments(permutation, indptr, indices, ranks, scalings, chunk_size, count, permutation.shape[0])


def chunked_sgmv_lora_shrink_forward(
    x: torch.Tensor,
    weights: torch.Tensor,
    batch_info: BatchInfo,
    num_slices: int,
    split_k: int | None = None,
) -> torch.Tensor:
    """x @ A.T of each row's adapter: `csgmv.lora_shrink` in the packed layout.

    Args:
        x: [num_tokens, input_dim], fp16, bf16 or fp32.
        weights: [num_loras, num_slices · max_rank, input_dim], x's dtype.
        batch_info: sglang's LoRABatchInfo, or any object with the attributes of `BatchInfo`.
        num_slices: 3 for q, k and v, 2 for gate and up, 1 else.
        split_k: parts to cut input_dim into, instead of what the tuned config says.

    Returns:
        [num_tokens, num_slices · max_rank] in x's dtype; columns past an adapter's own rank are uninitialised.

    Raises:
        TypeError, ValueError: as for `csgmv.lora_shrink`, or from `segments`, or split_k is out of range.
    """
    batch = segments(batch_info)
    config = None
    if split_k is not None:
        max_rank = arguments.check_lora_a(weights, x, num_slices)
        key = dispatch.shrink_key(weights.shape[2], max_rank, num_slices, x.dtype, batch)
        chosen = dispatch.choose(key, x.device).config
        assert isinstance(chosen, ShrinkConfig)
        config = replace(chosen, split_k=split_k)
    return lora_shrink(x, weights, batch, num_slices, config=config)


def chunked_sgmv_lora_expand_forward(
    x: torch.Tensor,
    weights: torch.Tensor,
    batch_info: BatchInfo,
    slice_offsets: Offsets,
    max_slice_size: int,  # noqa: ARG001  sglang's callers pass it
    base_output: torch.Tensor | None,
    slice_offsets_cpu: Offsets | None = None,
) -> torch.Tensor:
    """base_output += scaling · (x @ B.T) of each row's adapter, slice by slice: `csgmv.lora_expand`, packed layout.

    Args:
        x: [num_tokens, num_slices · max_rank], fp16, bf16 or fp32, as the shrink function returns it.
        weights: [num_loras, output_dim, max_rank], x's dtype.
        batch_info: sglang's LoRABatchInfo, or any object with the attributes of `BatchInfo`.
        slice_offsets: [num_slices + 1] integers, bounds of the slices in output_dim. If they are on the GPU only, the
            first call with this tensor waits for it; its values are then remembered until it is changed or dies.
        max_slice_size: width of the widest slice; not needed here.
        base_output: [num_tokens, output_dim or more], x's dtype, changed in place; None for zeros of output_dim
            columns.
        slice_offsets_cpu: the same on the host, which spares that wait.

    Returns:
        base_output, or the new tensor, [num_tokens, output_dim] in x's dtype.

    Raises:
        TypeError, ValueError: as for `csgmv.lora_expand`, or from `segments`; or the offsets would have to be read from
            the GPU while the stream is being captured.
    """
    offsets = _read_offsets(slice_offsets if slice_offsets_cpu is None else slice_offsets_cpu)
    if base_output is None:
        base_output = torch.zeros((x.shape[0], weights.shape[1]), device=x.device, dtype=x.dtype)
    return lora_expand(x, weights, segments(batch_info), offsets, base_output)


class _Remembered:
    """The values of one tensor, and how to tell that they are still its values."""

    __slots__ = ("data_ptr", "offsets", "tensor", "version")

    def __init__(self, tensor: torch.Tensor, offsets: tuple[int, ...]) -> None:
        key = id(tensor)
        self.tensor = weakref.ref(tensor, lambda _: _remembered.pop(key, None))
        self.version, self.data_ptr, self.offsets = _version(tensor), tensor.data_ptr(), offsets


_remembered: dict[int, _Remembered] = {}


def _version(tensor: torch.Tensor) -> int:
    """Grows with every change in place; inference tensors do not count theirs and are taken not to change."""
    return -1 if tensor.is_inference() else tensor._version


def _read_offsets(offsets: Offsets) -> tuple[int, ...]:
    if not isinstance(offsets, torch.Tensor):
        return tuple(offsets)
    known = _remembered.get(id(offsets))
    if (
        known is not None
        and known.tensor() is offsets
        and (known.version < 0 or known.version == offsets._version)
        and known.data_ptr == offsets.data_ptr()
    ):
        return known.offsets
    if offsets.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "slice_offsets: cannot be read from the GPU during a capture; "
            "call once with this tensor before capturing, or give slice_offsets_cpu"
        )
    values = tuple(offsets.tolist())
    _remembered[id(offsets)] = _Remembered(offsets, values)
    return values
