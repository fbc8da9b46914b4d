"""The end of a search: the fastest few and the default timed at length, in turn, and the record that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from csgmv import records, rules
from csgmv.tuning.lab import Screening, tolerance
from csgmv.tuning.plan import Task
from csgmv.tuning.ranking import Ranking
from csgmv.tuning.record import Accuracy, Finalist, Record, Timing, rounded
from csgmv.tuning.side_by_side import SideBySide, Track, quantile, side_by_side
from csgmv.tuning.worker import Failure

FINALISTS = 4
SHOW_ROUNDS = 5  # on batches that do not decide


class Bench(Track, Protocol):
    """What a search asks of the GPU; each may raise Failure. See lab.Lab."""

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """The config's error, if it is within the tolerance."""

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """A first impression of a config."""


def race(task: Task, bench: Bench, ranking: Ranking) -> Record | None:
    """The record of a key, with its finalists timed at length; None where no config works at all."""
    while True:
        default = ranking.default if ranking.default in ranking.screened else None
        finalists = ranking.best()[:FINALISTS]
        rows = list(dict.fromkeys(finalists if default is None else [default, *finalists]))
        if not rows:
            return None
        try:
            timed = side_by_side(task.key, task.deciding, rows, bench)
        except Failure as failure:  # which of them it was is not known; the last is the least loss
            ranking.refuse(rows[-1], failure)
            continue
        break
    times = {row: _timing(row, index, timed) for index, row in enumerate(rows)}
    noise_us = rounded(timed.noise_us())
    timings = [records.Timing(row, times[row].p50_us, times[row].samples) for row in finalists]
    winner = records.fastest(timings, noise_us)
    assert winner is not None
    pair = [rows.index(row) for row in ([] if default is None else [default]) + [winner.row]]
    shown = [[samples[index] for index in pair] for samples in timed.by_batch]
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
    return rounded(quantile(samples, 0.5))


def _timing(row: rules.Row, index: int, timed: SideBySide) -> Timing:
    p20, p50, p80 = (rounded(quantile(timed.mixed[index], share)) for share in (0.2, 0.5, 0.8))
    return Timing(row, p20, p50, p80, timed.samples)
