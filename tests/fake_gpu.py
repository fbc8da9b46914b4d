"""A GPU that is not there: kernels that record what would be launched, by Triton's own way or by the short one.

What Triton would compile is asked of Triton itself: its own function says how it specialises an argument.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

try:
    from triton._C.libtriton import native_specialize_impl
except ImportError:
    pytest.skip("Triton 3.4 specialises arguments in Python, not here", allow_module_level=True)
from triton.backends.nvidia.compiler import CUDABackend

from csgmv import AddLoraConfig, ExpandConfig, ShrinkConfig, dispatch, expand, launch, rules, shrink

STREAM = 77
KERNELS = {shrink: ("_shrink_kernel", "_sum_partials_kernel"), expand: ("_expand_kernel",)}


class Launched(NamedTuple):
    """One launch.

    Attributes:
        way: "long", Triton's own; "short", past it; "object", past it but for its launcher object.
        binary: kernel, device; and by their names: how each argument is specialised, constants, options.
        programs: the grid's size.
        pointers, sizes: the run-time arguments, None where the kernel is compiled without.
    """

    way: str
    binary: tuple[Any, ...]
    programs: int
    pointers: tuple[int | None, ...]
    sizes: tuple[int | None, ...]


class _Launcher:
    """Triton 3.6's CudaLauncher: an object that allocates scratch memory, and a function in C that launches."""

    launch_cooperative_grid, launch_pdl, profile_scratch_size = False, False, 0

    def __init__(self, gpu: FakeGPU, num_pointers: int, num_constants: int) -> None:
        self.global_scratch_size = gpu.scratch
        self._gpu, self._num_pointers, self._num_constants = gpu, num_pointers, num_constants

    def launch(self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        """What is C in Triton: flags, two scratch pointers, metadata of kernel and launch, two hooks, arguments."""
        *head, metadata, launch_metadata, enter, leave = rest[:8]
        assert head == [self.launch_cooperative_grid, self.launch_pdl, None, None]
        self._record("short", x, y, z, stream, function, metadata, launch_metadata, enter, leave, *rest[8:])

    def __call__(self, *arguments: Any) -> None:
        self._record("object", *arguments)

    def _record(self, way: str, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        metadata, launch_metadata, enter, leave, *given = rest
        assert (y, z, stream, metadata) == (1, 1, STREAM, ("metadata", function))
        assert (launch_metadata, enter, leave) == (None, None, None)
        assert function[1] == self._gpu.device, "launched on a device that it was not compiled for"
        last = len(given) - self._num_constants
        pointers, sizes = given[: self._num_pointers], given[self._num_pointers : last]
        self._gpu.launched.append(Launched(way, function, x, tuple(pointers), tuple(sizes)))


class _Kernel:
    """Stands in for a jitted function."""

    def __init__(self, gpu: FakeGPU, name: str, kernel: Any) -> None:
        self.arg_names = kernel.arg_names
        told = kernel.kwargs if hasattr(kernel, "kwargs") else vars(kernel)
        self._general = told["do_not_specialize"] or ()
        self._unaligned = told["do_not_specialize_on_alignment"] or ()
        self._gpu, self._name = gpu, name

    def _specialised(self, name: str, value: Any) -> tuple[Any, ...]:
        how = name not in self._general, name not in self._unaligned
        return native_specialize_impl(CUDABackend, value, False, *how)

    def _binary(self, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        constants = {name: named.pop(name) for name in self.arg_names[len(given) :]}
        kinds = tuple((name, self._specialised(name, value)) for name, value in zip(self.arg_names, given))
        return self._name, self._gpu.device, kinds, tuple(constants.items()), tuple(named.items())

    def __getitem__(self, grid: tuple[int]) -> Any:
        def start(*given: Any, **named: Any) -> Any:
            tensors = [*itertools.takewhile(lambda each: not isinstance(each, int), given)]
            sizes = given[len(tensors) :]
            binary = self._binary(given, named)
            pointers = tuple(None if each is None else each.data_ptr() for each in tensors)
            self._gpu.launched.append(Launched("long", binary, grid[0], pointers, sizes))
            launcher = _Launcher(self._gpu, len(pointers), len(binary[3]))
            return SimpleNamespace(run=launcher, function=binary, packed_metadata=("metadata", binary))

        return start

    def warmup(self, *given: Any, grid: tuple[int], **named: Any) -> object:
        """Compiles and launches nothing; the same binary is the same object."""
        assert grid[0] > 0
        binary = self._binary(given, named)
        return self._gpu.compiled.setdefault(binary, object())


class FakeGPU:
    """Tensors on the CPU count as on its device number -1.

    Attributes:
        launched: everything so far.
        compiled: binaries that were compiled without a launch, each with an object that stands for it.
        device: the current one.
        scratch: bytes of scratch memory that kernels need.
    """

    def __init__(self) -> None:
        self.launched: list[Launched] = []
        self.compiled: dict[tuple[Any, ...], object] = {}
        self.device, self.scratch = -1, 0

    @contextlib.contextmanager
    def entered(self, device: int) -> Iterator[None]:
        """`torch.cuda.device`."""
        before, self.device = self.device, device
        yield
        self.device = before


def _a_config_of_its_own(key: rules.Key, *_: object) -> dispatch.Choice:
    """For each key another one, as if the table had a row for it."""
    number = zlib.crc32(repr(key).encode())
    more = {"num_stages": 1 + number % 4, "maxnreg": 24 + number % 232}
    shrink = ShrinkConfig(block_m=16 << number % 3, split_k=1 + number % 2, **more)
    expand = ExpandConfig(block_m=16 << number % 3, **more)
    chosen = {"shrink": shrink, "expand": expand, "add_lora": AddLoraConfig(shrink, expand)}
    return dispatch.Choice(chosen[key.op], "exact", key, "3.6.0", "a GPU")


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGPU]:
    """Launches go to a fake GPU by the short way, as they would under Triton 3.6; nothing is remembered yet.

    Its table has a row for every key, none like the other.
    """
    gpu = FakeGPU()
    with pytest.MonkeyPatch.context() as patch:
        for module, names in KERNELS.items():
            for name in names:
                patch.setattr(module, name, _Kernel(gpu, name, getattr(module, name)))
        patch.setattr(torch.Tensor, "is_cuda", True)
        patch.setattr(dispatch, "resolve", _a_config_of_its_own)
        patch.setattr(dispatch, "_remembered", {})
        patch.setattr(launch, "INTERPRETED", False)
        patch.setattr(launch, "SHORT_WAY", True)
        patch.setattr(launch, "plans", {})
        patch.setattr(launch, "_current_device", lambda: gpu.device)
        patch.setattr(launch, "_current_stream", lambda _: STREAM)
        patch.setattr(torch.cuda, "device", gpu.entered)
        yield gpu
