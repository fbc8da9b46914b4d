"""A GPU that Triton compiles for in a process that never touches it: no context there, nothing loaded.

Sixteen processes that each want a context take their time to get it, and a GPU on which one of them loads a kernel has
to leave what is being timed there.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import tempfile
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from csgmv import dispatch, launch

_WARP = 32
_REGISTERS_OF_BLOCK = 65536  # of any of NVIDIA's architectures that Triton compiles for
_REGISTERS_AT_A_TIME = 256  # that a warp is given
_MOST_THREADS = 1024
_WORD = 4  # bytes; what Triton counts spills in


class CompileTarget(NamedTuple):
    """What of an NVIDIA GPU binaries depend on, and what one of its blocks may use.

    Attributes:
        architecture: as Triton numbers it, 90 for compute capability 9.0.
        shared_memory: bytes.
    """

    architecture: int
    shared_memory: int


def of(device: torch.device) -> CompileTarget | None:
    """A device's target; None where only the device itself tells what kernels take: one of AMD's, or no cuobjdump."""
    if device.type != "cuda" or not launch.FOR_NVIDIA:
        return None
    try:
        _ = triton.knobs.nvidia.cuobjdump.path
    except RuntimeError:  # "Cannot find cuobjdump"
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return CompileTarget(10 * major + minor, dispatch.device_limits(device).shared_memory)


def compile_for(target: CompileTarget) -> None:
    """From now on Triton compiles for a target in this process, and a kernel that it loads is looked at instead."""
    triton.runtime.driver.set_active(_driver(target))


def _driver(target: CompileTarget) -> Any:
    """What Triton asks of a driver to compile a kernel, build its launcher, and load it."""
    from triton.backends.nvidia.driver import CudaLauncher

    def load(name: str, cubin: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        del name, shared, device
        took = resources(cubin)
        warps = _REGISTERS_OF_BLOCK // (-(-took.registers * _WARP // _REGISTERS_AT_A_TIME) * _REGISTERS_AT_A_TIME)
        return 0, 0, took.registers, took.spills // _WORD, min(_WARP * warps, _MOST_THREADS)

    return SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", target.architecture, _WARP),
        launcher_cls=CudaLauncher,
        utils=SimpleNamespace(
            get_device_properties=lambda _: {"max_shared_mem": target.shared_memory},
            load_binary=load,
            unload_module=lambda _: None,
            launch=None,
        ),
    )


class Resources(NamedTuple):
    """What one thread of a kernel takes: registers, and bytes of the stack, where registers are spilled to."""

    registers: int
    spills: int


def resources(cubin: bytes) -> Resources:
    """As NVIDIA's cuobjdump tells, which comes with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        shown = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", shown)[-1]
    return Resources(int(registers), int(stack))
