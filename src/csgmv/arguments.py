"""Checks of what users pass to the operations: host-side only, each error says what was expected and what came.

Arguments are checked when an operation first meets their kind, and a kind is remembered under a key: whatever a check
looks at must be in that key, or be looked at again on each call. Each wrapper makes its own key, for speed; the part of
it that is about Segments is `batch_kind`.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch

from csgmv import batch_faults, dtypes, launch, plain_arguments, rules, slices
from csgmv.segments import Segments

# What making a key of the wrong arguments may raise; the checks, which come next, have more to say.
MISFITS = (AttributeError, RuntimeError, TypeError, ValueError)
# The same rule in a third of the time, for the sizes that a server comes by.
_segment_bucket = functools.lru_cache(maxsize=4096)(rules.segment_bucket)


def check_tensor(name: str, tensor: Any) -> None:
    """A tensor with strides."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a strided tensor, got one of layout {tensor.layout}")


def _check_rows(name: str, tensor: Any) -> None:
    """A matrix of a supported dtype, on a device that can run the kernels, with contiguous rows."""
    check_tensor(name, tensor)
    if tensor.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got shape {list(tensor.shape)}")
    if tensor.dtype not in dtypes.NAMES:
        *others, last = dtypes.BY_NAME
        raise TypeError(f"{name}: expected {', '.join(others)} or {last}, got {tensor.dtype}")
    if launch.INTERPRETED and tensor.dtype == torch.bfloat16:
        raise TypeError(f"{name}: expected float16 or float32, since Triton's interpreter computes bfloat16 wrongly")
    if not (tensor.is_cuda or (launch.on_cpu and tensor.device.type == "cpu")):
        raise ValueError(
            f"{name}: expected a tensor on a GPU, got one on {tensor.device}"
            " (set TRITON_INTERPRET=1 before the first import to run on the CPU)"
        )
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{name}: expected contiguous rows (stride 1), got strides {list(tensor.stride())}")


def _check_like(name: str, tensor: Any, like: torch.Tensor, *others: torch.dtype, what: str = "the input") -> None:
    """A tensor of `like`'s device, and of its dtype or one of the others."""
    check_tensor(name, tensor)
    if tensor.dtype not in (like.dtype, *others):
        wanted = " or ".join((f"{like.dtype} like {what}", *map(str, others)))
        raise TypeError(f"{name}: expected {wanted}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device} like the input, got one on {tensor.device}")


def _check_weights(name: str, weights: Any, like: torch.Tensor, *others: torch.dtype) -> None:
    _check_like(name, weights, like, *others)
    if weights.dim() != 3:
        raise ValueError(f"{name}: expected 3 dimensions, got shape {list(weights.shape)}")
    if not weights.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(weights.stride())}")


def _check_rank(name: str, max_rank: int) -> None:
    if not 1 <= max_rank <= rules.MAX_RANK:
        raise ValueError(f"{name}: expected a max_rank of 1 to {rules.MAX_RANK}, got {max_rank}")


def check_dense(
    name: str, tensor: Any, shape: tuple[int, ...], like: torch.Tensor | None = None, *others: torch.dtype
) -> None:
    """A contiguous matrix of this very shape, and of `like`'s dtype or one of the others."""
    if like is not None:
        _check_like(name, tensor, like, *others)
    _check_rows(name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(tensor.stride())}")


def check_count(name: str, sliced: Any, num_slices: int, called: str) -> None:
    """As many tensors as there are slices, where slices are apart; `called` says what they are counted by."""
    if slices.apart(sliced):
        if len(sliced) != num_slices:
            raise ValueError(f"{name}: expected a tensor for each slice ({num_slices} by {called}), got {len(sliced)}")
        for slice_id, each in enumerate(sliced):
            check_tensor(f"{name}[{slice_id}]", each)


def _check_alike(name: str, shapes: Sequence[tuple[int, ...]], wanted: str) -> None:
    for slice_id, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"{name}[{slice_id}]: expected {wanted} {list(shapes[0])} as {name}[0] has, got {list(shape)}"
            )


