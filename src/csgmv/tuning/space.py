"""The configs worth trying at a key: what a device can run, in a grid that all keys of a family share.

A key's whole space has tens of thousands of configs. Before anything is compiled, those that the device cannot run are
dropped, and a model of bytes and waves orders the rest: first the tilings, each with a few block_k and the depth of
pipeline that goes with them, whatever the key, so that keys propose the same binaries. The search measures the first
few of these, then walks from the best to their neighbours.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from csgmv import footprint, rules
from csgmv.config import ExpandConfig, ShrinkConfig, default_config, to_row
from csgmv.tuning.model import Device, Part, predicted_us, row_tiles
from csgmv.tuning.plan import Task, parts

Estimate = Callable[[Part, Task], float]

# The values that the search takes, per field, in the order in which it walks from one to its neighbours.
VALUES: Mapping[str, Mapping[str, tuple[int | None, ...]]] = {
    "shrink": {
        "block_m": (16, 32, 64, 128, 256),
        "block_n": (16, 32, 64, 128),
        "block_k": (64, 128, 256, 512),  # rows of 64 16-bit numbers fill a line of the cache
        "column_tiles": (1, 2, 3, 4, 6, 8),
        "split_k": (1, 2, 4, 8, 16, 32),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6),
        "maxnreg": (None, 128, 168),
        "sliced_k": (False, True),
    },
    "expand": {
        "block_m": (16, 32, 64, 128, 256),
        "block_n": (32, 64, 128, 256),
        "block_k": (16, 32, 64, 128, 256),
        "column_tiles": (1, 2, 3, 4, 6, 8, 12, 16),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2, 3, 4),
        "maxnreg": (None, 128, 168),
        "prefetch": (False, True),
    },
}
# What did well on a large batch of one adapter (H200, 30,720 tokens, rank 64), although the model thinks little of it:
# one wave of programs, their tiles as large as registers and shared memory allow. Tried first where tiles get so full.
SEEDS: Mapping[str, tuple[Part, ...]] = {
    "shrink": (
        ShrinkConfig(256, 128, 64, column_tiles=2, num_warps=8, num_stages=4),
        ShrinkConfig(256, 64, 64, column_tiles=3, num_warps=8, num_stages=4),
        ShrinkConfig(128, 128, 64, num_warps=4, num_stages=3),
        ShrinkConfig(128, 64, 64, num_warps=4, num_stages=4),
        ShrinkConfig(64, 64, 128, num_warps=4, num_stages=3),
    ),
    "expand": (
        ExpandConfig(64, 128, rules.MAX_RANK, column_tiles=8, num_warps=4, num_stages=3, prefetch=True),
        ExpandConfig(64, 64, rules.MAX_RANK, column_tiles=8, num_warps=4, num_stages=4, prefetch=True),
        ExpandConfig(128, 64, rules.MAX_RANK, column_tiles=8, num_warps=8, num_stages=4, prefetch=True),
    ),
}
# And on smaller ones: what many keys of 1 to 2,048 tokens ended at (1,024 to 4,096 input columns).
SMALL_SEEDS: Mapping[str, tuple[Part, ...]] = {
    "shrink": (
        ShrinkConfig(16, 16, 512, num_warps=4, num_stages=5, sliced_k=True),
        ShrinkConfig(16, 32, 512, num_warps=4, num_stages=4, sliced_k=True),
    ),
    "expand": (),
}
# Fields that the grid leaves to the walk: what goes with a tiling is one choice for all keys.
_WALKED = ("num_warps", "num_stages", "maxnreg", "prefetch")
_PIPELINE = 64 << 10  # bytes on their way in one program, beyond which more stages bring little
_CROWDED = 8  # programs an SM, beyond which splitting input_dim further brings nothing


def default_row(key: rules.Key, limits: footprint.Limits) -> rules.Row | None:
    """The built-in default at this key, or None where the device cannot run it."""
    try:
        row = to_row(default_config(key, limits))
    except ValueError:
        return None
    return row if footprint.resource_fault(row, key, limits) is None else None


def tiling(config: Part) -> tuple[int, ...]:
    """What of a config decides which numbers a program, and each of its warps, works on."""
    shared = getattr(config, "sliced_k", False), getattr(config, "split_k", 1)
    return config.block_m, config.block_n, config.column_tiles, *shared


def shortlist(
    task: Task, device: Device, most: int, *, paired: bool = False, estimate: Estimate | None = None
) -> tuple[list[Part], Counter[str]]:
    """The most promising config of each tiling, best first, at most `most`; and how many were pruned, by reason.

    Args:
        task, device: what for.
        most: the length of the list.
        paired: the config is for a part of add_lora, for which partial sums cost less.
        estimate: improves the model's guess for those that it finds best.
    """
    grid, pruned = _grid(task.key._replace(segment_bucket=1), device.limits)
    best: dict[tuple[int, ...], tuple[float, Part]] = {}
    guessed = list(_split(grid, task, device))
    for config in guessed:
        cost = predicted_us(config, task, device, paired=paired)
        if tiling(config) not in best or cost < best[tiling(config)][0]:
            best[tiling(config)] = cost, config
    ordered = sorted(best, key=lambda tile: (best[tile][0], tile))[: 4 * most]
    if estimate is not None:
        best.update({tile: (estimate(best[tile][1], task), best[tile][1]) for tile in ordered})
        ordered.sort(key=lambda tile: (best[tile][0], tile))
    # Of what the model knows least of, the best tiling that is not hopeless comes first, for every value.
    leaders: dict[tuple[str, int], tuple[int, ...]] = {}
    for tile in ordered:
        if best[tile][0] <= 1.5 * best[ordered[0]][0]:
            for name, value in zip(("block_m", "sliced_k", "split_k"), (tile[0], *tile[-2:])):
                leaders.setdefault((name, value), tile)
    chosen = dict.fromkeys([*sorted(set(leaders.values()), key=ordered.index), *ordered])
    configs = list(dict.fromkeys([*_seeds(task, device), *(best[tile][1] for tile in chosen)]))[:most]
    pruned = Counter(pruned)
    pruned["slower by the model of bytes and waves"] = len(guessed) - len(configs)
    return configs, +pruned


def _seeds(task: Task, device: Device) -> Iterator[Part]:
    """SEEDS that the task can use, where an SM gets a tile of 64 rows or more; else SMALL_SEEDS."""
    full = max(batch.tokens for batch in task.deciding) >= 64 * device.sm_count
    for seed in (SEEDS if full else SMALL_SEEDS)[task.key.op]:
        block_k = seed.block_k if task.key.op == "shrink" else footprint.rank_step(seed.block_k, task.key.max_rank)
        config = replace(seed, block_k=block_k)
        plain = _plain(config, task.key, device.limits.shared_memory)
        yield from itertools.islice((one for one in (config, plain) if usable(one, task, device)), 1)


def neighbours(config: Part, task: Task, device: Device, *, paired: bool = False) -> Iterator[tuple[str, Part]]:
    """Configs that differ from this one in a single field, which is named, by one step (stages, register caps by any).

    Those that the model finds half as slow again are left out.
    """
    bearable = 1.5 * predicted_us(config, task, device, paired=paired)
    for name, values in VALUES[config.op].items():
        present = getattr(config, name)
        if present not in values:
            continue
        at = values.index(present)
        near = values if name in ("num_stages", "maxnreg") else values[max(at - 1, 0) : at + 2]
        for value in near:
            change: Any = {name: value}
            other: Part = replace(config, **change)
            if value == present or not usable(other, task, device):
                continue
            if predicted_us(other, task, device, paired=paired) <= bearable:
                yield name, other


def usable(config: Part, task: Task, device: Device) -> bool:
    """Whether the device can run it, and no smaller config does the same work on any of the task's batches."""
    return (
        _sensible(config, task.key)
        and _merges(config.block_m, task)
        and footprint.resource_fault(to_row(config), task.key, device.limits) is None
    )


