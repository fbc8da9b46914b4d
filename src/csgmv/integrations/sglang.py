"""sglang's two chunked SGMV functions, under their own names and argument meanings, on csgmv's kernels.

`install` puts them in the place of those in sglang.srt.lora.triton_ops (0.5.11) or sglang.kernels.ops.lora.dense
(0.5.23); to call them, sglang need not be installed. `segments` gives a batch in csgmv's own terms, for
`csgmv.add_lora`, which fuses the two.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, Union

import torch

from csgmv import arguments, dispatch
from csgmv.config import ShrinkConfig
from csgmv.expand import lora_expand
from csgmv.integrations import installation, tensor_version
from csgmv.integrations.installation import Installation
from csgmv.integrations.lora_batch_info import BatchInfo, segments
from csgmv.shrink import lora_shrink

__all__ = [
    "TESTED",
    "BatchInfo",
    "Installation",
    "chunked_sgmv_lora_expand_forward",
    "chunked_sgmv_lora_shrink_forward",
    "install",
    "segments",
]

TESTED = ("0.5.11", "0.5.23")
"""The versions of sglang whose functions these were tested against; `install` warns of others."""

Offsets = Union[torch.Tensor, Sequence[int]]


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
    batch = segments(batch_info, _rows(x))
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
    return lora_expand(x, weights, segments(batch_info, _rows(x)), offsets, base_output)


def _rows(x: torch.Tensor) -> int | None:
    """Rows of x; None of what the operation is about to refuse."""
    return x.shape[0] if isinstance(x, torch.Tensor) and x.shape else None


class _Remembered:
    """The values of one tensor, and how to tell that they are still its values."""

    __slots__ = ("data_ptr", "offsets", "tensor", "version")

    def __init__(self, tensor: torch.Tensor, offsets: tuple[int, ...]) -> None:
        key = id(tensor)
        self.tensor = weakref.ref(tensor, lambda _: _remembered.pop(key, None))
        self.version, self.data_ptr, self.offsets = tensor_version.version(tensor), tensor.data_ptr(), offsets


_remembered: dict[int, _Remembered] = {}


def _read_offsets(offsets: Offsets) -> tuple[int, ...]:
    if not isinstance(offsets, torch.Tensor):
        return tuple(offsets) if isinstance(offsets, Sequence) else offsets  # which lora_expand refuses
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


def install() -> Installation:
    """Replace the two functions of the installed sglang, which this imports, by those of this module.

    All names that sglang's modules have for them are replaced, the backend's among them, and modules that are imported
    later find the replacements. In 0.5.11 batches of CUDA graphs are also rid of the segments that an earlier batch
    left behind in them. Only for the process that it is called in: sglang serves from others, which the plugin `csgmv`
    is for (see `csgmv.integrations.plugins`).

    Returns:
        What restores sglang's own functions, by `restore()` or at the end of a with statement. Installing again counts:
        they are back when all installations have been restored, in whatever order. Graphs keep what was captured.

    Raises:
        ModuleNotFoundError: sglang is not installed.
        RuntimeError: the installed version has no such functions, or they take other arguments.
    """
    return _replacement.install()


_LAYOUTS = ("sglang.kernels.ops.lora.dense", "sglang.srt.lora.triton_ops")
_HOMES: dict[str, Callable[..., torch.Tensor]] = {
    "chunked_sgmv_shrink": chunked_sgmv_lora_shrink_forward,
    "chunked_sgmv_expand": chunked_sgmv_lora_expand_forward,
}


def _put_in() -> Callable[[], None]:
    package = installation.engine("sglang", TESTED)
    replacements = {_theirs(module, ours): ours for module, ours in zip(_homes(package), _HOMES.values())}
    mend = _mend_graph_batches()
    put_back = installation.put_in_names("sglang", replacements)

    def undo() -> None:
        put_back()
        mend()

    return undo


def _homes(package: ModuleType) -> list[ModuleType]:
    """The modules that define the functions, in the order of _HOMES."""
    for folder in _LAYOUTS:
        found = [installation.module(f"{folder}.{home}") for home in _HOMES]
        if None not in found:
            return [module for module in found if module is not None]
    raise RuntimeError(
        f"sglang {installation.version(package)}: expected chunked_sgmv_shrink and chunked_sgmv_expand in "
        f"{' or '.join(_LAYOUTS)}, as versions {' and '.join(TESTED)} have them"
    )


def _theirs(module: ModuleType, ours: Callable[..., torch.Tensor]) -> Any:
    """The function that ours is to replace, if ours takes all of its arguments."""
    theirs = getattr(module, ours.__name__, None)
    if theirs is None:
        raise RuntimeError(f"{module.__name__}: expected a function {ours.__name__}, found none")
    unknown = [name for name in inspect.signature(theirs).parameters if name not in inspect.signature(ours).parameters]
    if unknown:
        raise RuntimeError(f"{module.__name__}.{ours.__name__}: takes {', '.join(unknown)}, which csgmv's does not")
    return theirs


def _mend_graph_batches() -> Callable[[], None]:
    """In sglang 0.5.11: static batches get empty segments at their tail; later versions do that themselves.

    Its own kernels look at num_segments, a number that a captured graph keeps; ours are captured with the capacity.
    """
    backend: Any = None
    if installation.module(_LAYOUTS[0]) is None:
        backends = installation.module("sglang.srt.lora.backend.chunked_backend")
        backend = getattr(backends, "ChunkedSgmvLoRABackend", None)
    if backend is None:
        return lambda: None
    prepare = backend.prepare_lora_batch

    @functools.wraps(prepare)
    def prepare_lora_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = prepare(self, *args, **kwargs)
        info = self.batch_info
        if info.use_cuda_graph:
            info.seg_indptr[info.num_segments + 1 :].copy_(info.seg_indptr[info.num_segments])
        return result

    def undo() -> None:
        if backend.prepare_lora_batch is prepare_lora_batch:
            backend.prepare_lora_batch = prepare

    backend.prepare_lora_batch = prepare_lora_batch
    return undo


_replacement = installation.Replacement(_put_in)
