"""How long a launch takes, by a model of bytes and waves: good enough to tell hopeless configs from candidates."""

from __future__ import annotations

import statistics
from typing import NamedTuple, Union

from csgmv import footprint, rules
from csgmv.config import ExpandConfig, ShrinkConfig
from csgmv.tuning.plan import Batch, Task

Part = Union[ShrinkConfig, ExpandConfig]

# What the model assumes of an SM: bytes per microsecond out of DRAM and L2, dot operations per microsecond (wgmma from
# 64 rows on, mma below), microseconds. Fitted to the candidates in configs/ at 663059c (H200), so to kernels without
# tiles of several segments and without expand's pipelines; today's correct it key by key (experience.py).
_DRAM_PER_SM = 36e3
_L2_PER_SM = 110e3
_DOTS_PER_SM = {True: 5e6, False: 1e6}
_LATENCY = 0.15  # of a load that waits for the one before
_START = 1.2  # of a program: segment → adapter → rank → rows, each load waiting for the one before
_LAUNCH = 3.0
_ISSUE = 0.07  # of a step of one tile whose threads hold 64 sums each
_CHAIN = 0.01  # of an mma, 16 input columns long, that adds to what the one before it gave
_ADD_UP = 0.3  # of adding up 256 sums that all warps have their parts of
_REGISTERS = 70  # a thread, beside the sums
_OVERLAP = 1.4  # exponent of the norm that joins what DRAM, L2, dots, latencies and waves take: 1 is the sum


class Device(NamedTuple):
    """What model and space have to know of a GPU."""

    limits: footprint.Limits
    sm_count: int


class RowTiles(NamedTuple):
    """How a batch's rows fall to programs (those of one tile of columns)."""

    programs: int
    rows: float  # of a tile


