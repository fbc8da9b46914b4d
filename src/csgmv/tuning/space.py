"""The configs worth trying at a key: what a device can run, the promising ones first.

A key's whole space has tens of thousands of configs. Before anything is compiled, those that the device cannot run are
dropped, and a model of bytes and waves orders the rest: first the tilings, each with the block_k and stages that the
model likes best. The search measures the first few of these, then walks from the best to their neighbours.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Union

from csgmv import rules
from csgmv.config import ExpandConfig, ShrinkConfig, default_config, to_row
from csgmv.tuning.plan import Task, parts

Part = Union[ShrinkConfig, ExpandConfig]

# The values that the search takes, per field, in the order in which it walks from one to its neighbours. block_m is
# left out: it follows from the chunk size.
VALUES: Mapping[str, Mapping[str, tuple[int | None, ...]]] = {
    "shrink": {
        "block_n": (16, 32, 64, 128),
        "block_k": (64, 128, 256, 512),  # rows of 64 16-bit numbers fill a line of the cache
        "column_tiles": (1, 2, 3, 4, 6, 8),
        "split_k": (1, 2, 3, 4, 6, 8, 12, 16, 32),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6),
        "maxnreg": (None, 128, 168),
    },
    "expand": {
        "block_n": (32, 64, 128, 256),
        "block_k": (16, 32, 64, 128, 256),
        "column_tiles": (1, 2, 3, 4, 6, 8, 12, 16, 32),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2, 3, 4),
        "maxnreg": (None, 128, 168),
    },
}

# What the model assumes of an SM: bytes per microsecond out of DRAM and L2 (an H200's 4.2 TB/s over 132 SMs), dot
# operations per microsecond (wgmma from 64 rows on, mma below), the latency of a dependent load, in microseconds.
_DRAM_PER_SM = 32e3
_L2_PER_SM = 70e3
_DOTS_PER_SM = {True: 4e6, False: 2e6}
_LATENCY = 0.8
_START = 2.0  # of a program: segment → adapter → rank → rows, each load waiting for the one before
_LAUNCH = 2.0


class Device(NamedTuple):
    """What the space has to know of a GPU."""

    limits: rules.Limits
    sm_count: int


def default_row(key: rules.Key, limits: rules.Limits) -> rules.Row | None:
    """The built-in default at this key, or None where the device cannot run it."""
    try:
        row = to_row(default_config(key, limits))
    except ValueError:
        return None
    return row if rules.resource_fault(row, key, limits) is None else None


def shortlist(task: Task, device: Device, most: int) -> tuple[list[Part], Counter[str]]:
    """The most promising config of each tiling, best first, at most `most`; and how many were pruned, by reason."""
    configs, pruned = _runnable(task.key._replace(segment_bucket=1), device.limits)
    best: dict[tuple[int, int, int, int], tuple[float, Part]] = {}
    for config in configs:
        cost = predicted_us(config, task, device)
        tiling = (config.block_m, config.block_n, config.column_tiles, getattr(config, "split_k", 1))
        if tiling not in best or cost < best[tiling][0]:
            best[tiling] = cost, config
    ordered = sorted(best, key=lambda tiling: (best[tiling][0], tiling))
    # Of each split_k that is not hopeless the best tiling comes first: add_lora, for which partials cost less, joins
    # several, and the model knows least about them.
    leaders = {tiling[-1]: tiling for tiling in reversed(ordered) if best[tiling][0] <= 2 * best[ordered[0]][0]}
    chosen = list(dict.fromkeys([*sorted(leaders.values(), key=ordered.index), *ordered]))[:most]
    pruned = Counter(pruned)
    pruned["slower by the model of bytes and waves"] = len(configs) - len(chosen)
    return [best[tiling][1] for tiling in chosen], pruned


def neighbours(config: Part, task: Task, device: Device) -> Iterator[Part]:
    """Configs that differ from this one in a single field, by one step (stages and register caps by any).

    Those that the model finds half as slow again are left out.
    """
    bearable = 1.5 * predicted_us(config, task, device)
    for name, values in VALUES[config.op].items():
        present = getattr(config, name)
        if present not in values:
            continue
        at = values.index(present)
        near = values if name in ("num_stages", "maxnreg") else values[max(at - 1, 0) : at + 2]
        for value in near:
            change: Any = {name: value}
            other: Part = replace(config, **change)
            if value == present or not _sensible(other, task.key) or not _fits(other, task.key, device.limits):
                continue
            if predicted_us(other, task, device) <= bearable:
                yield other


@functools.lru_cache(maxsize=64)
def _runnable(key: rules.Key, limits: rules.Limits) -> tuple[tuple[Part, ...], Counter[str]]:
    """Every tiling with every depth of pipeline, at a plain number of warps and without a register cap."""
    configs, pruned = [], Counter[str]()
    values = VALUES[key.op]
    names = [name for name in values if name not in ("num_warps", "maxnreg")]
    for block_m in _row_blocks(key.chunk_size):
        for combination in itertools.product(*(values[name] for name in names)):
            fields: dict[str, Any] = {"block_m": block_m, **dict(zip(names, combination))}
            config: Part = ShrinkConfig(**fields) if key.op == "shrink" else ExpandConfig(**fields)
            if not _sensible(config, key):
                continue
            config = replace(config, num_warps=_plain_warps(config))
            fault = rules.resource_fault(to_row(config), key, limits)
            if fault is None:
                configs.append(config)
            else:
                pruned["registers" if "registers" in fault else "shared memory"] += 1
    return tuple(configs), pruned


def _row_blocks(chunk_size: int) -> list[int]:
    """Tiles of as many rows as a segment may have (up to 128), and half as many."""
    whole = rules.row_tile(128, chunk_size)
    return [whole, whole // 2] if whole > 16 else [whole]


def _plain_warps(config: Part) -> int:
    """Four warps, or eight where four would hold more than 128 accumulators a thread."""
    tiles = config.column_tiles if isinstance(config, ShrinkConfig) else 1
    return 8 if config.block_m * config.block_n * tiles > 128 * 128 else 4


def _sensible(config: Part, key: rules.Key) -> bool:
    """Whether no smaller config does the same work: no tile, split or block lies wholly out of range."""
    if isinstance(config, ShrinkConfig):
        columns = key.num_slices * key.max_rank
        return (
            (config.column_tiles - 1) * config.block_n < columns
            and config.block_n < 2 * max(16, columns)
            and config.block_k < 2 * max(64, key.input_dim)
            and (config.split_k == 1 or config.split_k * config.block_k <= key.input_dim)
            and config.num_stages <= max(2, _steps(config, key))
        )
    widest, whole_rank = max(key.slice_widths), rules.rank_step(rules.MAX_RANK, key.max_rank)
    walks = config.column_tiles > 1 or config.block_k < key.max_rank
    return (
        (config.column_tiles - 1) * config.block_n < widest
        and config.block_n < 2 * max(32, widest)
        and whole_rank // 2 <= config.block_k <= whole_rank
        and (walks or config.num_stages == 1)
    )


def _steps(config: ShrinkConfig, key: rules.Key) -> int:
    """Steps of a program over its part of input_dim."""
    return -(-key.input_dim // (config.block_k * config.split_k))


def _fits(config: Part, key: rules.Key, limits: rules.Limits) -> bool:
    return rules.resource_fault(to_row(config), key, limits) is None


class _Cost(NamedTuple):
    """What the model knows of a launch. Units: bytes, multiply-adds; of one program unless stated otherwise."""

    programs: int
    steps: int  # loads that wait for each other
    in_flight: int  # bytes on their way at a time
    shared: int
    accumulators: int  # numbers
    traffic: int  # bytes out of L2, of all programs
    dram: int  # bytes that the launch must move at least
    dots: int  # of all programs
    launches: int = 1


def _shrink_cost(config: ShrinkConfig, task: Task, itemsize: int) -> _Cost:
    key, columns = task.key, task.key.num_slices * task.key.max_rank
    rows, row_tiles = _row_tiles(config.block_m, task)
    width = config.block_n * config.column_tiles
    programs = row_tiles * -(-columns // width) * config.split_k
    steps = _steps(config, key)
    stage = (rows + min(width, columns)) * config.block_k * itemsize
    staged = task.tokens * columns * (itemsize if config.split_k == 1 else 8 * config.split_k)
    depth = config.num_stages - 1
    return _Cost(
        programs=programs,
        steps=-(-steps // depth),
        in_flight=min(depth, steps) * stage,
        shared=config.num_stages * (config.block_m + width) * config.block_k * itemsize,
        accumulators=config.block_m * width,
        traffic=programs * steps * stage + staged,
        dram=(task.tokens + task.adapters * columns) * key.input_dim * itemsize + staged,
        dots=programs * steps * config.block_m * width * config.block_k,
        launches=1 if config.split_k == 1 else 2,
    )


def _expand_cost(config: ExpandConfig, task: Task, itemsize: int) -> _Cost:
    key, output_dim = task.key, sum(task.key.slice_widths)
    rows, row_tiles = _row_tiles(config.block_m, task)
    run = config.block_n * config.column_tiles
    programs = row_tiles * sum(-(-width // run) for width in key.slice_widths)
    rank_steps = -(-key.max_rank // config.block_k)
    # With the whole rank in one step, the next tile's weights and base are loaded while this one is computed.
    steps = 1 + config.column_tiles / 2 if rank_steps == 1 else config.column_tiles * (1 + rank_steps / 2)
    tile = (config.block_n * config.block_k + rows * config.block_n) * itemsize
    held = (config.block_n * max(config.num_stages, 1) + config.block_m) * config.block_k * itemsize
    return _Cost(
        programs=programs,
        steps=round(steps),
        in_flight=tile * (2 if rank_steps == 1 and config.column_tiles > 1 else 1),
        shared=held,
        accumulators=config.block_m * config.block_n * 2,  # the base tile is held beside the sums
        traffic=(row_tiles * output_dim * (key.max_rank + 2 * rows) + programs * rows * key.max_rank) * itemsize,
        dram=(2 * task.tokens * output_dim + task.adapters * output_dim * key.max_rank) * itemsize,
        dots=row_tiles * config.block_m * output_dim * key.max_rank,
    )


def _row_tiles(block_m: int, task: Task) -> tuple[int, int]:
    """Rows that a tile really has, and the number of tiles."""
    rows = min(-(-task.tokens // task.num_segments), block_m)
    return rows, -(-task.tokens // rows)


def predicted_us(config: Part, task: Task, device: Device) -> float:
    """Roughly how long a launch takes, in microseconds: good enough to tell hopeless configs from candidates."""
    itemsize = rules.DTYPE_BYTES[task.key.dtype]
    if isinstance(config, ShrinkConfig):
        cost = _shrink_cost(config, task, itemsize)
    else:
        cost = _expand_cost(config, task, itemsize)
    threads = 32 * config.num_warps
    registers = (cost.accumulators // threads + 64) * threads
    resident = max(1, min(device.limits.shared_memory // cost.shared, device.limits.registers // registers, 16))
    slots = device.sm_count * resident
    busy = device.sm_count * min(1.0, cost.programs / device.sm_count)
    program_us = _START + _LATENCY * cost.steps
    streaming = max(
        cost.dram / (_DRAM_PER_SM * busy),
        cost.traffic / (_L2_PER_SM * busy),
        cost.traffic * _LATENCY / (min(cost.programs, slots) * cost.in_flight),
        cost.dots / (_DOTS_PER_SM[config.block_m >= 64] * busy),
    )
    return cost.launches * _LAUNCH + program_us + max(streaming, (cost.programs / slots - 1) * program_us)


def size(key: rules.Key, limits: rules.Limits) -> int:
    """How many configs of a key's space the device can run: tilings, pipelines, warps and register caps.

    Of an add_lora key: of both parts together, since the search tries them one after the other.
    """
    if key.op == "add_lora":
        return sum(size(part, limits) for part in parts(key))
    return _size(key._replace(segment_bucket=1), limits)


@functools.cache
def _size(key: rules.Key, limits: rules.Limits) -> int:
    launches = itertools.product(VALUES[key.op]["num_warps"], VALUES[key.op]["maxnreg"])
    tilings, _ = _runnable(key, limits)
    return sum(
        _fits(replace(config, num_warps=warps, maxnreg=cap), key, limits)  # type: ignore[arg-type]
        for warps, cap in launches
        for config in tilings
    )
