"""Slices that are tensors of their own, not parts of one: q, k and v as a model's three layers give them.

Operations take either form of lora_a, lora_b, h and base_output. Kernels take up to four pointers for each of them;
where one tensor holds all slices, three are None, and the kernel is compiled without them.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar, Union

import torch
import triton
import triton.language as tl

from csgmv import rules
from csgmv.launch import device_of

Sliced = Union[torch.Tensor, tuple[torch.Tensor, ...]]
"""One tensor that holds all slices, or a tuple of as many tensors as there are slices."""

SomeSliced = TypeVar("SomeSliced", bound=Sliced)

_NO_OTHERS = (None,) * (rules.MAX_SLICES - 1)


@triton.jit
def of_slice(slice_id, of0, of1, of2, of3):
    """What belongs to this slice, or to each of these; pointers and numbers alike."""
    found = tl.where(slice_id == 1, of1, of0)
    found = tl.where(slice_id == 2, of2, found)
    return tl.where(slice_id == 3, of3, found)


@triton.jit
def of_columns(slice_id, of0, of1, of2, of3, APART_BY: tl.constexpr):
    """Pointers to these slices, of which the compiler could not see for itself that they are aligned."""
    return tl.multiple_of(of_slice(slice_id, of0, of1, of2, of3), (APART_BY, APART_BY))


def apart(sliced: object) -> bool:
    """Whether slices are tensors of their own."""
    return isinstance(sliced, tuple)


def parts(sliced: Sliced) -> tuple[torch.Tensor, ...]:
    """The tensors."""
    return sliced if isinstance(sliced, tuple) else (sliced,)


def apart_by(sliced: Sliced) -> int:
    """Where slices are apart, up to 16 bytes of which all of them begin at a multiple; else 0."""
    pointers = [part.data_ptr() for part in parts(sliced)]
    return math.gcd(16, *pointers) if len(pointers) > 1 else 0


def first(sliced: Any) -> Any:
    """The tensor, or that of the first slice."""
    return sliced[0] if isinstance(sliced, tuple) and sliced else sliced


def four(found: tuple[Any, ...]) -> tuple[Any, ...]:
    """A kernel's four arguments: one and three times None; or one for each slice, and then the first again, which no
    program reads.
    """
    if len(found) == 1:
        return found + _NO_OTHERS
    return found + found[:1] * (rules.MAX_SLICES - len(found))


def tensors(sliced: Sliced) -> tuple[torch.Tensor | None, ...]:
    """A kernel's, in its order."""
    return four(parts(sliced))


def alone(pointer: int) -> tuple[Any, ...]:
    """A kernel's pointers where one tensor holds all slices."""
    return (pointer, *_NO_OTHERS)


Kind = tuple[tuple[Any, ...], tuple[Any, ...]]
"""What checks and binaries depend on of an operand, and pointers in a kernel's order."""


class Stationary(tuple[torch.Tensor, ...]):
    """Weights, a tensor for each slice, that stay where and as large as they are: looked at once, not on each call."""

    kind: Kind

    def __new__(cls, weights: tuple[torch.Tensor, ...]) -> Stationary:
        """What they hold may change."""
        made = super().__new__(cls, weights)
        made.kind = kind_of_weights(weights)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is somewhere else."""
        return Stationary, (tuple(self),)


def kind_of_weights(weights: Any) -> Kind:
    """Of lora_a or lora_b; raises one of `arguments.MISFITS` for what is neither."""
    if not isinstance(weights, tuple):
        pointer = weights.data_ptr()
        kind = device_of(weights), weights.dtype, weights.shape, weights.stride(), pointer & 15
        return kind, (pointer, None, None, None)
    if type(weights) is Stationary:
        return weights.kind
    kinds: tuple[Any, ...] = ()
    pointers: tuple[int, ...] = ()
    for each in weights:
        pointer = each.data_ptr()
        pointers += (pointer,)
        kinds += device_of(each), each.dtype, each.shape, each.stride(), pointer & 15
    return (kinds,), four(pointers)  # told from a tensor's, also where there is one slice


def kind_of_rows(matrix: Any, rows: int) -> Kind:
    """Of h or base_output, of which the number of rows is no part, but how many it is off the batch's."""
    if not isinstance(matrix, tuple):
        pointer, (own, columns) = matrix.data_ptr(), matrix.shape
        kind = device_of(matrix), matrix.dtype, columns, matrix.stride(), own - rows, pointer & 15
        return kind, (pointer, None, None, None)
    kinds: tuple[Any, ...] = ()
    pointers: tuple[int, ...] = ()
    for each in matrix:
        pointer, (own, columns) = each.data_ptr(), each.shape
        pointers += (pointer,)
        kinds += device_of(each), each.dtype, columns, each.stride(), own - rows, pointer & 15
    return (kinds,), four(pointers)  # told from a tensor's, also where there is one slice