@functools.lru_cache(maxsize=64)
def _grid(key: rules.Key, limits: footprint.Limits) -> tuple[tuple[Part, ...], Counter[str]]:
    """Every tiling with every block_k, each with its plain pipeline and warps; split_k is left at 1."""
    configs, pruned = [], Counter[str]()
    values = VALUES[key.op]
    names = [name for name in values if name not in (*_WALKED, "split_k")]
    for combination in itertools.product(*(values[name] for name in names)):
        fields: dict[str, Any] = dict(zip(names, combination))
        config: Part = ShrinkConfig(**fields) if key.op == "shrink" else ExpandConfig(**fields)
        config = _plain(config, key, limits.shared_memory)
        if config.block_m not in _row_blocks(key.chunk_size) or not _sensible(config, key):
            continue
        fault = footprint.resource_fault(to_row(config), key, limits)
        if fault is None:
            configs.append(config)
        else:
            pruned["registers" if "registers" in fault else "shared memory"] += 1
    return tuple(configs), pruned


def _row_blocks(chunk_size: int) -> tuple[int, ...]:
    """Tiles of half a segment, of one, and of several neighbouring ones."""
    whole = footprint.row_tile(256, chunk_size)
    return tuple(rows for rows in (16, 32, 64, 128, 256) if rows >= whole // 2)


def _merges(block_m: int, task: Task) -> bool:
    """Whether tiles of this many rows are not larger than what an adapter has, in some batch that decides."""
    rows = max(-(-batch.tokens // batch.adapters) for batch in task.deciding)
    return block_m <= max(footprint.row_tile(256, task.key.chunk_size), rules.power_of_two(rows))


def _plain(config: Part, key: rules.Key, shared_memory: int) -> Part:
    """The pipeline and the warps that go with a tiling, the same at every key of a family."""
    columns = config.block_n
    if isinstance(config, ShrinkConfig):
        columns = footprint.shrink_columns(config.block_n, config.column_tiles, key)
    alone = config.block_m * columns > 128 * 128  # its sums leave no room for another program on the SM
    warps = 8 if alone else 4
    itemsize = rules.DTYPE_BYTES[key.dtype]
    if isinstance(config, ShrinkConfig):
        stage = (config.block_m + columns) * config.block_k * itemsize
        room = shared_memory if alone or config.sliced_k else 3 * _PIPELINE // 2
        deepest = 5 if config.sliced_k else 4  # few programs with little to do: what they wait for is memory
        return replace(config, num_warps=warps, num_stages=max(2, min(deepest, room // stage)))
    if config.block_k < key.max_rank:
        return replace(config, num_warps=warps, num_stages=2)
    if config.block_m < 64 or config.column_tiles == 1:
        return replace(config, num_warps=warps, num_stages=1)
    stage = (config.block_m + config.block_k) * config.block_n * itemsize
    return replace(config, num_warps=warps, num_stages=max(1, min(4, 3 * _PIPELINE // (2 * stage))))


def _split(grid: tuple[Part, ...], task: Task, device: Device) -> Iterator[Part]:
    """The grid's configs, those of shrink with every split_k that is of use."""
    for config in grid:
        if _merges(config.block_m, task):
            yield config
            if isinstance(config, ShrinkConfig):
                yield from itertools.islice(splits(config, task, device), 1, None)


def splits(config: ShrinkConfig, task: Task, device: Device) -> Iterator[ShrinkConfig]:
    """The config with every split_k, from 1 on, that leaves no SM with more programs than it can use."""
    yield config if config.split_k == 1 else replace(config, split_k=1)
    columns = task.key.num_slices * task.key.max_rank
    groups = -(-columns // (config.block_n * config.column_tiles))
    programs = groups * min(row_tiles(config.block_m, task.key, batch).programs for batch in task.deciding)
    if footprint.resource_fault(to_row(replace(config, split_k=2)), task.key, device.limits) is not None:
        return  # float32 partials take more than what the grid was held against
    for split_k in VALUES["shrink"]["split_k"][1:]:
        assert split_k is not None
        if programs * split_k > _CROWDED * device.sm_count or split_k * config.block_k > task.key.input_dim:
            return
        yield replace(config, split_k=split_k)


def _sensible(config: Part, key: rules.Key) -> bool:
    """Whether no smaller config does the same work: no tile, split or block lies wholly out of range."""
    if isinstance(config, ShrinkConfig):
        columns = key.num_slices * key.max_rank
        return (
            (config.column_tiles - 1) * config.block_n < columns
            and config.block_n < 2 * max(16, columns)
            and config.block_k < 2 * max(64, key.input_dim)
            and (config.split_k == 1 or config.split_k * config.block_k <= key.input_dim)
            and (not config.sliced_k or _slices_well(config))
        )
    widest, whole_rank = max(key.slice_widths), footprint.rank_step(rules.MAX_RANK, key.max_rank)
    walks = config.column_tiles > 1 or config.block_k < key.max_rank
    return (
        (config.column_tiles - 1) * config.block_n < widest
        and config.block_n < 2 * max(32, widest)
        and whole_rank // 2 <= config.block_k <= whole_rank
        and (walks or config.num_stages == 1)
        and (not config.prefetch or (config.num_stages > 1 and config.block_k >= key.max_rank))
    )


def _slices_well(config: ShrinkConfig) -> bool:
    """Whether the tile is small enough for its warps to share a step, each having columns of it worth a load."""
    tile = config.block_m * config.block_n * config.column_tiles
    return tile <= 32 * 32 and config.block_k >= 32 * config.num_warps


def size(key: rules.Key, limits: footprint.Limits) -> int:
    """How many configs of a key's space the device can run: tilings, splits, pipelines, warps and register caps.

    Of an add_lora key: of both parts together, since the search tries them one after the other.
    """
    if key.op == "add_lora":
        return sum(size(part, limits) for part in parts(key))
    return _size(key._replace(segment_bucket=1), limits)


@functools.cache
def _size(key: rules.Key, limits: footprint.Limits) -> int:
    return sum(
        _splits_that_fit(config, key) * _launches_that_fit(config, key, limits) for config in _grid(key, limits)[0]
    )


def _splits_that_fit(config: Part, key: rules.Key) -> int:
    splits = VALUES[key.op].get("split_k", (1,))
    return sum(1 for split_k in splits if split_k == 1 or (split_k or 0) * config.block_k <= key.input_dim)


def _launches_that_fit(config: Part, key: rules.Key, limits: footprint.Limits) -> int:
    fit = 0
    walks = {name: values for name, values in VALUES[key.op].items() if name in _WALKED}
    for walked in itertools.product(*walks.values()):
        change: dict[str, Any] = dict(zip(walks, walked))
        fit += footprint.resource_fault(to_row(replace(config, **change)), key, limits) is None
    return fit
