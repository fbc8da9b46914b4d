"""What one block of a launch takes on a device: its tiles as they are cut, shared memory, registers, threads.

Standard library only, like `rules`, and for the same reason.

    row_tile, group_size, last_tile, rank_step, shrink_columns    what tiles come to at a key
    resource_fault                                                why a device cannot run a config there, if it cannot
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import rules


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
    return min(block_m, max(16, rules.power_of_two(chunk_size)))


def group_size(block_m: int, chunk_size: int) -> int:
    """Neighbouring segments that a tile of block_m rows holds; 1 where it holds less than a whole one."""
    return max(1, block_m // max(16, rules.power_of_two(chunk_size)))


def last_tile(block_n: int, column_tiles: int, columns: int) -> int:
    """Columns of the last tile of shrink's programs: where one program has all columns, no more than there are left.

    192 columns in 2 tiles of 128: the second one has 64.
    """
    left = columns - (column_tiles - 1) * block_n
    return min(block_n, max(16, rules.power_of_two(left))) if left > 0 else block_n


def rank_step(block_k: int, max_rank: int) -> int:
    """Ranks that expand multiplies per step: no more than the power of two (and 16) that holds the whole rank."""
    return min(block_k, max(16, rules.power_of_two(max_rank)))


def shrink_columns(block_n: int, column_tiles: int, key: rules.Key) -> int:
    """Columns of a shrink program's accumulators, all together."""
    return (column_tiles - 1) * block_n + last_tile(block_n, column_tiles, key.num_slices * key.max_rank)


def _shrink_shared(row: Mapping[str, int], key: rules.Key, itemsize: int) -> int:
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


def _part_fault(op: str, row: Mapping[str, int], key: rules.Key, limits: Limits) -> str | None:
    itemsize = rules.DTYPE_BYTES[key.dtype]
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


def resource_fault(row: Sequence[rules.ConfigValue], key: rules.Key, limits: Limits) -> str | None:
    """Why a device with these limits cannot run a (well formed) config at this key, or None.

    An estimate from tile sizes: the tests hold it against what Triton and ptxas report.
    """
    if dict(zip(rules.FIELD_NAMES[key.op], row)).get("overlap") and not limits.programmatic_launch:
        return "overlap needs programmatic dependent launch (compute capability 9.0, Triton 3.5)"
    faults = (_part_fault(op, part, key, limits) for op, _, part in rules.parts(key.op, row))
    return next(filter(None, faults), None)
