"""The end of a search: the fastest few and the default timed at length, in turn, and the record that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from csgmv import rules
from csgmv.tuning.lab import Screening, tolerance
from csgmv.tuning.plan import Task
from csgmv.tuning.ranking import Ranking
from csgmv.tuning.record import Accuracy, Finalist, Record, Timing
from csgmv.tuning.worker import Failure

FINALISTS = 4
BLOCKS, BLOCK_ROUNDS = 4, 3  # the noise is the spread of the default's median over the blocks


class Bench(Protocol):
    """What a search asks of the GPU; each may raise Failure. See lab.Lab."""

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """The config's error, if it is within the tolerance."""

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """A first impression of a config."""

    def race(self, task: Task, rows: Sequence[rules.Row], rounds: int) -> tuple[list[list[float]], int]:
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
            samples, launches = bench.race(task, rows, BLOCKS * BLOCK_ROUNDS)
        except Failure as failure:  # which of them it was is not known; the last is the least loss
            ranking.refuse(rows[-1], failure)
            continue
        break
    times = {row: _timing(row, taken, launches) for row, taken in zip(rows, samples)}
    return Record(
        chunk_size=task.key.chunk_size,
        segment_bucket=task.key.segment_bucket,
        tokens=task.tokens,
        adapters=task.adapters,
        num_segments=task.num_segments,
        default=None if default is None else times[default],
        candidates=[(row, *ranking.screened[row]) for row in ranking.best()],
        finalists=[Finalist(**vars(times[row]), **ranking.binaries[row]._asdict()) for row in finalists],
        pruned=dict(sorted(ranking.pruned.items())),
        failed=dict(sorted(ranking.failed.items())),
        accuracy=Accuracy(1, ranking.max_error, tolerance(task.key)),
        noise_us=_spread(samples[0]),
    )


def _timing(row: rules.Row, samples: Sequence[float], launches: int) -> Timing:
    ordered = sorted(samples)
    p20, p50, p80 = (ordered[int(share * (len(ordered) - 1) + 0.5)] for share in (0.2, 0.5, 0.8))
    return Timing(row, p20, p50, p80, len(samples) * launches)


def _spread(samples: Sequence[float]) -> float:
    """How far apart the medians of successive blocks of samples lie."""
    blocks = [sorted(samples[i : i + BLOCK_ROUNDS]) for i in range(0, len(samples), BLOCK_ROUNDS)]
    medians = [block[len(block) // 2] for block in blocks]
    return max(medians) - min(medians)
