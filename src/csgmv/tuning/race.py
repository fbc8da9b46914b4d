"""The end of a search: the fastest few and the default timed at length, in turn, and the record that comes of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Protocol

from csgmv import records, rules
from csgmv.tuning.lab import Screening, tolerance
from csgmv.tuning.plan import Batch, Task
from csgmv.tuning.ranking import Ranking
from csgmv.tuning.record import Accuracy, Finalist, Record, Timing, rounded
from csgmv.tuning.worker import Failure

FINALISTS = 4
BLOCKS, BLOCK_ROUNDS = 4, 3  # the noise is the spread of the default's median over the blocks
SHOW_ROUNDS = 5  # on batches that do not decide
Samples = list[list[float]]  # of each config


class Bench(Protocol):
    """What a search asks of the GPU; each may raise Failure. See lab.Lab."""

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """The config's error, if it is within the tolerance."""

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """A first impression of a config."""

    def race(self, key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int) -> tuple[Samples, int]:
        """Interleaved samples of each config, and launches in each sample."""


def race(task: Task, bench: Bench, ranking: Ranking) -> Record | None:
    """The record of a key, with its finalists timed at length; None where no config works at all."""
    while True:
        default = ranking.default if ranking.default in ranking.screened else None
        finalists = ranking.best()[:FINALISTS]
        rows = list(dict.fromkeys(finalists if default is None else [default, *finalists]))
        if not rows:
            return None
        try:
            timed = [bench.race(task.key, batch, rows, BLOCKS * BLOCK_ROUNDS) for batch in task.deciding]
        except Failure as failure:  # which of them it was is not known; the last is the least loss
            ranking.refuse(rows[-1], failure)
            continue
        break
    every = [samples for samples, _ in timed]
    launches = sum(launches for _, launches in timed)
    mixed = [[statistics.geometric_mean(times) for times in zip(*of_row)] for of_row in zip(*every)]
    times = {row: _timing(row, taken, launches) for row, taken in zip(rows, mixed)}
    noise_us = rounded(_spread(mixed[0]))
    timings = [records.Timing(row, times[row].p50_us, times[row].samples) for row in finalists]
    winner = records.fastest(timings, noise_us)
    assert winner is not None
    pair = [rows.index(row) for row in ([] if default is None else [default]) + [winner.row]]
    shown = [[samples[index] for index in pair] for samples in every]
    try:
        others = task.batches[task.tuned_on :]
        shown.extend(bench.race(task.key, batch, [rows[index] for index in pair], SHOW_ROUNDS)[0] for batch in others)
    except Failure as failure:  # what was shown until then is kept
        ranking.failed[str(failure)] += 1
    first = task.batches[0]
    return Record(
        chunk_size=task.key.chunk_size,
        segment_bucket=task.key.segment_bucket,
        tokens=first.tokens,
        adapters=first.adapters,
        num_segments=first.num_segments,
        default=None if default is None else times[default],
        candidates=[(row, *ranking.screened[row]) for row in ranking.best()],
        finalists=[Finalist(**vars(times[row]), **ranking.binaries[row]._asdict()) for row in finalists],
        pruned=dict(sorted(ranking.pruned.items())),
        failed=dict(sorted(ranking.failed.items())),
        accuracy=Accuracy(1, ranking.max_error, tolerance(task.key)),
        noise_us=noise_us,
        batches=[
            (*batch, None if default is None else _median(samples[0]), _median(samples[-1]))
            for batch, samples in zip(task.batches, shown)
        ],
        tuned_on=task.tuned_on,
    )


def _median(samples: Sequence[float]) -> float:
    return _quantile(samples, 0.5)


def _quantile(samples: Sequence[float], share: float) -> float:
    return rounded(sorted(samples)[int(share * (len(samples) - 1) + 0.5)])


def _timing(row: rules.Row, samples: Sequence[float], launches: int) -> Timing:
    p20, p50, p80 = (_quantile(samples, share) for share in (0.2, 0.5, 0.8))
    return Timing(row, p20, p50, p80, len(samples) * launches)


def _spread(samples: Sequence[float]) -> float:
    """How far apart the medians of successive blocks of samples lie."""
    blocks = [sorted(samples[i : i + BLOCK_ROUNDS]) for i in range(0, len(samples), BLOCK_ROUNDS)]
    medians = [block[len(block) // 2] for block in blocks]
    return max(medians) - min(medians)
