"""Checks of what vLLM's callers hand to its two operators, before anything is written.

Tensors are looked at when a call first meets their kind: `remembered` makes a key of all that the checks of them ask.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from csgmv import arguments, launch, plain_arguments


def batch_is_idle(no_lora_flag_cpu: torch.Tensor | bool) -> bool:
    """Whether no row has an adapter; raises unless that is said on the host."""
    given: Any = no_lora_flag_cpu
    if isinstance(given, torch.Tensor):
        if given.dtype != torch.bool or given.numel() != 1 or given.device.type != "cpu":
            raise ValueError(
                f"no_lora_flag_cpu: expected one torch.bool on the CPU, "
                f"got {given.dtype} of shape {list(given.shape)} on {given.device}"
            )
        return bool(given)
    return plain_arguments.flag("no_lora_flag_cpu", given)


def counted(num_active_loras: torch.Tensor | int) -> int:
    """How many groups of rows there may be; raises unless that is a number on the host."""
    given: Any = num_active_loras
    if isinstance(given, torch.Tensor):
        if given.is_floating_point() or given.numel() != 1 or given.device.type != "cpu":
            raise ValueError(
                f"num_active_loras: expected one whole number on the CPU, "
                f"got {given.dtype} of shape {list(given.shape)} on {given.device}"
            )
        given = given.item()
    return plain_arguments.whole("num_active_loras", given, 0)


def check_scaling(scaling: float) -> None:
    """A finite number."""
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)):
        raise TypeError(f"scaling: expected a number, got {scaling!r}")
    if not math.isfinite(scaling):
        raise ValueError(f"scaling: expected a finite number, got {scaling!r}")


def remembered(
    check: Callable[[torch.Tensor, Sequence[torch.Tensor], torch.Tensor, int], None],
    inputs: torch.Tensor,
    weights: Sequence[torch.Tensor],
    output: torch.Tensor,
    offset: int,
) -> None:
    """Check the tensors, unless ones of their kind have passed before."""
    misfit = known = None
    try:
        rows = output.shape[-2] - inputs.shape[-2]
        kinds = [(each.dtype, each.shape, each.stride(), launch.device_of(each)) for each in weights]
        key = check, rows, inputs.shape[-2] > 1, _kind(inputs), _kind(output), *kinds, offset
        known = launch.plans.get(key)
    except (*arguments.MISFITS, IndexError) as error:
        misfit = error
    if known is None:
        check(inputs, weights, output, offset)
        if misfit is not None:
            raise misfit
        launch.remember(key, True)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    """All but the number of rows."""
    shape = tensor.shape
    return tensor.dtype, launch.device_of(tensor), (*shape[:-2], shape[-1]), tensor.stride(), tensor.is_contiguous()


def matrices(weights: torch.Tensor) -> torch.Tensor:
    """A slice's weights without vLLM's second dimension, which is 1."""
    return weights.squeeze(1) if weights.dim() == 4 else weights


def check_shrink(inputs: torch.Tensor, weights: Sequence[torch.Tensor], output: torch.Tensor, offset: int) -> None:
    """What `vllm.lora_shrink` is given: inputs, lora_a_weights and output_tensor; `offset` is nothing there."""
    del offset
    _check_several("lora_a_weights", weights)
    x = inputs.contiguous() if isinstance(inputs, torch.Tensor) and inputs.layout == torch.strided else inputs
    for number, slice_weights in enumerate(weights):
        name = f"lora_a_weights[{number}]"
        with _called(x="inputs", lora_a=name):
            rank = arguments.check_lora_a(_check_matrices(name, slice_weights), x, 1)
        _check_slots(name, matrices(slice_weights), matrices(weights[0]), rows=True)
    _check_stack("output_tensor", output, (len(weights), x.shape[0], rank), "lora_a_weights")
    with _called(output="output_tensor"):
        arguments.check_dense("output", output.flatten(0, 1), (len(weights) * x.shape[0], rank), x, torch.float32)


def check_expand(inputs: torch.Tensor, weights: Sequence[torch.Tensor], output: torch.Tensor, offset: int) -> None:
    """What `vllm.lora_expand` is given: inputs, lora_b_weights, output_tensor and offset_start."""
    _check_several("lora_b_weights", weights)
    plain_arguments.whole("offset_start", offset, 0)
    first = _check_matrices("lora_b_weights[0]", weights[0])
    _check_stack("inputs", inputs, (len(weights), None, first.shape[-1]), "lora_b_weights")
    start = offset
    for number, slice_weights in enumerate(weights):
        name = f"lora_b_weights[{number}]"
        lora_b, h = _check_matrices(name, slice_weights), inputs[number].contiguous()
        width = lora_b.shape[-2]
        with _called(h="inputs", lora_b=name, base_output="output_tensor"):
            arguments.check_lora_b(lora_b, h, (0, width), rounded=True)
            _check_slots(name, lora_b, first, rows=False)
            if isinstance(output, torch.Tensor) and output.dim() == 2 and start + width <= output.shape[1]:
                arguments.check_base_output(output[:, start : start + width], h.shape[0], lora_b, width)
            else:
                arguments.check_base_output(output, h.shape[0], lora_b, start + width)
        start += width


@contextlib.contextmanager
def _called(**theirs: str) -> Iterator[None]:
    """Errors name the arguments as vLLM does."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name, colon, rest = str(error).partition(":")
        if name not in theirs:
            raise
        raise type(error)(f"{theirs[name]}{colon}{rest}") from None


def _check_several(name: str, weights: Any) -> None:
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"{name}: expected a list with a tensor of each slice, got {type(weights).__name__}")
    if not weights:
        raise ValueError(f"{name}: expected a tensor of each slice, got none")


def _check_matrices(name: str, weights: Any) -> torch.Tensor:
    if not isinstance(weights, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(weights).__name__}")
    if weights.dim() not in (3, 4) or (weights.dim() == 4 and weights.shape[1] != 1):
        raise ValueError(
            f"{name}: expected [num_loras, rows, columns] or [num_loras, 1, rows, columns], got shape "
            f"{list(weights.shape)}"
        )
    return matrices(weights)


def _check_slots(name: str, weights: torch.Tensor, first: torch.Tensor, *, rows: bool) -> None:
    """As many adapters, of the same rank, as the first slice has; the rank is A's rows and B's columns."""
    place = -2 if rows else -1
    if (weights.shape[0], weights.shape[place]) != (first.shape[0], first.shape[place]):
        raise ValueError(
            f"{name}: expected {first.shape[0]} adapters of rank {first.shape[place]} as the first slice has, "
            f"got shape {list(weights.shape)}"
        )


def _check_stack(name: str, h: Any, shape: tuple[int, int | None, int], of: str) -> None:
    if not isinstance(h, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(h).__name__}")
    slices, rows, rank = shape
    if h.dim() != 3 or h.shape[0] != slices or h.shape[2] != rank or rows not in (None, h.shape[1]):
        said = f"[{slices}, {'num_tokens' if rows is None else rows}, {rank}]"
        raise ValueError(f"{name}: expected {said} for {of}, got shape {list(h.shape)}")
    if rows is not None and not h.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(h.stride())}")
