"""From a launch to its config: the key of a launch, and the row that the fallback finds for it.

A key is resolved once and remembered; nothing here reads a file, the environment or the GPU after that.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import triton

from csgmv import devices, dtypes, fallback, footprint, launch, plain_arguments, rules, tuned
from csgmv.config import (
    AddLoraConfig,
    Config,
    ExpandConfig,
    ShrinkConfig,
    default_config,
    from_row,
    to_row,
    with_block_m,
)
from csgmv.rules import Key

if TYPE_CHECKING:
    from csgmv.segments import Segments  # which asks this module, by way of chunk_sizes, where it is

C = TypeVar("C", ShrinkConfig, ExpandConfig, AddLoraConfig)
Table = Mapping[fallback.Head, fallback.Rows]
Target = fallback.Target

# With batch_invariant=True every batch is looked up as a decode batch of some 32 adapters, and gets tiles of 16 rows.
# That is the fewest that there are, which any segment fills best; and always as many, since for another number the
# compiler may choose another tensor-core instruction, which sums in another order.
INVARIANT_CHUNK_SIZE = INVARIANT_BLOCK_M = 16
INVARIANT_BUCKET = 32


class Choice(NamedTuple):
    """The config that a launch gets, and why.

    Attributes:
        config: of the operation's class.
        step: the step of the fallback that found it, e.g. "exact", "nearest segment bucket (8)", "default".
        source: the key whose row it is; None for defaults, the architecture's and the built-in one.
        triton, gpu: where the row was tuned; None for defaults.
    """

    config: Config
    step: str
    source: Key | None
    triton: str | None
    gpu: str | None


def shrink_key(input_dim: int, max_rank: int, num_slices: int, dtype: torch.dtype, segments: Segments) -> Key:
    """The key of a `lora_shrink` launch."""
    bucket = rules.segment_bucket(segments.num_segments)
    return Key("shrink", input_dim, (), max_rank, num_slices, dtypes.NAMES[dtype], segments.chunk_size, bucket)


def expand_key(slice_widths: tuple[int, ...], max_rank: int, dtype: torch.dtype, segments: Segments) -> Key:
    """The key of a `lora_expand` launch."""
    bucket = rules.segment_bucket(segments.num_segments)
    name, slices = dtypes.NAMES[dtype], len(slice_widths)
    return rules.expand_part(Key("expand", 0, slice_widths, max_rank, slices, name, segments.chunk_size, bucket))


def add_lora_key(
    input_dim: int, slice_widths: tuple[int, ...], max_rank: int, dtype: torch.dtype, segments: Segments
) -> Key:
    """The key of an `add_lora` launch."""
    bucket = rules.segment_bucket(segments.num_segments)
    name = dtypes.NAMES[dtype]
    return Key("add_lora", input_dim, slice_widths, max_rank, len(slice_widths), name, segments.chunk_size, bucket)


def table() -> Table:
    """The generated table; empty in a tree or wheel that has none."""
    return tuned.tables().table


_laid: list[fallback.Tables] = []  # at most one


def tables() -> fallback.Tables:
    """The generated table, with what it takes to borrow from other GPUs; or what was laid over them (`lay`)."""
    if _laid:
        return _laid[0]
    generated = tuned.tables()
    return fallback.Tables(table(), generated.gpus, generated.defaults)


@functools.cache
def device_limits(device: torch.device) -> footprint.Limits:
    """What one block may use on this device; for the CPU, where kernels are interpreted, next to everything."""
    if device.type != "cuda":
        return footprint.UNLIMITED
    if torch.version.hip is not None:
        # "HIP doesn't have shared_memory_per_block_optin in device properties" (torch/cuda/_utils.py); Triton asks HIP.
        said = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
        return footprint.Limits(said["max_shared_mem"])
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub leaves most of them out
    return footprint.Limits(
        shared_memory=properties.shared_memory_per_block_optin,
        registers=properties.regs_per_multiprocessor,
        programmatic_launch=torch.version.cuda is not None and properties.major >= 9 and launch.DEPENDENT,
    )


@functools.cache
def target(device: torch.device) -> Target:
    """Under which GPU and Triton version a device's launches are looked up.

    Interpreted launches have neither: they take the rows of the GPU that the table knows best, so that a machine
    without a GPU runs the embedded configs too.
    """
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        # ROCm numbers its architectures too, from the same numbers on.
        architecture = f"{properties.major}.{properties.minor}" if torch.version.cuda is not None else ""
        name, sm_count = torch.cuda.get_device_name(device), properties.multi_processor_count
        return Target(name, triton.__version__, device_limits(device), architecture, sm_count)
    known = tables()
    gpu, version = max(known.rows, key=lambda head: (len(known.rows[head]), head), default=("", triton.__version__))
    return Target(gpu, version, device_limits(device), *known.gpus.get(gpu, ()))


def named(gpu: str) -> list[str]:
    """The table's GPUs in whose names these words stand, in any case: "h200" is a part of "NVIDIA H200", "h20" is not.

    One that has just this name is the only one.
    """

    def words(name: str) -> str:
        return f" {' '.join(re.findall('[a-z0-9]+', name.lower()))} "

    known = [name for name in tables().gpus if words(gpu) in words(name)]
    return [name for name in known if words(name) == words(gpu)] or known


def tuned_under(gpu: str) -> str:
    """The Triton version that a GPU of the table was tuned under; of several the one nearest to the installed one."""
    present = [version for name, version in tables().rows if name == gpu]
    return next(iter(fallback.nearest_versions(triton.__version__, present)), triton.__version__)


def is_exact(choice: Choice, key: Key, where: Target) -> bool:
    """Whether a choice was measured at this very key, on this GPU under this Triton version."""
    return (choice.source, choice.gpu, choice.triton) == (key, where.gpu, where.triton)


def resolve(key: Key, where: Target, known: fallback.Tables) -> Choice:
    """Walk the fallback (`fallback.serve`), and make a config of what it finds."""
    row, step, source, gpu, version = fallback.serve(key, where, known)
    if row is not None:
        return Choice(from_row(key.op, row), step, source, version, gpu)
    said = step if source is None else f"{step}: the default was measured best"
    return Choice(default_config(key, where.limits), said, source, version, gpu)


def invariant_key(key: Key) -> Key:
    """The key that a launch with batch_invariant=True is looked up under."""
    return key._replace(chunk_size=INVARIANT_CHUNK_SIZE, segment_bucket=INVARIANT_BUCKET)


def resolve_invariant(key: Key, where: Target, known: fallback.Tables) -> Choice:
    """The same for a launch with batch_invariant=True, whose config depends on neither bucket nor chunk size."""
    choice = resolve(invariant_key(key), where, known)
    return choice._replace(config=with_block_m(choice.config, INVARIANT_BLOCK_M))


_Asked = tuple[torch.device, Key, bool]  # the arguments of `choose`
_remembered: dict[_Asked, Choice] = {}
# Each is called with what was asked and what was found, once that has been remembered.
watchers: list[Callable[[torch.device, Key, bool, Choice], None]] = []


@functools.cache
def _warn_untuned(where: Target) -> None:
    """Say once that a GPU has no rows, and how to get some."""
    warnings.warn(
        f"csgmv has no configs tuned for {where.gpu}: launches borrow those of other GPUs, or get defaults, which may"
        " be several times slower. `csgmv tune --model NAME --rank N` finds this GPU's own, which"
        " csgmv.load_overlay loads.",
        stacklevel=2,
    )


def choose(key: Key, device: torch.device, batch_invariant: bool = False) -> Choice:
    """The config for a launch with this key on this device; resolved once, then remembered.

    Warns once of a GPU for which the table has no rows.
    """
    asked = device, key, batch_invariant
    choice = _remembered.get(asked)
    if choice is None:
        where, known = target(device), tables()
        find = resolve_invariant if batch_invariant else resolve
        choice = _remembered[asked] = find(key, where, known)
        if device.type == "cuda" and all(gpu != where.gpu for gpu, _ in known.rows):
            _warn_untuned(where)
        for watcher in watchers:
            watcher(*asked, choice)
    return choice


def remembered() -> list[tuple[_Asked, Choice]]:
    """All that has been resolved so far."""
    return list(_remembered.items())


def lay(over: fallback.Tables) -> None:
    """Look launches up in these tables from now on; what was remembered of others is forgotten."""
    _laid[:] = [over]
    target.cache_clear()
    _remembered.clear()
    launch.plans.clear()


class Instead:
    """Within this, launches are looked up in other tables. What was remembered on either side is kept for its return.

    For measuring, in one thread: what other threads launch meanwhile is looked up there too, and a graph that was
    captured keeps its configs. Nothing may be laid (`lay`) within.
    """

    def __init__(self, known: fallback.Tables) -> None:
        self._laid = [known]
        self._remembered: dict[_Asked, Choice] = {}
        self._plans: dict[tuple[Any, ...], Any] = {}

    def __enter__(self) -> None:
        self._change_places()

    def __exit__(self, *_: object) -> None:
        self._change_places()

    def _change_places(self) -> None:
        global _laid, _remembered
        _laid, self._laid = self._laid, _laid
        _remembered, self._remembered = self._remembered, _remembered
        launch.plans, self._plans = self._plans, launch.plans
        target.cache_clear()


@functools.lru_cache(maxsize=4096)
def _fault(config: Config, key: Key, device: torch.device) -> str | None:
    return footprint.resource_fault(to_row(config), key, device_limits(device))


def config_for(given: object, expected: type[C], key: Key, device: torch.device, batch_invariant: bool = False) -> C:
    """The caller's own config, if it is of the operation's class and the device can run it; where none, the table's.

    Raises:
        TypeError, ValueError: naming `config`, what was expected and what came.
    """
    config: object = given
    if config is None:
        config = choose(key, device, batch_invariant).config
    if not isinstance(config, expected):
        raise TypeError(f"config: expected {expected.__name__} or None, got {type(given).__name__}")
    if given is not None:
        if batch_invariant and config != with_block_m(config, INVARIANT_BLOCK_M):
            raise ValueError(f"config: expected block_m {INVARIANT_BLOCK_M} with batch_invariant=True, got {config}")
        if fault := _fault(config, key, device):
            raise ValueError(f"config: {fault}")
    return config


def explain(
    op: str,
    *,
    max_rank: int,
    input_dim: int = 0,
    slice_widths: tuple[int, ...] = (),
    num_slices: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    chunk_size: int,
    num_segments: int,
    batch_invariant: bool = False,
    device: torch.device | str | None = None,
) -> Choice:
    """The config that a launch would get, and the step of the fallback that it comes from.

    Args:
        op: "shrink", "expand" or "add_lora".
        max_rank: of lora_a and lora_b, 1 to 256.
        input_dim: columns of x (shrink, add_lora).
        slice_widths: output columns of each slice (expand, add_lora).
        num_slices: shrink only; elsewhere it is the number of slice_widths.
        dtype: of x or h.
        chunk_size, num_segments: of the Segments.
        batch_invariant: as the operation is told; the answer is then the same for every chunk_size and num_segments.
        device: a GPU, or "cpu" for interpreted launches; None is the current GPU if there is one.

    Raises:
        TypeError, ValueError: no launch has such a key; names the field, what was expected and what came.
    """
    dtype_name = dtypes.name_of("dtype", dtype)
    if isinstance(slice_widths, (str, bytes)) or not isinstance(slice_widths, Iterable):
        raise TypeError(f"slice_widths: expected whole numbers, got {slice_widths!r}")
    widths = tuple(plain_arguments.whole("slice_widths", width, 0) for width in slice_widths)
    bucket = rules.segment_bucket(plain_arguments.whole("num_segments", num_segments, 0))
    key = Key(
        op,
        plain_arguments.whole("input_dim", input_dim, 0),
        widths,
        plain_arguments.whole("max_rank", max_rank, 1, rules.MAX_RANK),
        max(len(widths), 1) if num_slices is None else plain_arguments.whole("num_slices", num_slices, 1),
        dtype_name,
        plain_arguments.whole("chunk_size", chunk_size, 1),
        bucket,
    )
    if fault := rules.key_fault(key):
        raise ValueError(fault)
    key = rules.expand_part(key) if op == "expand" else key
    if device is None:
        device = "cpu" if launch.INTERPRETED or not torch.cuda.is_available() else "cuda"
    invariant = plain_arguments.flag("batch_invariant", batch_invariant)
    return choose(key, devices.read(device), invariant)
