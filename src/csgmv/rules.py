"""Every rule that the codegen, the tuner and the dispatch must agree on, each written once.

Standard library only: the codegen loads this file by its path, because importing the package would import torch.

    Key                 what a config is stored under
    FIELDS              what a config consists of, per operation
    expand_part         what the expand of a layer is looked up under
    key_faults          whether a launch could ever ask for a key
    config_fault        whether a config is well formed
    resource_fault      whether a device can run it
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


def field_names(op: str, schema: int) -> tuple[str, ...]:
    """The fields that rows of an operation have in raw results of this schema."""
    return tuple(field.name for field in FIELDS[op] if field.since <= schema)


def current_row(op: str, schema: int, values: Sequence[ConfigValue], chunk_size: int, max_rank: int) -> Row:
    """A row of raw results of this schema as it would be written today.

    Fields that came later have their neutral value. In schema 1 a tile of more rows than a segment has was cut down to
    the segment; since then it takes neighbouring segments together, so such a row is one of the smaller tile. And an
    expand that took the whole rank at once loaded one tile ahead, whatever num_stages was.
    """
    named = dict(zip(field_names(op, schema), values))
    row = {field.name: named.get(field.name, field.neutral) for field in FIELDS[op]}
    if schema == 1:
        expand = "expand_" if op == "add_lora" else ""
        if op != "shrink" and (row[expand + "block_k"] or 0) >= max_rank:
            row[expand + "num_stages"] = 1
        row |= {name: row_tile(rows or 0, chunk_size) for name, rows in row.items() if name.endswith("block_m")}
    return tuple(row.values())


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

    Checks each value by itself; whether a device can run the whole is resource_fault's question. With `schema`, the
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


class Limits(NamedTuple):
    """What one block may use on a device. Units: bytes, 32-bit registers, threads."""

    shared_memory: int
    registers: int = 65536
    threads: int = 1024
    programmatic_launch: bool = False  # griddepcontrol: compute capability 9.0, Triton 3.5, and later


# By compute capability: the "maximum amount of shared memory per thread block" of the table of technical specifications
# in the CUDA C++ programming guide. Of a GPU that is there, torch knows.
LIMITS: Mapping[str, Limits] = {
    **{architecture: Limits(99 << 10) for architecture in ("8.6", "8.9")},
    "8.0": Limits(163 << 10),
    "9.0": Limits(227 << 10, programmatic_launch=True),
    "10.0": Limits(227 << 10, programmatic_launch=True),
    "12.0": Limits(99 << 10, programmatic_launch=True),
}
UNLIMITED = Limits(1 << 30, programmatic_launch=True)  # of what is not known, and of Triton's interpreter
REGISTERS_PER_THREAD = 255
# Registers a kernel of ours needs beside its accumulators: addresses, masks and tiles on their way.
_OVERHEAD_REGISTERS = 40


def row_tile(block_m: int, chunk_size: int) -> int:
    """`block_m` rows, but no more than the power of two (and 16, the least a dot takes) that holds one segment."""
    return min(block_m, max(16, power_of_two(chunk_size)))


def group_size(block_m: int, chunk_size: int) -> int:
    """Neighbouring segments that a tile of block_m rows holds; 1 where it holds less than a whole one."""
    return max(1, block_m // max(16, power_of_two(chunk_size)))


def last_tile(block_n: int, column_tiles: int, columns: int) -> int:
    """Columns of the last tile of shrink's programs: where one program has all columns, no more than there are left.

    192 columns in 2 tiles of 128: the second one has 64.
    """
    left = columns - (column_tiles - 1) * block_n
    return min(block_n, max(16, power_of_two(left))) if left > 0 else block_n


def rank_step(block_k: int, max_rank: int) -> int:
    """Ranks that expand multiplies per step: no more than the power of two (and 16) that holds the whole rank."""
    return min(block_k, max(16, power_of_two(max_rank)))


def shrink_columns(block_n: int, column_tiles: int, key: Key) -> int:
    """Columns of a shrink program's accumulators, all together."""
    return (column_tiles - 1) * block_n + last_tile(block_n, column_tiles, key.num_slices * key.max_rank)


