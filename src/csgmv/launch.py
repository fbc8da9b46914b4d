"""The short way from a wrapper to the GPU: one flat grid, the config's launch parameters, the tensors' device.

Triton binds and specialises all arguments anew on each launch, in Python, which takes longer than a decode kernel runs.
Here that is done once per binary: what a binary depends on makes a key, under which it is found again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton

from csgmv import rules
from csgmv.config import ExpandConfig, ShrinkConfig

# Triton decides when a kernel is defined, that is on import, whether it will be interpreted on the CPU.
INTERPRETED: bool = triton.knobs.runtime.interpret

# The short way calls the launcher of a compiled kernel, which is Triton's own affair: only where it has been run.
_SHORT_WAY = rules.version_numbers(triton.__version__)[:2] == (3, 6) and torch.version.hip is None
_INT32_MAX = 2**31 - 1
# Key of a binary → the binary, its launcher, the function on the device and the metadata that the launcher takes.
_binaries: dict[tuple[Any, ...], tuple[Any, Any, Any, Any]] = {}


def by_8(*sizes: int) -> bool:
    """Whether sizes are multiples of 8 but not all of 16: then a kernel must be told, to move 16 bytes at a time."""
    together = math.gcd(*sizes)
    return together % 8 == 0 and together % 16 != 0


def options(config: ShrinkConfig | ExpandConfig | None, overlap: bool) -> dict[str, Any]:
    """A config's launch parameters as Triton takes them."""
    chosen: dict[str, Any] = {}
    if config is not None:
        chosen = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if config.maxnreg is not None:
            chosen["maxnreg"] = config.maxnreg
    if overlap:
        chosen["launch_pdl"] = True
    return chosen


def binary_key(
    kernel: Any,
    config: ShrinkConfig | ExpandConfig | None,
    overlap: bool,
    device: int,
    dtypes: Sequence[torch.dtype],
    pointers: Sequence[int],
    sizes: Sequence[int],
    constants: Mapping[str, int | bool],
) -> tuple[Any, ...]:
    """Everything that the binary of a launch depends on.

    Of pointers, Triton specialises on whether they are multiples of 16 bytes; of sizes, on whether they are 1,
    multiples of 16, or beyond 32 bits.
    """
    aligned = [pointer & 15 for pointer in pointers]
    kinds = [(size == 1 or (size & 15 == 0) * 2) + (size > _INT32_MAX) * 4 for size in sizes]
    return (id(kernel), config, overlap, device, *map(bool, aligned), *dtypes, *kinds, *constants.values())


def run(
    kernel: Any,
    programs: int,
    config: ShrinkConfig | ExpandConfig | None,
    tensors: Sequence[torch.Tensor],
    sizes: Sequence[int],
    constants: Mapping[str, int | bool],
    *,
    overlap: bool = False,
) -> None:
    """Launch a Triton kernel on the device and current stream of its first tensor.

    Args:
        kernel: a jitted function whose parameters are these tensors, sizes and constants, in this order. It is kept.
        programs: size of the flat grid.
        config: where num_warps, num_stages and maxnreg come from; None for Triton's own.
        tensors: pointers into these, all on one device, are passed.
        sizes: run-time integers.
        constants: compile-time constants by name.
        overlap: the launch is a programmatic dependent of the one before it on the stream.
    """
    if INTERPRETED or not _SHORT_WAY:
        kernel[(programs,)](*tensors, *sizes, **constants, **options(config, overlap))
        return
    device = tensors[0].get_device()
    pointers = [tensor.data_ptr() for tensor in tensors]
    dtypes = [tensor.dtype for tensor in tensors]
    key = binary_key(kernel, config, overlap, device, dtypes, pointers, sizes, constants)
    known = _binaries.get(key)
    elsewhere = torch.cuda.current_device() != device
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        if known is None:
            assert [*kernel.arg_names[len(tensors) + len(sizes) :]] == [*constants], "constants out of order"
            binary = kernel[(programs,)](*tensors, *sizes, **constants, **options(config, overlap))
            _binaries[key] = binary, binary.run, binary.function, binary.packed_metadata
            return
        _, start, function, metadata = known
        stream = triton.runtime.driver.active.get_current_stream(device)
        # The three Nones: launch metadata and hooks, which profilers of Triton's own may set, are left out.
        start(programs, 1, 1, stream, function, metadata, None, None, None, *pointers, *sizes, *constants.values())
