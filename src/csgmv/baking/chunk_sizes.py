"""Measured results → the second table: for each size of batch the chunk size with which its launches are fastest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from .. import records, rules

ChunkSizes = dict[rules.Cell, int]


class _Time(NamedTuple):
    """Microseconds."""

    launch: float
    noise: float


_Times = tuple[_Time, ...]  # one for each of rules.CHUNK_SIZES


class _Measured(NamedTuple):
    """A batch as one chunk size cuts it."""

    batch: records.TimedBatch
    noise_us: float


def _times(by_chunk_size: Mapping[int, _Measured]) -> _Times | None:
    """What one shape takes at one batch with every chunk size, or None where one that counts was not timed there.

    Once every adapter's rows make one segment, a larger chunk size would cut the very same segments. It is not asked
    for, since its key mostly holds a larger batch; it stands with the time of the smaller one.
    """
    times: list[_Time] = []
    whole = False
    for chunk_size in rules.CHUNK_SIZES:
        if not whole:
            if chunk_size not in by_chunk_size:
                return None
            batch, noise_us = by_chunk_size[chunk_size]
            times.append(_Time(batch.p50_us, noise_us))
            whole = batch.num_segments <= batch.adapters
        else:
            times.append(times[-1])
    return tuple(times)


def _calls(shapes: Mapping[rules.Key, _Times]) -> Iterator[_Times]:
    """The shapes' times, without those of a shrink or expand that is in an add_lora, which is what a layer calls."""
    joint = [key for key in shapes if key.op == "add_lora"]
    parts = {key._replace(op="shrink", slice_widths=()) for key in joint}
    parts |= {rules.expand_part(key) for key in joint}
    yield from (times for key, times in shapes.items() if key not in parts)


def _least(calls: Iterable[_Times]) -> int:
    """The chunk size with the least time over all calls; of those within the noise of it the smallest.

    The batches timed are dealt evenly. Real ones are not: then each adapter's last segment is half empty on average,
    and of two equally fast sizes the smaller one loses less.
    """
    totals = [_Time(*map(sum, zip(*column))) for column in zip(*calls)]
    best = min(totals)
    bound = records.tied_us(best.launch, best.noise)
    return next(size for size, total in zip(rules.CHUNK_SIZES, totals) if total.launch <= bound)


def fastest(results: Iterable[records.Result]) -> ChunkSizes:
    """The chunk size of each cell of batches that one GPU and Triton version's results tell, sorted.

    Args:
        results: one for each key. A key holds neither tokens nor adapters; of the batches that share it, a result tells
            of those alone that were timed.

    A cell's times are summed over all shapes, and over the batches if several fall into it; a shape counts at a batch
    where all chunk sizes were timed on it.
    """
    measured: dict[tuple[int, int], dict[rules.Key, dict[int, _Measured]]] = {}
    for result in results:
        shape = result.key._replace(chunk_size=1, segment_bucket=1)
        for batch in records.batches(result):
            shapes = measured.setdefault((batch.tokens, batch.adapters), {})
            shapes.setdefault(shape, {})[result.key.chunk_size] = _Measured(batch, result.noise_us)

    cells: dict[rules.Cell, list[_Times]] = defaultdict(list)
    for (tokens, adapters), shapes in measured.items():
        complete = {key: times for key, sizes in shapes.items() if (times := _times(sizes)) is not None}
        cells[rules.batch_cell(tokens, adapters)] += _calls(complete)
    return {cell: _least(calls) for cell, calls in sorted(cells.items()) if calls}