def _shrink_shared(row: Mapping[str, int], key: Key, itemsize: int) -> int:
    rows = row["block_m"]
    stage = (rows + shrink_columns(row["block_n"], row["column_tiles"], key)) * row["block_k"] * itemsize
    # The result goes through shared memory too, a tile of columns at a time; partials are float32, of each warp if
    # the warps share the steps.
    result = 4 * row["num_warps"] if row["sliced_k"] else itemsize if row["split_k"] == 1 else 4
    return max(row["num_stages"] * stage, rows * row["block_n"] * result)


def _expand_shared(row: Mapping[str, int], max_rank: int, itemsize: int) -> int:
    depth = rank_step(row["block_k"], max_rank)
    h_tile, b_tile, base_tile = row["block_m"] * depth, row["block_n"] * depth, row["block_m"] * row["block_n"]
    if depth < max_rank:  # the steps along the rank are pipelined
        return max(row["num_stages"] * (h_tile + b_tile), base_tile) * itemsize
    if row["num_stages"] > 1:  # the whole rank at once: h is loaded once, weights and base are pipelined
        return (h_tile + row["num_stages"] * (b_tile + base_tile)) * itemsize
    return max(h_tile + b_tile, base_tile) * itemsize  # the next tile's weights and base wait in registers


def _part_fault(op: str, row: Mapping[str, int], key: Key, limits: Limits) -> str | None:
    itemsize = DTYPE_BYTES[key.dtype]
    shared = _shrink_shared(row, key, itemsize) if op == "shrink" else _expand_shared(row, key.max_rank, itemsize)
    if shared > limits.shared_memory:
        return f"{op} needs {shared} bytes of shared memory, the device allows {limits.shared_memory}"
    threads = 32 * row["num_warps"]
    if threads > limits.threads:
        return f"{op} needs {threads} threads, the device allows {limits.threads}"
    if (row["maxnreg"] or 0) * threads > limits.registers:
        return f"{op} reserves {row['maxnreg'] * threads} registers, the device allows {limits.registers}"
    tile = row["block_m"] * (
        shrink_columns(row["block_n"], row["column_tiles"], key) if op == "shrink" else row["block_n"]
    )
    if row.get("sliced_k"):
        if row["block_k"] < 16 * row["num_warps"]:
            return f"{op}: sliced_k needs 16 columns of block_k or more for each of {row['num_warps']} warps"
        tile *= row["num_warps"]
    registers = tile // threads + _OVERHEAD_REGISTERS
    if op == "shrink" and key.dtype == "float32":
        # No tensor core takes float32, so what is multiplied in a step has to be in registers too. Where that was 272
        # of them, ptxas (12.8 and 13.0) spilled 9 kB a thread, and of every four rows three came out wrong in half the
        # columns (H100), although each sum in the PTX has the right products.
        columns = shrink_columns(row["block_n"], row["column_tiles"], key)
        registers += (row["block_m"] + columns) * row["block_k"] // threads
    available = min(row["maxnreg"] or REGISTERS_PER_THREAD, limits.registers // threads)
    if registers > available:
        return f"{op} needs about {registers} registers a thread, {available} are available"
    return None


def resource_fault(row: Sequence[ConfigValue], key: Key, limits: Limits) -> str | None:
    """Why a device with these limits cannot run a (well formed) config at this key, or None.

    An estimate from tile sizes: the tests hold it against what Triton and ptxas report.
    """
    if dict(zip(FIELD_NAMES[key.op], row)).get("overlap") and not limits.programmatic_launch:
        return "overlap needs programmatic dependent launch (compute capability 9.0, Triton 3.5)"
    faults = (_part_fault(op, part, key, limits) for op, _, part in parts(key.op, row))
    return next(filter(None, faults), None)


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