def row_tiles(block_m: int, key: rules.Key, batch: Batch) -> RowTiles:
    """A segment is cut into tiles; or, where tiles are larger, several segments are taken together."""
    group = footprint.group_size(block_m, key.chunk_size)
    if group == 1:
        rows = min(-(-batch.tokens // batch.num_segments), block_m)
        return RowTiles(max(batch.num_segments, -(-batch.tokens // rows)), rows)
    groups = -(-batch.num_segments // group)
    programs = groups + min(batch.adapters - 1, batch.num_segments - groups)  # these for runs that begin within a group
    return RowTiles(programs, batch.tokens / programs)


class _Cost(NamedTuple):
    """What the model knows of a launch. Units: bytes, multiply-adds; of one program unless stated otherwise."""

    programs: int
    waits: float  # loads that wait for each other
    issues: float  # steps, of one tile of sums each
    in_flight: float  # bytes on their way at a time
    shared: int
    accumulators: int  # numbers
    traffic: float  # bytes out of L2, of all programs
    dram: float  # bytes that the launch must move at least
    dots: float  # of all programs
    launches: int = 1
    copies: int = 1  # of the accumulators, one to each warp
    chain: float = 0  # mma that wait for each other


def _shrink_cost(config: ShrinkConfig, key: rules.Key, batch: Batch, itemsize: int, paired: bool) -> _Cost:
    columns = key.num_slices * key.max_rank
    tiles = row_tiles(config.block_m, key, batch)
    width = footprint.shrink_columns(config.block_n, config.column_tiles, key)
    programs = tiles.programs * -(-columns // width) * config.split_k
    steps = -(-key.input_dim // (config.block_k * config.split_k))
    stage = (tiles.rows + min(width, columns)) * config.block_k * itemsize
    partials = batch.tokens * columns * (itemsize if config.split_k == 1 else 8 * config.split_k)
    depth = config.num_stages - 1
    copies = config.num_warps if config.sliced_k else 1
    return _Cost(
        programs=programs,
        waits=-(-steps // depth),
        issues=steps * config.column_tiles,
        in_flight=min(depth, steps) * stage,
        shared=config.num_stages * (config.block_m + width) * config.block_k * itemsize,
        accumulators=config.block_m * width,
        traffic=programs * steps * stage + partials,
        dram=(batch.tokens + batch.adapters * columns) * key.input_dim * itemsize + partials,
        dots=programs * steps * config.block_m * width * config.block_k,
        launches=1 if config.split_k == 1 or paired else 2,
        copies=copies,
        chain=steps * config.block_k / 16 / copies if config.block_m < 64 else 0,
    )


def _expand_cost(config: ExpandConfig, key: rules.Key, batch: Batch, itemsize: int) -> _Cost:
    output_dim = sum(key.slice_widths)
    tiles = row_tiles(config.block_m, key, batch)
    run = config.block_n * config.column_tiles
    programs = tiles.programs * sum(-(-width // run) for width in key.slice_widths)
    rank_steps = -(-key.max_rank // config.block_k)
    # With the whole rank in one step, the next tiles' weights and base are loaded while this one is computed.
    waits = 1 + config.column_tiles / 3 if rank_steps == 1 else config.column_tiles * (1 + rank_steps / 2)
    tile = (config.block_n * config.block_k + tiles.rows * config.block_n) * itemsize
    ahead = config.num_stages - 1 if rank_steps == 1 else 0  # tiles on their way through shared memory
    held = (config.block_n * config.num_stages + config.block_m) * config.block_k * itemsize
    if ahead:
        held += config.num_stages * config.block_m * config.block_n * itemsize
    weights, h = tiles.programs * output_dim * key.max_rank, programs * tiles.rows * key.max_rank
    return _Cost(
        programs=programs,
        waits=waits,
        issues=config.column_tiles * rank_steps,
        in_flight=tile * max(ahead, 2 if rank_steps == 1 and config.column_tiles > 1 else 1),
        shared=held,
        # The base tile is held beside the sums, and the next one, too, unless they wait in shared memory.
        accumulators=config.block_m * config.block_n * (3 if ahead else 4) // 2,
        traffic=(weights + 2 * batch.tokens * output_dim + h) * itemsize,
        dram=(2 * batch.tokens * output_dim + batch.adapters * output_dim * key.max_rank) * itemsize,
        dots=tiles.programs * config.block_m * output_dim * key.max_rank,
    )


def predicted_us(config: Part, task: Task, device: Device, *, paired: bool = False) -> float:
    """Roughly how long a launch takes, in microseconds: good enough to tell hopeless configs from candidates.

    The geometric mean over the batches that decide. `paired`: as a part of add_lora.
    """
    if task.tuned_on == 1:
        return _predicted(config, task.key, task.batches[0], device, paired)
    return statistics.geometric_mean(_predicted(config, task.key, batch, device, paired) for batch in task.deciding)


def _predicted(config: Part, key: rules.Key, batch: Batch, device: Device, paired: bool) -> float:
    itemsize = rules.DTYPE_BYTES[key.dtype]
    if isinstance(config, ShrinkConfig):
        cost = _shrink_cost(config, key, batch, itemsize, paired)
    else:
        cost = _expand_cost(config, key, batch, itemsize)
    threads = 32 * config.num_warps
    wanted, cap = (
        cost.accumulators * cost.copies / threads + _REGISTERS,
        config.maxnreg or footprint.REGISTERS_PER_THREAD,
    )
    registers = min(wanted, cap) * threads
    resident = max(1.0, min(device.limits.shared_memory // cost.shared, device.limits.registers // registers, 16))
    slots = device.sm_count * resident
    busy = min(device.sm_count, cost.programs)
    program_us = _START + _LATENCY * cost.waits + _ISSUE * cost.issues * cost.accumulators / (64 * threads)
    program_us += _CHAIN * cost.chain + (_ADD_UP * cost.accumulators / 256 if cost.copies > 1 else 0)
    shares = (
        cost.dram / (_DRAM_PER_SM * busy),
        cost.traffic / (_L2_PER_SM * busy),
        cost.traffic * _LATENCY / (min(cost.programs, slots) * cost.in_flight),
        cost.dots / (_DOTS_PER_SM[config.block_m >= 64] * busy),
        max(cost.programs / slots - 1, 0) * program_us,
    )
    streaming: float = sum(share**_OVERLAP for share in shares) ** (1 / _OVERLAP)
    return cost.launches * _LAUNCH + program_us + streaming * (2 if wanted > cap else 1)  # spills