def check_lora_a(lora_a: Any, x: Any, num_slices: int) -> int:
    """Checks x and lora_a; returns max_rank."""
    _check_rows("x", x)
    if not slices.apart(lora_a):
        _check_weights("lora_a", lora_a, x)
    plain_arguments.whole("num_slices", num_slices, 1, rules.MAX_SLICES)
    if not slices.apart(lora_a):
        return _check_lora_a("lora_a", lora_a, x, num_slices)
    check_count("lora_a", lora_a, num_slices, "num_slices")
    for slice_id, each in enumerate(lora_a):
        _check_weights(f"lora_a[{slice_id}]", each, x)
    ranks = [_check_lora_a(f"lora_a[{slice_id}]", each, x, 1) for slice_id, each in enumerate(lora_a)]
    _check_alike("lora_a", [tuple(each.shape) for each in lora_a], "shape")
    return ranks[0]


def _check_lora_a(name: str, lora_a: torch.Tensor, x: torch.Tensor, num_slices: int) -> int:
    _, rows, input_dim = lora_a.shape
    if input_dim != x.shape[1] or input_dim == 0:
        raise ValueError(
            f"{name}: expected input_dim {x.shape[1]} as x has (and not 0), got shape {list(lora_a.shape)}"
        )
    if rows % num_slices:
        raise ValueError(f"{name}: expected num_slices · max_rank rows with num_slices {num_slices}, got {rows}")
    _check_rank(name, rows // num_slices)
    return int(rows // num_slices)


def check_lora_b(lora_b: Any, h: Any, slice_offsets: tuple[int, ...], *, rounded: bool = False) -> int:
    """Checks h and lora_b, and that the slices are those of lora_b; returns max_rank.

    With `rounded`, an h in float32 may go with any lora_b, to whose dtype the kernel rounds it.
    """
    _check_rows("h", h)
    others = dtypes.NAMES if rounded and h.dtype == torch.float32 else ()
    if not slices.apart(lora_b):
        _check_weights("lora_b", lora_b, h, *others)
        if slice_offsets[-1] != lora_b.shape[1]:
            raise ValueError(
                f"slice_offsets: expected to rise from 0 to output_dim {lora_b.shape[1]}, got {list(slice_offsets)}"
            )
        _check_rank("lora_b", lora_b.shape[2])
        return int(lora_b.shape[2])
    check_count("lora_b", lora_b, len(slice_offsets) - 1, "slice_offsets")
    for slice_id, (each, (start, end)) in enumerate(zip(lora_b, itertools.pairwise(slice_offsets))):
        name = f"lora_b[{slice_id}]"
        _check_weights(name, each, h, *others)
        if each.shape[1] != end - start:
            raise ValueError(f"{name}: expected {end - start} rows, by slice_offsets, got shape {list(each.shape)}")
        _check_rank(name, each.shape[2])
        _check_like(name, each, lora_b[0], what="lora_b[0]")
    _check_alike("lora_b", [(each.shape[0], each.shape[2]) for each in lora_b], "num_loras and max_rank")
    return int(lora_b[0].shape[2])


def check_h(
    name: str, h: Any, rows: int, max_rank: int, num_slices: int, like: torch.Tensor | None, *others: torch.dtype
) -> None:
    """Of all slices, or a tensor for each; for dtype and device see `check_dense`."""
    if not slices.apart(h):
        check_dense(name, h, (rows, num_slices * max_rank), like, *others)
        return
    for slice_id, each in enumerate(h):
        check_dense(f"{name}[{slice_id}]", each, (rows, max_rank), like, *others)
        _check_like(f"{name}[{slice_id}]", each, h[0], what=f"{name}[0]")


def check_flags(*, padded: Any, batch_invariant: Any) -> None:
    """Each is True or False, or equal to it."""
    plain_arguments.flag("padded", padded)
    plain_arguments.flag("batch_invariant", batch_invariant)


def check_slice_offsets(slice_offsets: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """0 = o0 <= o1 <= …, one to four slices; returns the offsets as plain integers, and the slices' widths."""
    if isinstance(slice_offsets, torch.Tensor):
        raise TypeError("slice_offsets: expected a sequence of host integers, got a torch.Tensor")
    offsets = check_integers(slice_offsets)
    widths = tuple(end - start for start, end in itertools.pairwise(offsets))
    if not 1 <= len(widths) <= rules.MAX_SLICES:
        raise ValueError(f"slice_offsets: expected 2 to {rules.MAX_SLICES + 1} offsets, got {list(offsets)}")
    if offsets[0] != 0 or min(widths) < 0:
        raise ValueError(f"slice_offsets: expected to rise from 0 to output_dim, got {list(offsets)}")
    return offsets, widths


def check_integers(slice_offsets: Any) -> tuple[int, ...]:
    """Returns plain integers. Of offsets equal to ones that have been checked all is known but this: 8.0 equals 8."""
    try:
        return tuple(map(operator.index, slice_offsets))
    except TypeError:
        raise TypeError(f"slice_offsets: expected a sequence of host integers, got {slice_offsets!r}") from None


def check_base_output(base_output: Any, rows: int, lora_b: torch.Tensor, slice_offsets: tuple[int, ...]) -> None:
    """Of lora_b's dtype, with as many rows as the input has and at least the slices' columns."""
    if not slices.apart(base_output):
        _check_base_output("base_output", base_output, rows, lora_b, slice_offsets[-1])
        return
    check_count("base_output", base_output, len(slice_offsets) - 1, "slice_offsets")
    for slice_id, (each, (start, end)) in enumerate(zip(base_output, itertools.pairwise(slice_offsets))):
        _check_base_output(f"base_output[{slice_id}]", each, rows, lora_b, end - start)


def _check_base_output(name: str, base_output: Any, rows: int, lora_b: torch.Tensor, output_dim: int) -> None:
    _check_like(name, base_output, lora_b, what="lora_b")
    _check_rows(name, base_output)
    if base_output.shape[0] != rows or base_output.shape[1] < output_dim:
        raise ValueError(f"{name}: expected [{rows}, at least {output_dim}], got shape {list(base_output.shape)}")
    if base_output.shape[0] > 1 and base_output.stride(0) < output_dim:
        raise ValueError(
            f"{name}: expected rows that do not overlap (a stride of {output_dim} or more), "
            f"got strides {list(base_output.stride())}"
        )


def check_segments(segments: Any, like: torch.Tensor, weights: torch.Tensor, max_rank: int) -> None:
    """Segments on the input's device, whose rows the input has and whose slots and ranks the weights have."""
    if not isinstance(segments, Segments):
        raise TypeError(f"segments: expected csgmv.Segments, got {type(segments).__name__}")
    batch_faults.check_layout(segments)
    if segments.permutation.device != like.device:
        raise ValueError(f"segments: expected them on {like.device}, got {segments.permutation.device}")
    if segments.least_tokens > like.shape[0]:
        raise ValueError(f"segments: expected those of at most {like.shape[0]} tokens, got {segments.least_tokens}")
    if segments.lora_ranks.numel() > weights.shape[0]:
        raise ValueError(
            f"segments: expected at most {weights.shape[0]} adapter slots, as the weights have, "
            f"got {segments.lora_ranks.numel()}"
        )
    if segments.largest_rank > max_rank:
        raise ValueError(f"segments: expected ranks of at most max_rank {max_rank}, got {segments.largest_rank}")
    if launch.debugging and not (like.is_cuda and torch.cuda.is_current_stream_capturing()):
        batch_faults.check_contents(segments, like.shape[0], max_rank)


def batch_kind(segments: Segments) -> tuple[tuple[Any, ...], tuple[int, int, int, int, int]]:
    """What checks, config and binaries depend on of a batch, and pointers to its tensors in the kernels' order.

    Left out, so that batches of any size share a plan: num_segments but for its bucket, num_tokens, the length of
    `permutation`; and least_tokens and largest_rank, which wrappers compare on each call. What is not left out stays as
    it is as long as the Segments do, so it is read once.
    """
    kind = segments._kind
    if kind is None:
        kind = segments._kind = _read_batch_kind(segments)
    return kind


def _read_batch_kind(segments: Segments) -> tuple[tuple[Any, ...], tuple[int, int, int, int, int]]:
    permutation, indptr, indices = segments.permutation, segments.seg_indptr, segments.weight_indices
    ranks, scalings = segments.lora_ranks, segments.scalings
    pointers = (
        permutation.data_ptr(),
        indptr.data_ptr(),
        indices.data_ptr(),
        ranks.data_ptr(),
        scalings.data_ptr(),
    )
    first, second, third, fourth, fifth = pointers
    unaligned: Any = (first | second | third | fourth | fifth) & 15
    if unaligned:
        unaligned = tuple(pointer & 15 for pointer in pointers)
    kind = (
        type(segments),
        segments.chunk_size,
        _segment_bucket(segments.num_segments),
        launch.device_of(permutation),
        ranks.numel(),
        permutation.dtype,
        indptr.dtype,
        indices.dtype,
        ranks.dtype,
        scalings.dtype,
        unaligned,
    )
    return kind, pointers
