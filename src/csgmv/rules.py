"""Every rule that the codegen, the tuner and the dispatch must agree on, each written once.

Standard library only: the codegen loads this file by its path, because importing the package would import torch.

    Key                 what a config is stored under
    FIELDS              what a config consists of, per operation
    expand_part         what the expand of a layer is looked up under
    key_faults          whether a launch could ever ask for a key
    config_fault        whether a config is well formed; `footprint` says whether a device can run it
    batch_cell          where the chunk size of a batch is stored
    nearest_cell        which stored chunk size serves a batch that has none of its own
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union

ConfigValue = Union[int, bool, None]
Row = tuple[ConfigValue, ...]

OPS = ("shrink", "expand", "add_lora")
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
MAX_SLICES = 4
MAX_RANK = 256
CHUNK_SIZES = (16, 32, 64, 128)  # what the tuner tries, and what a batch whose caller names none may get


class Key(NamedTuple):
    """What a tuned config is stored under, beside the GPU's name and the Triton version.

    Attributes:
        op: "shrink", "expand" or "add_lora".
        input_dim: columns of x; 0 for expand, whose cost does not depend on it.
        slice_widths: output columns of each slice; () for shrink, whose cost does not depend on them.
        max_rank: of lora_a and lora_b.
        num_slices: 1 to 4.
        dtype: "float16", "bfloat16" or "float32", of every tensor.
        chunk_size: most rows of a segment.
        segment_bucket: the power of two that is nearest to the number of segments.
    """

    op: str
    input_dim: int
    slice_widths: tuple[int, ...]
    max_rank: int
    num_slices: int
    dtype: str
    chunk_size: int
    segment_bucket: int

    @property
    def layer(self) -> tuple[str, int, tuple[int, ...], int, int, str]:
        """What it says of the layer."""
        return self.op, self.input_dim, self.slice_widths, self.max_rank, self.num_slices, self.dtype

    @property
    def batch(self) -> tuple[int, int]:
        """What it says of the batch: chunk_size and segment_bucket."""
        return self.chunk_size, self.segment_bucket


LAYER_FIELDS = 6  # of a key; the rest is of the batch


def expand_part(key: Key) -> Key:
    """The key of the expand that a key's layer and batch have, of add_lora's second half.

    Slices without columns have no programs, so they are left out: q, k or v by itself is looked up as a layer of its
    own, also where it stands among two others of no width.
    """
    widths = tuple(width for width in key.slice_widths if width) or (0,)
    return key._replace(op="expand", input_dim=0, slice_widths=widths, num_slices=len(widths))


def dimensions(op: str, input_dim: int, slice_widths: Sequence[int], num_slices: int, max_rank: int) -> str:
    """What an operation maps from and to, for people: '1024 → 3·64', '64 → 2048+1024+1024', '1024 → 64 → 1024'."""
    inner = f"{num_slices}·{max_rank}" if num_slices > 1 else str(max_rank)
    widths = "+".join(map(str, slice_widths))
    if op == "add_lora":
        return f"{input_dim} → {inner} → {widths}"
    return f"{input_dim} → {inner}" if op == "shrink" else f"{max_rank} → {widths}"


def power_of_two(size: int) -> int:
    """The least power of two that is at least this size; 1 for 0."""
    return 1 << max(size - 1, 0).bit_length()


def nearest_power_of_two(size: int) -> int:
    """The power of two nearest to a size as a ratio: 45 → 32, 46 → 64; 1 for 0.

    Of p and 2 · p, p is nearer to n where n · n < 2 · p · p; they are never equal, so that there is no tie. Said in
    bits, for one step on the way to a launch: 2^k is nearest where n · n has 2 · k or 2 · k + 1 of them.
    """
    return 1 << ((size * size).bit_length() >> 1)


def segment_bucket(num_segments: int) -> int:
    """The power of two nearest to a number of segments (0 and 1 share bucket 1).

    Nearest, not next: a batch has a few segments more than its adapters' rows fill, since each adapter's last segment
    is not full. 512 tokens of 8 adapters in chunks of 16 make some 36, which are to be served by what 32 were tuned to.
    """
    return nearest_power_of_two(num_segments)


def bucket_sizes(bucket: int) -> tuple[int, int]:
    """The least and the largest size (from 1) whose nearest power of two is this one: 8 → (6, 11)."""
    return math.isqrt(bucket * bucket // 2) + 1, math.isqrt(2 * bucket * bucket)


Cell = tuple[int, int]  # the nearest powers of two to a batch's rows and to its adapters


def batch_cell(rows: int, adapters: int) -> Cell:
    """Where the chunk size for a batch is stored.

    Args:
        rows: that use an adapter.
        adapters: that have rows; of more than there are rows, as many as there are rows count.
    """
    return nearest_power_of_two(rows), nearest_power_of_two(min(adapters, rows))


def nearest_cell(cell: Cell, present: Iterable[Cell]) -> Cell | None:
    """The stored cell whose chunk size serves `cell`; None if there is none at all.

    How full segments get depends on the rows of an adapter, how many of them share the GPU on the rows in all. So the
    nearest cell is the one with the fewest octaves between either, added up. Of equally near ones that with fewer rows,
    then fewer adapters, serves: its chunk size is if anything smaller, which leaves less of the last segments empty.
    """

    def distance(other: Cell) -> tuple[int, Cell]:
        rows, adapters = (there.bit_length() - here.bit_length() for there, here in zip(other, cell))
        return abs(rows) + abs(rows - adapters), other

    return min(present, key=distance, default=None)


def key_faults(key: Key) -> Iterator[str]:
    """Every reason why no launch could ever ask for this key, each as 'field: what was expected, what came'."""
    if key.op not in OPS:
        yield f"op: expected one of {', '.join(OPS)}, got {key.op!r}"
        return  # what the other fields may be depends on it
    if key.dtype not in DTYPE_BYTES:
        yield f"dtype: expected one of {', '.join(DTYPE_BYTES)}, got {key.dtype!r}"
    if not 1 <= key.max_rank <= MAX_RANK:
        yield f"max_rank: expected 1 to {MAX_RANK}, got {key.max_rank}"
    if not 1 <= key.num_slices <= MAX_SLICES:
        yield f"num_slices: expected 1 to {MAX_SLICES}, got {key.num_slices}"
    if (key.input_dim > 0) != (key.op != "expand"):
        wanted = "0" if key.op == "expand" else "a positive number"
        yield f"input_dim: expected {wanted} for {key.op}, got {key.input_dim}"
    expected = 0 if key.op == "shrink" else key.num_slices
    if len(key.slice_widths) != expected or any(width < 0 for width in key.slice_widths):
        yield f"slice_widths: expected {expected} non-negative widths for {key.op}, got {list(key.slice_widths)}"
    if key.chunk_size < 1:
        yield f"chunk_size: expected a positive number, got {key.chunk_size}"
    if key.segment_bucket != segment_bucket(key.segment_bucket):
        yield f"segment_bucket: expected a power of two, got {key.segment_bucket}"


def key_fault(key: Key) -> str | None:
    """Why no launch could ever ask for this key, or None."""
    return next(key_faults(key), None)


class Field(NamedTuple):
    """One field of a config: its name, the values it may take, and whether None (the compiler chooses) is one.

    A field that came with a later schema of the raw results says so in `since`, and in `neutral` what the rows of older
    results had without knowing it.
    """

    name: str
    least: int
    most: int
    power_of_two: bool = True
    optional: bool = False
    boolean: bool = False
    since: int = 1
    neutral: ConfigValue = None


_LAUNCH = (
    Field("num_warps", 1, 16),
    Field("num_stages", 1, 8, power_of_two=False),
    Field("maxnreg", 24, 255, power_of_two=False, optional=True),
)
_SHRINK = (
    Field("block_m", 16, 256),
    Field("block_n", 16, 256),
    Field("block_k", 16, 1024),
    Field("column_tiles", 1, 8, power_of_two=False),
    Field("split_k", 1, 64, power_of_two=False),
    *_LAUNCH,
    Field("sliced_k", 0, 1, boolean=True, since=3, neutral=False),
)
_EXPAND = (
    Field("block_m", 16, 256),
    Field("block_n", 16, 256),
    Field("block_k", 16, 256),
    Field("column_tiles", 1, 64, power_of_two=False),
    *_LAUNCH,
    Field("prefetch", 0, 1, boolean=True, since=2, neutral=False),
)
_ADD_LORA = (
    *(field._replace(name="shrink_" + field.name) for field in _SHRINK),
    *(field._replace(name="expand_" + field.name) for field in _EXPAND),
    Field("overlap", 0, 1, boolean=True),
)
FIELDS: Mapping[str, tuple[Field, ...]] = {"shrink": _SHRINK, "expand": _EXPAND, "add_lora": _ADD_LORA}
FIELD_NAMES: Mapping[str, tuple[str, ...]] = {op: tuple(f.name for f in fields) for op, fields in FIELDS.items()}


def table_format() -> str:
    """Tells generated tables apart by what their keys and rows consist of."""
    consists = Key._fields[:LAYER_FIELDS], Key._fields[LAYER_FIELDS:], [*FIELDS.items()]
    return hashlib.sha256(repr(consists).encode()).hexdigest()[:16]


def _value_fault(field: Field, value: object) -> str | None:
    if field.boolean:
        return None if isinstance(value, bool) else f"{field.name}: expected true or false, got {value!r}"
    if value is None and field.optional:
        return None
    wanted = f"{'a power of two ' if field.power_of_two else ''}from {field.least} to {field.most}"
    if field.optional:
        wanted += " or null"
    if isinstance(value, bool) or not isinstance(value, int) or not field.least <= value <= field.most:
        return f"{field.name}: expected {wanted}, got {value!r}"
    if field.power_of_two and value & (value - 1):
        return f"{field.name}: expected {wanted}, got {value}"
    return None


def config_fault(op: str, row: Sequence[object], schema: int | None = None) -> str | None:
    """What is wrong with a config given as its values in the order of FIELDS[op], or None.

    Checks each value by itself; `footprint.resource_fault` says whether a device can run the whole. With `schema`, the
    values are those that raw results of this schema have.
    """
    fields = [field for field in FIELDS[op] if schema is None or field.since <= schema]
    if len(row) != len(fields):
        return f"expected {len(fields)} values ({', '.join(field.name for field in fields)}), got {len(row)}"
    faults = (_value_fault(field, value) for field, value in zip(fields, row))
    return "; ".join(fault for fault in faults if fault) or None


def parts(op: str, row: Sequence[Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A row by kernels: of each its operation, what its fields' names begin with in the row, and its fields."""
    named = dict(zip(FIELD_NAMES[op], row))
    for part, prefix in (("shrink", "shrink_"), ("expand", "expand_")) if op == "add_lora" else ((op, ""),):
        yield part, prefix, {name: named[prefix + name] for name in FIELD_NAMES[part]}


def row_order(row: Row) -> list[tuple[bool, int]]:
    """What rows are sorted by where a fixed order is wanted, for ties; None comes before any number."""
    return [(value is not None, value or 0) for value in row]


@functools.lru_cache(maxsize=1024)
def version_numbers(version: str) -> tuple[int, ...]:
    """'3.10.0+cu130' → (3, 10, 0): versions compare as numbers, local suffixes dropped."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = "".join(itertools.takewhile(str.isdigit, part))
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
