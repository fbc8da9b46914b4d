"""The short way from a wrapper to the GPU.

Triton binds and specialises all arguments anew on each launch, in Python, which takes longer than a decode kernel runs.
Here that happens once per kind of operands. A wrapper makes a key of all that its checks look at and that a binary
depends on, and remembers under it a plan: the config, what the kernels are given besides pointers, and the binaries.
A call that finds its plan needs neither checks nor Triton: it passes pointers and sizes to the compiled kernel's own
launcher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import triton

from csgmv import rules
from csgmv.config import ExpandConfig, ShrinkConfig

if TYPE_CHECKING:  # segments asks dispatch for its chunk size, and dispatch asks here
    from csgmv.segments import Segments

LEAST = {"torch": "2.8", "triton": "3.4"}  # as pyproject.toml asks


def check_versions(**found: str) -> None:
    """Raises ImportError, saying which version is needed and which came, for a library that is too old.

    pip sees to that, but not where a library is put beside others by hand or kept by another's pin.
    """
    for name, version in found.items():
        if rules.version_numbers(version) < rules.version_numbers(LEAST[name]):
            raise ImportError(f"csgmv: expected {name} {LEAST[name]} or later, got {version}")


check_versions(torch=torch.__version__, triton=triton.__version__)

# Triton decides when a kernel is defined, that is on import, whether it will be interpreted on the CPU.
INTERPRETED: bool = triton.knobs.runtime.interpret

# Whether operations take tensors on the CPU: where they are interpreted, and where nothing is launched at all.
on_cpu = INTERPRETED

# Whether kernels are compiled by way of PTX: AMD's compiler has neither a register cap nor PTX written by hand.
FOR_NVIDIA: bool = torch.version.hip is None

# The short way calls the launcher of a compiled kernel, which is Triton's own affair: only where it has been run.
SHORT_WAY: bool = FOR_NVIDIA and not INTERPRETED and rules.version_numbers(triton.__version__)[:2] == (3, 6)
# Whether kernels can wait for one another by programmatic dependent launch, where the GPU can: Triton 3.4 compiles none
# that do ("gdc_wait() got an unexpected keyword argument '_semantic'").
DEPENDENT: bool = rules.version_numbers(triton.__version__) >= (3, 5)
# What torch.cuda.current_device and Triton's driver call in the end; builds of torch without CUDA have neither.
_current_device: Any = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)
_knobs: Any = triton.knobs.runtime

# Tells devices apart, and raises TypeError for what is no tensor. Between GPUs the index does, and is read in half the
# time that a torch.device takes to read and compare; interpreted tensors all have -1, be they on the CPU or nowhere.
device_of: Any = torch.Tensor.device.__get__ if INTERPRETED else torch.Tensor.get_device

# An operation's key → its plan, of whatever class. Keys hold no number of tokens or segments (other than its power of
# two), so a server has some hundred; what makes more of them, such as ever other strides, must not fill the memory.
plans: dict[tuple[Any, ...], Any] = {}
_MOST_PLANS = 16384
# Whether `csgmv.debug` has taken the plans' place, so that all calls come by the checks.
debugging = False

# In a context where this is a list, what goes Triton's own way is compiled and put there, but not launched.
compiled: ContextVar[list[Any] | None] = ContextVar("compiled", default=None)


def stand_in() -> None:
    """From now on tensors on the CPU stand for a GPU's in this process: one that has the number -1 and runs nothing.

    For a process that compiles: whoever calls this sees to it that `run` does not launch.
    """
    global _current_device, _current_stream, on_cpu
    _current_device, _current_stream, on_cpu = (lambda: -1), (lambda _: 0), True


def remember(key: tuple[Any, ...], plan: Any) -> None:
    """Keep a plan for the calls to come."""
    if len(plans) >= _MOST_PLANS:
        plans.clear()
    plans[key] = plan


def fresh(dtype: torch.dtype, device: torch.device) -> Callable[[int], torch.Tensor]:
    """A quicker `torch.empty`, of one dimension: called with a count, it gives so many elements."""
    return torch.empty(0, dtype=dtype, device=device).new_empty


def by_8(*sizes: int) -> bool:
    """Whether sizes are multiples of 8 but not all of 16: then a kernel must be told, to move 16 bytes at a time."""
    together = math.gcd(*sizes)
    return together % 8 == 0 and together % 16 != 0


def options(config: ShrinkConfig | ExpandConfig | None, overlap: bool) -> dict[str, Any]:
    """A config's launch parameters as Triton takes them."""
    chosen: dict[str, Any] = {}
    if config is not None:
        chosen = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        if config.maxnreg is not None and FOR_NVIDIA:  # "Keyword argument maxnreg was specified but unrecognised"
            chosen["maxnreg"] = config.maxnreg
    if overlap:
        chosen["launch_pdl"] = True
    return chosen


