"""Checks of what vLLM's callers hand to its two operators, before anything is written.

Tensors are looked at when a call first meets their kind: `remembered` makes a key of all that the checks of them ask.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from csgmv import arguments, batch_faults, launch, plain_arguments
from csgmv.segments import Segments


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


def check_place(inputs: torch.Tensor, token_lora_mapping: torch.Tensor) -> None:
    """The batch's first tensor is where the inputs are; the others are compared with it."""
    if isinstance(token_lora_mapping, torch.Tensor) and token_lora_mapping.device != inputs.device:
        raise ValueError(
            f"token_lora_mapping: expected a tensor on {inputs.device} like inputs, got one on "
            f"{token_lora_mapping.device}"
        )


def check_contents(segments: Segments, tokens: int, rank: int) -> None:
    """Within `csgmv.debug`, what the batch's tensors hold; unless the stream is being captured."""
    if launch.debugging and not (segments.permutation.is_cuda and torch.cuda.is_current_stream_capturing()):
        batch_faults.check_contents(segments, tokens, rank)


def remembered(
    check: Callable[..., None],
    inputs: torch.Tensor,
    weights: Sequence[torch.Tensor],
    output: torch.Tensor,
    *more: int,
) -> None:
    """Check the tensors, unless ones of their kind have passed before."""
    misfit = known = None
    try:
        rows = output.shape[-2] - inputs.shape[-2]
        kinds = [(each.dtype, each.shape, each.stride(), launch.device_of(each)) for each in weights]
        key = check, rows, inputs.shape[-2] > 1, _kind(inputs), _kind(output), type(weights), *kinds, *more
        known = launch.plans.get(key)
    except (*arguments.MISFITS, IndexError) as error:
        misfit = error
    if known is None:
        check(inputs, weights, output, *more)
        if misfit is not None:
            raise misfit
        launch.remember(key, True)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    """All but the number of rows, which the stride from slice to slice has in it too."""
    shape, stride = tensor.shape, tensor.stride()
    return tensor.dtype, launch.device_of(tensor), (*shape[:-2], shape[-1]), stride[-2:], tensor.is_contiguous()


def matrices(weights: torch.Tensor) -> torch.Tensor:
    """A slice's weights without vLLM's second dimension, which is 1."""
    return weights.squeeze(1) if weights.dim() == 4 else weights


def check_shrink(inputs: torch.Tensor, weights: Sequence[torch.Tensor], output: torch.Tensor) -> None:
    """What `vllm.lora_shrink` is given: inputs, lora_a_weights and output_tensor."""
    arguments.check_tensor("inputs", inputs)
    first = _check_several("lora_a_weights", weights)
    x = inputs[:0].contiguous() if inputs.dim() == 2 else inputs  # columns may be strided: the call copies them
    for number, slice_weights in enumerate(weights):
        name = f"lora_a_weights[{number}]"
        with _called(x="inputs", lora_a=name):
            rank = arguments.check_lora_a(_check_matrices(name, slice_weights), x, 1)
        _check_slots(name, matrices(slice_weights), first, rows=True)
    _check_stack("output_tensor", output, (len(weights), inputs.shape[0], rank), "lora_a_weights")
    arguments.check_dense("output_tensor", output.flatten(0, 1), (len(output) * len(inputs), rank), x, torch.float32)


def check_expand(inputs: torch.Tensor, weights: Sequence[torch.Tensor], output: torch.Tensor, offset: int) -> None:
    """What `vllm.lora_expand` is given: inputs, lora_b_weights, output_tensor and offset_start."""
    first = _check_several("lora_b_weights", weights)
    plain_arguments.whole("offset_start", offset, 0)
    _check_stack("inputs", inputs, (len(weights), None, first.shape[-1]), "lora_b_weights")
    columns = offset
    for number, slice_weights in enumerate(weights):
        name = f"lora_b_weights[{number}]"
        lora_b = _check_matrices(name, slice_weights)
        with _called(h="inputs", lora_b=name):
            arguments.check_lora_b(lora_b, inputs[number, :0].contiguous(), (0, lora_b.shape[-2]), rounded=True)
        _check_slots(name, lora_b, first, rows=False)
        columns += lora_b.shape[-2]
    with _called(base_output="output_tensor"):
        arguments.check_base_output(output, inputs.shape[1], first, (0, columns))


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


def _check_several(name: str, weights: Any) -> torch.Tensor:
    """The first slice's weights, if there are any."""
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"{name}: expected a list with a tensor of each slice, got {type(weights).__name__}")
    if not weights:
        raise ValueError(f"{name}: expected a tensor of each slice, got none")
    return _check_matrices(f"{name}[0]", weights[0])


def _check_matrices(name: str, weights: Any) -> torch.Tensor:
    arguments.check_tensor(name, weights)
    if weights.dim() not in (3, 4) or (weights.dim() == 4 and weights.shape[1] != 1):
        raise ValueError(
            f"{name}: expected [num_loras, rows, columns] or [num_loras, 1, rows, columns], got shape "
            f"{list(weights.shape)}"
        )
    return matrices(weights)


def _check_slots(name: str, weights: torch.Tensor, first: torch.Tensor, *, rows: bool) -> None:
    """As many adapters, of the same rank and dtype, as the first slice has; the rank is A's rows and B's columns."""
    place = -2 if rows else -1
    if (weights.shape[0], weights.shape[place]) != (first.shape[0], first.shape[place]):
        raise ValueError(
            f"{name}: expected {first.shape[0]} adapters of rank {first.shape[place]} as the first slice has, "
            f"got shape {list(weights.shape)}"
        )
    if weights.dtype != first.dtype:
        raise TypeError(f"{name}: expected {first.dtype} as the first slice has, got {weights.dtype}")


def _check_stack(name: str, h: Any, shape: tuple[int, int | None, int], of: str) -> None:
    arguments.check_tensor(name, h)
    slices, rows, rank = shape
    if h.dim() != 3 or h.shape[0] != slices or h.shape[2] != rank or rows not in (None, h.shape[1]):
        said = f"[{slices}, {'num_tokens' if rows is None else rows}, {rank}]"
        raise ValueError(f"{name}: expected {said} for {of}, got shape {list(h.shape)}")
    if rows is not None and not h.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {list(h.stride())}")
