"""The way from a wrapper to the GPU: one flat grid, the config's launch parameters, the tensors' device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton

from csgmv import rules
from csgmv.config import ExpandConfig, ShrinkConfig

# Triton decides when a kernel is defined, that is on import, whether it will be interpreted on the CPU.
INTERPRETED: bool = triton.knobs.runtime.interpret


def row_tile(block_m: int, chunk_size: int) -> int:
    """Rows of a program's tile: no more than a segment has, rounded up to a power of two of at least 16."""
    return min(block_m, max(16, rules.segment_bucket(chunk_size)))


def run(
    kernel: Any,
    programs: int,
    config: ShrinkConfig | ExpandConfig | None,
    *args: torch.Tensor | int,
    overlap: bool = False,
    **constants: int | bool,
) -> None:
    """Launch `programs` programs of a Triton kernel on the device and current stream of its first tensor.

    `overlap` marks the launch as a programmatic dependent of the one before it on the stream.
    """
    options: dict[str, Any] = {}
    if config is not None:
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if config.maxnreg is not None:
            options["maxnreg"] = config.maxnreg
    if overlap:
        options["launch_pdl"] = True
    first = args[0]
    assert isinstance(first, torch.Tensor)
    elsewhere = first.is_cuda and first.get_device() != torch.cuda.current_device()
    with torch.cuda.device(first.device) if elsewhere else contextlib.nullcontext():
        kernel[(programs,)](*args, **constants, **options)