def run(
    kernel: Any,
    programs: int,
    config: ShrinkConfig | ExpandConfig | None,
    tensors: Sequence[torch.Tensor | None],
    sizes: Sequence[int | None],
    constants: Mapping[str, int | bool],
    *,
    overlap: bool = False,
) -> Any:
    """Launch a Triton kernel Triton's own way, on the current device and stream.

    Args:
        kernel: a jitted function whose parameters are these tensors, sizes and constants, in this order.
        programs: size of the flat grid.
        config: where num_warps, num_stages and maxnreg come from; None for Triton's own.
        tensors: pointers into these, all on the current device, are passed; None where the kernel is compiled without.
        sizes: run-time integers, or None likewise.
        constants: compile-time constants by name.
        overlap: the launch is a programmatic dependent of the one before it on the stream.

    Returns:
        The compiled kernel, or None where nothing is compiled or launched.
    """
    assert [*kernel.arg_names[len(tensors) + len(sizes) :]] == [*constants], "constants out of order"
    how = {**constants, **options(config, overlap)}
    ahead = compiled.get()
    if ahead is None:
        return kernel[(programs,)](*tensors, *sizes, **how)
    ahead.append(kernel.warmup(*tensors, *sizes, grid=(programs,), **how))
    return None


def stream(device: int) -> int | None:
    """The current stream of a device, for a launch by the short way.

    None where a launch must go Triton's own way, or to another device first: a hook (Triton's profiler sets them) or
    Triton's debug mode would be passed by, or the device is not the current one.
    """
    try:
        if (
            not SHORT_WAY
            or _current_device() != device
            or _knobs.launch_enter_hook.calls
            or _knobs.launch_exit_hook.calls
            or _knobs.debug
        ):
            return None
    except AttributeError:  # a hook that is no chain of hooks
        return None
    number: int = _current_stream(device)
    return number


class Launch:
    """One kernel with all that its launches on operands of one kind share.

    Of one kind are operands that a binary cannot tell apart: the same dtypes, the same constants, pointers that are
    multiples of 16 bytes or not, and sizes of which Triton specialises none differently (on being 1, a multiple of 16,
    or beyond 32 bits). Whoever keeps a Launch keeps it under a key that says so.
    """

    __slots__ = ("_config", "_constants", "_kernel", "_overlap", "_short")

    def __init__(
        self,
        kernel: Any,
        config: ShrinkConfig | ExpandConfig | None,
        constants: Mapping[str, int | bool],
        *,
        overlap: bool = False,
    ) -> None:
        """Arguments are those of `run`."""
        self._kernel, self._config, self._constants, self._overlap = kernel, config, constants, overlap
        self._short: tuple[Any, tuple[Any, ...], tuple[None, ...]] | None = None  # once the binary is there

    def begin(
        self,
        on: int | None,
        programs: int,
        operands: tuple[Any, ...],
        segments: Segments,
        pointers: tuple[int | None, ...],
        sizes: tuple[int | None, ...],
    ) -> None:
        """Launch the kernel.

        Args:
            on: what `stream` gave; None for the long way.
            programs, sizes: as for `run`.
            operands: what `tensors` makes the kernel's tensors of.
            segments: the batch, whose tensors come next: `Segments.tensors`, all or the first.
            pointers: of all the kernel's tensors.
        """
        short = self._short
        if on is None or short is None:
            self._begin_the_long_way(on, programs, operands, segments, pointers, sizes)
            return
        launcher, head, tail = short
        launcher(programs, 1, 1, on, *head, *pointers, *sizes, *tail)

    def tensors(self, operands: tuple[Any, ...]) -> tuple[torch.Tensor | None, ...]:
        """The kernel's tensors but for the batch's."""
        return operands

    def _begin_the_long_way(
        self,
        on: int | None,
        programs: int,
        operands: tuple[Any, ...],
        segments: Segments,
        pointers: tuple[int | None, ...],
        sizes: tuple[int | None, ...],
    ) -> None:
        device = segments.permutation.get_device()
        if not INTERPRETED and _current_device() != device:
            with torch.cuda.device(device):
                self.begin(stream(device), programs, operands, segments, pointers, sizes)
            return
        own = self.tensors(operands)
        tensors = *own, *segments.tensors[: len(pointers) - len(own)]
        binary = run(self._kernel, programs, self._config, tensors, sizes, self._constants, overlap=self._overlap)
        if on is not None and binary is not None:
            self._short = _short_way(binary, len(self._constants))


def _short_way(binary: Any, num_constants: int) -> tuple[Any, tuple[Any, ...], tuple[None, ...]]:
    """A compiled kernel's launcher, and what it takes between the stream and the pointers, and after the sizes.

    Triton 3.6's launcher for NVIDIA is a Python object that allocates scratch memory, if the kernel uses any, and calls
    a C function; where it uses none, the C function is called at once. The launcher skips constants, whatever they are.
    The last three Nones of the head are launch metadata and hooks: with a hook set, the long way is taken.
    """
    launcher, ignored = binary.run, (None,) * num_constants
    try:
        scratch = launcher.global_scratch_size or launcher.profile_scratch_size
        flags = launcher.launch_cooperative_grid, launcher.launch_pdl
        in_c = launcher.launch
    except AttributeError:
        scratch = True
    if scratch:
        return launcher, (binary.function, binary.packed_metadata, None, None, None), ignored
    return in_c, (binary.function, *flags, None, None, binary.packed_metadata, None, None, None), ignored
