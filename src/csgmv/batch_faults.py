"""What is wrong with a batch: all that the kernels take for granted of one, looked up in its tensors.

A batch that csgmv made has no such fault. One that comes from elsewhere may, and no kernel would notice: it would leave
rows out, or read and write out of bounds. What the host knows is checked when an operation first meets a kind of batch;
what tensors hold may be on a GPU, which would have to be waited for, so that only `Segments.check` looks at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from csgmv import plain_arguments

if TYPE_CHECKING:
    from csgmv.segments import Segments

_DTYPES = {
    "permutation": torch.int32,
    "seg_indptr": torch.int32,
    "weight_indices": torch.int32,
    "lora_ranks": torch.int32,
    "scalings": torch.float32,
}


def check_layout(segments: Segments, called: str = "segments") -> None:
    """Raises TypeError or ValueError unless sizes, dtypes, shapes and devices are what `Segments` says; no wait."""
    for name, least in (("chunk_size", 1), ("num_segments", 0), ("num_tokens", 0), ("active_adapters", 0)):
        plain_arguments.whole(f"{called}.{name}", getattr(segments, name), least)
    _check_tensors(segments, called)
    count, loras = segments.num_segments, segments.lora_ranks.numel()
    for name, wanted in (("seg_indptr", count + 1), ("weight_indices", count), ("scalings", loras)):
        if (length := getattr(segments, name).numel()) < wanted:
            raise ValueError(f"{called}.{name}: expected {wanted} or more numbers, got {length}")


def _check_tensors(segments: Segments, called: str) -> None:
    for name, dtype in _DTYPES.items():
        tensor: Any = getattr(segments, name)
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{called}.{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype != dtype:
            raise TypeError(f"{called}.{name}: expected {dtype}, got {tensor.dtype}")
        if tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"{called}.{name}: expected one contiguous dimension, "
                f"got shape {list(tensor.shape)}, strides {list(tensor.stride())}"
            )
        if tensor.device != segments.permutation.device:
            raise ValueError(
                f"{called}.{name}: expected it on {segments.permutation.device} like the permutation, "
                f"got {tensor.device}"
            )


def check_contents(segments: Segments, num_tokens: int, max_rank: int) -> None:
    """Raises ValueError unless the numbers in the tensors are those of a batch; waits for the GPU.

    Args:
        segments: whose layout has been checked.
        num_tokens: rows of x.
        max_rank: of the weights.
    """
    if segments.permutation.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError("segments: cannot be looked at while a CUDA graph is being captured: check them before")
    permutation, indptr, slots, ranks, scalings = (tensor.cpu() for tensor in segments.tensors)
    count, loras = segments.num_segments, ranks.numel()
    _refuse("lora_ranks", ranks, (ranks < 0) | (ranks > max_rank), f"0 … {max_rank}")
    used = scalings[:loras]
    _refuse("scalings", used, ~used.isfinite() & (ranks > 0), "a finite number")
    bounds, slots = indptr[: count + 1], slots[:count]
    end = permutation.numel()
    _refuse("seg_indptr", bounds, (bounds < 0) | (bounds > end), f"a position in the permutation, 0 … {end}")
    lengths = bounds.diff()
    _check_lengths(segments, bounds, lengths)
    _refuse("weight_indices", slots, (slots < 0) | (slots >= loras), f"an adapter slot, 0 … {loras - 1}")
    _check_neighbours(slots[: int((lengths > 0).sum())].tolist(), segments.active_adapters)
    first, last = int(bounds[0]), int(bounds[-1])
    rows = permutation[first:last]
    _refuse("permutation", rows, (rows < 0) | (rows >= num_tokens), f"a row of x, 0 … {num_tokens - 1}", first)
    _check_once(rows, first)


def _refuse(name: str, values: torch.Tensor, wrong: torch.Tensor, wanted: str, first: int = 0) -> None:
    """Raises ValueError for the first value that is wrong; `first` is the index of the first value."""
    found = wrong.nonzero()
    if len(found):
        index = int(found[0])
        raise ValueError(f"segments.{name}[{first + index}]: expected {wanted}, got {values[index].item()}")


def _check_lengths(segments: Segments, bounds: torch.Tensor, lengths: torch.Tensor) -> None:
    """Segments begin one after the other, none is too long, and empty ones come last."""
    _refuse("seg_indptr", bounds[1:], lengths < 0, "no less than the one before it", first=1)
    most = min(segments.chunk_size, segments.num_tokens)
    why = f"chunk_size {segments.chunk_size}, num_tokens {segments.num_tokens}"
    if len(long := (lengths > most).nonzero()):
        segment = int(long[0])
        raise ValueError(
            f"segments.seg_indptr[{segment + 1}]: expected at most {most} rows in segment {segment} ({why}), "
            f"got {int(lengths[segment])}"
        )
    full = lengths > 0
    if len(empty := (~full).nonzero()) and bool(full[int(empty[0]) :].any()):
        segment = int(empty[0])
        raise ValueError(
            f"segments.seg_indptr[{segment + 1}]: expected empty segments at the tail only, got segment {segment} "
            f"without rows, before {int(full[segment:].sum())} with some"
        )


def _check_neighbours(slots: list[int], active_adapters: int) -> None:
    """Segments of one adapter follow one another, or each place where it has some is counted in active_adapters.

    `slots` are those of the segments that have rows.
    """
    last: dict[int, int] = {}
    again: list[int] = []
    for segment, slot in enumerate(slots):
        if last.get(slot, segment - 1) != segment - 1:
            again.append(segment)
            if not active_adapters:
                raise ValueError(
                    f"segments.weight_indices[{segment}]: expected segments of one adapter to be neighbours, "
                    f"got {slot} again, after segment {last[slot]}"
                )
        last[slot] = segment
    places = len(last) + len(again)
    if active_adapters and places > active_adapters:
        raise ValueError(f"segments.active_adapters: expected {places}, or 0 for unknown, got {active_adapters}")


def _check_once(rows: torch.Tensor, first: int) -> None:
    """No row stands at two positions: two programs would write it."""
    in_order, positions = rows.sort(stable=True)
    again = positions[1:][in_order.diff() == 0]
    if len(again):
        index = int(again.min())
        before = int((rows == rows[index]).nonzero()[0])
        raise ValueError(
            f"segments.permutation[{first + index}]: expected each row once, "
            f"got {int(rows[index])}, which permutation[{first + before}] is too"
        )
