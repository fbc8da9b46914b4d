"""Rows of one key, launched in turn: the only times that a search, a race or a comparison tells rows apart by.

A GPU's clock and a driver's mood drift; what is launched in turn drifts together.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from csgmv import records, rules
from csgmv.tuning.plan import Batch

BLOCKS, BLOCK_ROUNDS = 4, 3  # the noise is the spread of a row's median over the blocks
ROUNDS = BLOCKS * BLOCK_ROUNDS  # of a row that is timed at full length
Samples = list[list[float]]  # of each config


class Track(Protocol):
    """What launches rows in turn; it may raise Failure. See lab.Lab."""

    def race(self, key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int) -> tuple[Samples, int]:
        """Interleaved samples of each config in microseconds, and launches in each sample."""


class SideBySide(NamedTuple):
    """What rows took that were launched in turn, in their order.

    Attributes:
        mixed: each row's samples, in microseconds: of each the geometric mean over the batches.
        by_batch: each batch's samples of each row.
        samples: launches timed of each row.
    """

    mixed: Samples
    by_batch: Sequence[Samples]
    samples: int

    def medians(self) -> list[float]:
        """Each row's median, in microseconds."""
        return [quantile(samples, 0.5) for samples in self.mixed]

    def noise_us(self, row: int = 0) -> float:
        """How far apart the medians of successive blocks of a row's samples lie; of the first, if none is named."""
        samples = self.mixed[row]
        blocks = [sorted(samples[i : i + BLOCK_ROUNDS]) for i in range(0, len(samples), BLOCK_ROUNDS)]
        medians = [block[len(block) // 2] for block in blocks]
        return max(medians) - min(medians)


def side_by_side(
    key: rules.Key, batches: Sequence[Batch], rows: Sequence[rules.Row], track: Track, rounds: int = ROUNDS
) -> SideBySide:
    """Launch rows in turn on each of the batches.

    Raises:
        Failure: one of them does not run; which one is not known.
    """
    timed = [track.race(key, batch, rows, rounds) for batch in batches]
    by_batch = [samples for samples, _ in timed]
    mixed = [[statistics.geometric_mean(times) for times in zip(*of_row)] for of_row in zip(*by_batch)]
    return SideBySide(mixed, by_batch, rounds * sum(launches for _, launches in timed))


def quantile(samples: Sequence[float], share: float) -> float:
    """Of samples, the one below which about this share of the others lies."""
    return sorted(samples)[int(share * (len(samples) - 1) + 0.5)]


def deciding(result: records.Result) -> list[Batch]:
    """The batches that a record's rows were compared on."""
    return [Batch(*times[:3]) for times in result.batches[: result.tuned_on]]
