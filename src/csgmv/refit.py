"""A row of the table as another key can use it: the one place where rows are cut to other dimensions and ranks.

Standard library only, like `rules`, and for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from . import footprint, rules
from .rules import Key, Row


def octaves(size: int, other: int) -> float:
    """By how many doublings `other` is larger than `size`; a size of 0 counts as 1."""
    return math.log2(max(other, 1) / max(size, 1))


# Octaves of input_dim and rows of a batch: 46 rows of the table that were so borrowed lost 38 % unsplit, 9 % split.
_FAR_LONGER, _SMALL_BATCH = 2, 1024


def _shrink_forms(row: dict[str, Any], source: Key, key: Key, _splits: int) -> Iterator[dict[str, Any]]:
    """Parts of a split input_dim stay about as long; one that is far longer is split for a small batch."""
    columns, had = key.num_slices * key.max_rank, source.num_slices * source.max_rank
    split_k, longer = row["split_k"], int(octaves(source.input_dim, key.input_dim))
    if split_k > 1 or (longer >= _FAR_LONGER and key.chunk_size * key.segment_bucket <= _SMALL_BATCH):
        split_k = int(split_k * 2.0**longer)  # by whole octaves: half as many again, and the same is mostly better
    row = {**row, "split_k": max(1, min(split_k, 64, key.input_dim // row["block_k"]))}
    if row["sliced_k"]:  # a tile that each warp has whole gets no larger; x is no more than its few rows
        yield _as_narrow(row, columns)
        row = {**row, "sliced_k": False}
    yield from _shrink_tiles(row, columns, had)


def _shrink_tiles(row: dict[str, Any], columns: int, had: int) -> Iterator[dict[str, Any]]:
    """A tile of all columns stays one of all columns if it fits.

    Each program across the columns reads x once more: where columns are twice as many, programs are not.
    """
    if row["block_n"] * row["column_tiles"] >= had != columns:
        block_n = min(max(1 << columns.bit_length() - 1, 16), 128)  # the last tile takes what is left
        yield {**row, "block_n": block_n, "column_tiles": min(-(-columns // block_n), 8)}
    if columns >= 2 * had:
        across = row["block_n"] * row["column_tiles"] << int(octaves(had, columns))  # a program's columns
        block_n = min(128, max(row["block_n"], rules.power_of_two(-(-across // row["column_tiles"]))))
        yield {**row, "block_n": block_n, "column_tiles": min(-(-across // block_n), 8)}
    yield _as_narrow(row, columns)


def _as_narrow(row: dict[str, Any], columns: int) -> dict[str, Any]:
    """A program's columns as they were, or all that there are."""
    block_n = min(row["block_n"], max(16, rules.power_of_two(columns)))
    return {**row, "block_n": block_n, "column_tiles": min(row["column_tiles"], -(-columns // block_n))}


ENOUGH = 256  # programs: of more, each may as well compute more tiles (two for each of an H200's SMs)
NARROW = 64  # columns of a tile that a larger rank does not halve: halved, rows lost 9 to 18 % more (an H100)
WHOLE_RANK = 128  # a row tile of h with twice as many does not fit in registers: 2,776 bytes spilled (sm_90, 4 warps)


def _expand_forms(row: dict[str, Any], source: Key, key: Key, splits: int) -> Iterator[dict[str, Any]]:
    """What may become of an expand row, the best guess first.

    A row with several tiles a program keeps about as many programs, as does one that sums split-K partials, of which
    each program sums all; others get no more than are enough. A row that took the whole rank in one step still does,
    if that fits.
    """
    widest, column_tiles = max(key.slice_widths), row["column_tiles"]
    block_n = min(row["block_n"], max(16, rules.power_of_two(widest)))
    if column_tiles > 1 or splits > 1:
        scaled = round(column_tiles * sum(key.slice_widths) / max(sum(source.slice_widths), 1))
        tiles = -(-key.chunk_size * key.segment_bucket // row["block_m"]) * sum(key.slice_widths) // block_n
        column_tiles = max(scaled, min(column_tiles, tiles // ENOUGH))
    row = {**row, "block_n": block_n, "column_tiles": max(1, min(column_tiles, 64, -(-widest // block_n)))}
    had, depth = (footprint.rank_step(rules.MAX_RANK, rank) for rank in (source.max_rank, key.max_rank))
    if depth > had:
        row = {**row, "maxnreg": None}  # a cap that a smaller rank's h was well under
    whole = row["block_k"] >= source.max_rank
    if whole and depth <= max(had, WHOLE_RANK):
        # Weights may wait in registers, so their tile gets no larger, as long as it is not narrow.
        yield {**row, "block_n": min(row["block_n"], max(NARROW, row["block_n"] * had // depth)), "block_k": depth}
    block_k, num_stages = min(row["block_k"], depth, WHOLE_RANK if depth > had else depth), row["num_stages"]
    if block_k >= depth and not whole:
        num_stages = 1  # no steps are left to be pipelined
    elif block_k < depth and whole:
        num_stages = max(num_stages, 2)
    yield {**row, "block_k": block_k, "num_stages": num_stages}


_FORMS = {"shrink": _shrink_forms, "expand": _expand_forms}  # of a kernel's fields, those liked best first


def _block_m(block_m: int, source: Key, key: Key) -> int:
    """Rows of a tile: one that held no more than a segment does not take neighbours in where segments are shorter."""
    return (
        footprint.row_tile(block_m, key.chunk_size)
        if footprint.group_size(block_m, source.chunk_size) == 1
        else block_m
    )


def _depths(num_stages: int) -> range:
    """This many stages and fewer; where there was a pipeline there is one of two at least."""
    return range(num_stages, min(num_stages, 2) - 1, -1)


def _cut(row: Row, source: Key, key: Key, limits: footprint.Limits) -> Row | None:
    """The first form of a row that fits. One that takes too much is tried with fewer stages, down to a pipeline of two,
    before the next one is; then all of them without a pipeline.
    """
    fields: dict[str, rules.ConfigValue] = {}
    splits = 1
    for op, prefix, part in rules.parts(key.op, row):
        part["block_m"] = _block_m(part["block_m"], source, key)
        forms = list(_FORMS[op](part, source, key, splits))
        depths = [(form, depth) for form in forms for depth in _depths(form["num_stages"])]
        there, names = key._replace(op=op), rules.FIELD_NAMES[op]
        for form, depth in depths + [(form, 1) for form in forms]:
            tried = form | {"num_stages": depth}
            if not footprint.resource_fault([tried[name] for name in names], there, limits):
                fields |= {prefix + name: value for name, value in tried.items()}
                splits = tried.get("split_k", 1)
                break
        else:
            return None
    whole = dict(zip(rules.FIELD_NAMES[key.op], row)) | fields
    if whole.get("overlap") and not limits.programmatic_launch:
        whole["overlap"] = False
    return tuple(whole.values())


def default(row: Row, key: Key, limits: footprint.Limits) -> Row | None:
    """An architecture's default as a key can use it: it is for any dimensions, and not from the largest ranks."""
    return _cut(row, key._replace(max_rank=min(key.max_rank, WHOLE_RANK)), key, limits)


def adapted(row: Row, source: Key, key: Key, limits: footprint.Limits) -> Row | None:
    """A row of one key as another of the same operation can use it; None where the device can run no form of it.

    For its own key, in either 16-bit dtype, it stays as it was measured.
    """
    if source._replace(dtype=key.dtype) != key:
        return _cut(row, source, key, limits)
    return row if footprint.resource_fault(row, key, limits) is None else None
