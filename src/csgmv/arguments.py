"""Checks of what users pass to the operations: host-side only, each error says what was expected and what came."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from csgmv import launch, rules
from csgmv.segments import Segments

C = TypeVar("C")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _check_rows(name: str, tensor: Any) -> None:
    """A matrix of a supported dtype, on a device that can run the kernels, with contiguous rows."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got shape {list(tensor.shape)}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16 or float32, got {tensor.dtype}")
    if not (tensor.is_cuda or launch.INTERPRETED):
        raise ValueError(
            f"{name}: expected a tensor on a GPU, got one on {tensor.device}"
            " (set TRITON_INTERPRET=1 before the first import to run on the CPU)"
        )
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{name}: expected contiguous rows (stride 1), got strides {list(tensor.stride())}")


def _check_like(name: str, tensor: Any, like: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} like the input, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device} like the input, got one on {tensor.device}")


def _check_weights(name: str, weights: Any, like: torch.Tensor) -> None:
    _check_like(name, weights, like)
    if weights.dim() != 3:
        raise ValueError(f"{name}: expected 3 dimensions, got shape {list(weights.shape)}")
    if not weights.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(weights.stride())}")


def _check_rank(name: str, max_rank: int) -> None:
    if not 1 <= max_rank <= rules.MAX_RANK:
        raise ValueError(f"{name}: expected a max_rank of 1 to {rules.MAX_RANK}, got {max_rank}")


def check_dense(name: str, tensor: Any, shape: tuple[int, ...], like: torch.Tensor | None = None) -> None:
    """A contiguous matrix of this very shape."""
    if like is not None:
        _check_like(name, tensor, like)
    _check_rows(name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(tensor.stride())}")


def check_lora_a(lora_a: Any, x: Any, num_slices: int) -> int:
    """Checks x and lora_a; returns max_rank."""
    _check_rows("x", x)
    _check_weights("lora_a", lora_a, x)
    if not 1 <= num_slices <= rules.MAX_SLICES:
        raise ValueError(f"num_slices: expected 1 to {rules.MAX_SLICES}, got {num_slices}")
    _, rows, input_dim = lora_a.shape
    if input_dim != x.shape[1] or input_dim == 0:
        raise ValueError(
            f"lora_a: expected input_dim {x.shape[1]} as x has (and not 0), got shape {list(lora_a.shape)}"
        )
    if rows % num_slices:
        raise ValueError(f"lora_a: expected num_slices · max_rank rows with num_slices {num_slices}, got {rows}")
    _check_rank("lora_a", rows // num_slices)
    return int(rows // num_slices)


def check_lora_b(lora_b: Any, h: Any, slice_offsets: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Checks h, lora_b and slice_offsets; returns max_rank and the slices' widths."""
    _check_rows("h", h)
    _check_weights("lora_b", lora_b, h)
    widths = check_slice_offsets(slice_offsets, lora_b.shape[1])
    _check_rank("lora_b", lora_b.shape[2])
    return lora_b.shape[2], widths


def check_slice_offsets(slice_offsets: Sequence[int], output_dim: int) -> tuple[int, ...]:
    """0 = o0 <= o1 <= ... = output_dim, one to four slices; returns the slices' widths."""
    if isinstance(slice_offsets, torch.Tensor):
        raise TypeError("slice_offsets: expected a sequence of host integers, got a torch.Tensor")
    widths = tuple(end - start for start, end in itertools.pairwise(slice_offsets))
    if not 1 <= len(widths) <= rules.MAX_SLICES:
        raise ValueError(f"slice_offsets: expected 2 to {rules.MAX_SLICES + 1} offsets, got {list(slice_offsets)}")
    if slice_offsets[0] != 0 or slice_offsets[-1] != output_dim or min(widths) < 0:
        raise ValueError(
            f"slice_offsets: expected to rise from 0 to output_dim {output_dim}, got {list(slice_offsets)}"
        )
    return widths


def check_base_output(base_output: Any, like: torch.Tensor, output_dim: int) -> None:
    """As many rows as the input has, at least output_dim columns."""
    _check_like("base_output", base_output, like)
    _check_rows("base_output", base_output)
    if base_output.shape[0] != like.shape[0] or base_output.shape[1] < output_dim:
        raise ValueError(
            f"base_output: expected [{like.shape[0]}, at least {output_dim}], got shape {list(base_output.shape)}"
        )


def check_segments(segments: Any, like: torch.Tensor) -> None:
    """Segments on the input's device."""
    if not isinstance(segments, Segments):
        raise TypeError(f"segments: expected csgmv.Segments, got {type(segments).__name__}")
    if segments.permutation.device != like.device:
        raise ValueError(f"segments: expected them on {like.device}, got {segments.permutation.device}")


def check_config(config: Any, expected: type[C]) -> C:
    """A config of the operation's own class."""
    if not isinstance(config, expected):
        raise TypeError(f"config: expected {expected.__name__} or None, got {type(config).__name__}")
    return config
