"""vLLM's two LoRA operators for linear layers, with its argument meanings, on csgmv's kernels.

`install` puts them behind vLLM's own operators vllm::lora_shrink and vllm::lora_expand; to call them, vLLM need not be
installed. vLLM has one tensor of weights a slice: up to four of them share a launch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Sequence

import torch

from csgmv import expand, plain_arguments, rules, shrink
from csgmv.integrations import installation
from csgmv.integrations.installation import Installation
from csgmv.integrations.vllm_arguments import (
    batch_is_idle,
    check_contents,
    check_expand,
    check_place,
    check_scaling,
    check_shrink,
    counted,
    matrices,
    remembered,
)
from csgmv.integrations.vllm_metadata import Metadata

__all__ = ["TESTED", "Installation", "install", "lora_expand", "lora_shrink"]

TESTED = ("0.33.0",)
"""The versions of vLLM whose operators these were tested against; `install` warns of others."""


def lora_shrink(
    inputs: torch.Tensor,
    lora_a_weights: Sequence[torch.Tensor],
    output_tensor: torch.Tensor,
    token_lora_mapping: torch.Tensor,
    token_indices_sorted_by_lora_ids: torch.Tensor,
    num_tokens_per_lora: torch.Tensor,
    lora_token_start_loc: torch.Tensor,
    lora_ids: torch.Tensor,
    no_lora_flag_cpu: torch.Tensor,
    num_active_loras: torch.Tensor,
    scaling: float,
    *,
    batch_invariant: bool = False,
) -> None:
    """output_tensor[i] = scaling · (inputs @ A_i.T) of each row's adapter; zero in rows without one.

    Everything but two numbers on the host is read on the stream, and nothing is kept: it can be captured into a CUDA
    graph, whose replays see what the metadata's tensors hold by then.

    Args:
        inputs: [num_tokens, input_dim], fp16 or bf16.
        lora_a_weights: of each slice [num_loras, rank, input_dim] or [num_loras, 1, rank, input_dim], inputs' dtype,
            contiguous; adapters of lower rank are filled up with zeros.
        output_tensor: [num_slices, num_tokens, rank], float32 or inputs' dtype, contiguous. Not touched in a batch
            without adapters.
        token_lora_mapping, token_indices_sorted_by_lora_ids, num_tokens_per_lora, lora_token_start_loc, lora_ids: the
            batch, int32 [num_tokens] twice, [max_loras + 1], [max_loras + 2] and [max_loras + 1], as `Metadata` has it.
        no_lora_flag_cpu: bool [1] on the host, that no row has an adapter.
        num_active_loras: int32 [1] on the host, how many of lora_ids to look at, from the first.
        scaling: factor of the result; vLLM gives 1.0.
        batch_invariant: as for `csgmv.lora_shrink`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; nothing has been written then.
    """
    if batch_is_idle(no_lora_flag_cpu):
        return
    remembered(check_shrink, inputs, lora_a_weights, output_tensor)
    check_scaling(scaling)
    plain_arguments.flag("batch_invariant", batch_invariant)
    if not inputs.shape[0]:
        return
    check_place(inputs, token_lora_mapping)
    slices = tuple(matrices(weights) for weights in lora_a_weights)
    segments = Metadata(
        token_lora_mapping, token_indices_sorted_by_lora_ids, num_tokens_per_lora, lora_token_start_loc, lora_ids
    ).segments(inputs.shape[0], counted(num_active_loras), slices[0].shape[0], slices[0].shape[-2])
    check_contents(segments, inputs.shape[0], slices[0].shape[-2])
    output_tensor.zero_()
    x = inputs if inputs.stride(-1) == 1 else inputs.contiguous()
    h = output_tensor.unbind(0)
    for at in range(0, len(slices), rules.MAX_SLICES):
        these = slices[at : at + rules.MAX_SLICES]
        out = h[at : at + rules.MAX_SLICES]
        shrink.lora_shrink(x, these, segments, len(these), out=out, padded=True, batch_invariant=batch_invariant)
    if scaling != 1.0:
        output_tensor.mul_(scaling)


def lora_expand(
    inputs: torch.Tensor,
    lora_b_weights: Sequence[torch.Tensor],
    output_tensor: torch.Tensor,
    token_lora_mapping: torch.Tensor,
    token_indices_sorted_by_lora_ids: torch.Tensor,
    num_tokens_per_lora: torch.Tensor,
    lora_token_start_loc: torch.Tensor,
    lora_ids: torch.Tensor,
    no_lora_flag_cpu: torch.Tensor,
    num_active_loras: torch.Tensor,
    offset_start: int = 0,
    add_inputs: bool = False,
    *,
    batch_invariant: bool = False,
) -> None:
    """Slice by slice, output_tensor += inputs[i] @ B_i.T of each row's adapter; rows without one keep their bits.

    Args:
        inputs: [num_slices, num_tokens, rank], float32 or the weights' dtype.
        lora_b_weights: of each slice [num_loras, width, rank] or [num_loras, 1, width, rank], fp16 or bf16, contiguous;
            widths may differ.
        output_tensor: [num_tokens, at least offset_start + all widths], the weights' dtype; rows may be strided.
        token_lora_mapping, token_indices_sorted_by_lora_ids: as for `lora_shrink`.
        num_tokens_per_lora, lora_token_start_loc, lora_ids: as for `lora_shrink`.
        no_lora_flag_cpu, num_active_loras: as for `lora_shrink`.
        offset_start: column of output_tensor at which the first slice begins; the others follow.
        add_inputs: whether output_tensor is added to, or what it holds in those columns is replaced.
        batch_invariant: as for `csgmv.lora_expand`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; nothing has been written then.
    """
    if batch_is_idle(no_lora_flag_cpu):
        return
    remembered(check_expand, inputs, lora_b_weights, output_tensor, offset_start)
    plain_arguments.whole("offset_start", offset_start, 0)  # on every call: 1.0, which equals 1, has its plan too
    plain_arguments.flag("add_inputs", add_inputs)
    plain_arguments.flag("batch_invariant", batch_invariant)
    check_place(inputs, token_lora_mapping)
    slices = tuple(matrices(weights) for weights in lora_b_weights)
    end = offset_start + sum(lora_b.shape[-2] for lora_b in slices)
    segments = Metadata(
        token_lora_mapping, token_indices_sorted_by_lora_ids, num_tokens_per_lora, lora_token_start_loc, lora_ids
    ).segments(inputs.shape[1], counted(num_active_loras), slices[0].shape[0], slices[0].shape[-1])
    check_contents(segments, inputs.shape[1], slices[0].shape[-1])
    if not add_inputs:
        output_tensor[:, offset_start:end].masked_fill_((token_lora_mapping >= 0)[:, None], 0)
    start, h = offset_start, inputs.contiguous().unbind(0)
    for at in range(0, len(slices), rules.MAX_SLICES):
        these = slices[at : at + rules.MAX_SLICES]
        offsets = (0, *itertools.accumulate(lora_b.shape[-2] for lora_b in these))
        base = output_tensor[:, start : start + offsets[-1]]
        hs = h[at : at + rules.MAX_SLICES]
        expand.lora_expand(hs, these, segments, offsets, base, padded=True, batch_invariant=batch_invariant)
        start += offsets[-1]


def install() -> Installation:
    """Have the installed vLLM, which this imports, run these two functions in its operators for LoRA.

    vLLM's modules, its compiled graphs and those in its compilation cache all call vllm::lora_shrink and
    vllm::lora_expand, so what is replaced is what these operators do on a GPU. With VLLM_BATCH_INVARIANT they are
    batch-invariant. FP8 weights and mixtures of experts have operators of their own, which stay vLLM's. Only for the
    process that it is called in: vLLM serves from others, which the plugin `csgmv` is for (see
    `csgmv.integrations.plugins`).

    Returns:
        What restores vLLM's own functions, by `restore()` or at the end of a with statement. Installing again counts:
        they are back when all installations have been restored, in whatever order. Graphs keep what was captured.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        RuntimeError: the installed version has no such operators, or they take other arguments.
    """
    return _replacement.install()


_OPERATORS: dict[str, Callable[..., None]] = {"lora_shrink": lora_shrink, "lora_expand": lora_expand}
_HOME = "vllm.lora.ops.triton_ops"  # whose import registers them


def _put_in() -> Callable[[], None]:
    package = installation.engine("vllm", TESTED)
    home = installation.module(_HOME)
    for name, function in _OPERATORS.items():
        if fault := _fault(name, function) if home is not None else f"expected a module {_HOME}, found none":
            raise RuntimeError(f"vllm {installation.version(package)}: {fault}")
    platforms, envs = importlib.import_module("vllm.platforms"), importlib.import_module("vllm.envs")
    library = torch.library.Library("vllm", "FRAGMENT")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")  # as is intended
        for name, function in _OPERATORS.items():
            implementation = functools.partial(function, batch_invariant=bool(envs.VLLM_BATCH_INVARIANT))
            library.impl(name, implementation, platforms.current_platform.dispatch_key, allow_override=True)
    return library._destroy  # what was registered before is there again


def _fault(name: str, function: Callable[..., None]) -> str | None:
    """Why a function cannot be what vLLM's operator of this name does; None if it can."""
    operator = getattr(torch.ops.vllm, name, None)
    if operator is None:
        return f"expected an operator vllm::{name}, found none"
    takes = [argument.name for argument in operator.default._schema.arguments]
    given = [name for name, each in inspect.signature(function).parameters.items() if each.kind != each.KEYWORD_ONLY]
    return None if takes == given else f"expected vllm::{name}({', '.join(given)}), found ({', '.join(takes)})"


_replacement = installation.Replacement(_put_in)
