"""What was measured at a key, and which of its rows deserves a place in the table.

Standard library only, like `rules`, and for the same reason. Files of such results are read by `raw_results`.

    baked_row   a Result → what the table says about its key
    slowdowns   a Result → how much slower each row is than the winner
    batches     a Result → the batches that were timed with that row, and how long they take

Of the rows that were timed, `at_length` has those at full length alone, `in_screening` first impressions alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import rules

# A tuned row must save this share of the default's time, however quiet the measurement was.
LEAST_GAIN = 0.01
# Rows within this share of the fastest are as good as it, if the noise is no smaller.
MOST_TIED = 0.01


class Timing(NamedTuple):
    """One config at full length. Units: microseconds (median), launches timed."""

    row: rules.Row
    p50_us: float
    samples: int


def timing_of(value: Mapping[str, Any]) -> Timing:
    """What raw results hold of a row that was timed, as a Timing."""
    return Timing(tuple(value["row"]), value["p50_us"], value["samples"])


class BatchTimes(NamedTuple):
    """The default's and the winner's time on one batch; None for what does not run. Units: microseconds (median)."""

    tokens: int
    adapters: int
    num_segments: int
    default_us: float | None
    winner_us: float | None


class TimedBatch(NamedTuple):
    """A batch, and microseconds (median) of a launch on it with what the table has for its key."""

    tokens: int
    adapters: int
    num_segments: int
    p50_us: float


class Race(NamedTuple):
    """Rows timed in turn at full length, the winner's among them. Units: microseconds (median), launches of each row.

    Its times are to be compared with each other's only: it was not run when the rest of the record was made.
    """

    times: Mapping[rules.Row, float]
    samples: int


class Result(NamedTuple):
    """What was measured at one key: the default (None where the device cannot run it) and the rows against it.

    `batches` are those that look up this key; a row's time is the geometric mean of its times on the first `tuned_on`.
    `screened` has every candidate's first impression: microseconds (median), to be compared with each other's only.
    `races` have rows of other keys.
    `architecture` (the compute capability) and `sm_count` are the GPU's, `kernel_hash` is that of the kernels' source.
    """

    gpu: str
    triton: str
    key: rules.Key
    default: Timing | None
    finalists: tuple[Timing, ...]
    noise_us: float
    date: str
    batches: tuple[BatchTimes, ...] = ()
    tuned_on: int = 1
    screened: Mapping[rules.Row, float] = {}
    races: tuple[Race, ...] = ()
    architecture: str = ""
    sm_count: int = 0
    kernel_hash: str = ""


def winner(result: Result) -> Timing | None:
    """The fastest finalist; of those within the noise of it the first in a fixed order, so that reruns agree.

    The noise is that of the default, which may take several times as long: it ties no more than MOST_TIED.
    """
    return fastest(result.finalists, result.noise_us)


def fastest(finalists: Sequence[Timing], noise_us: float) -> Timing | None:
    """See `winner`; the tuner asks this before there is a result."""
    least = min((timing.p50_us for timing in finalists), default=0.0)
    tied = (timing for timing in finalists if timing.p50_us <= tied_us(least, noise_us))
    return min(tied, key=lambda timing: rules.row_order(timing.row), default=None)


def tied_us(least_us: float, noise_us: float) -> float:
    """Up to which time a launch is as good as the fastest."""
    return least_us + min(noise_us, MOST_TIED * least_us)


def told_apart_us(default_us: float, *noises_us: float) -> float:
    """How much a launch must take less, or more, than the default to be told apart from it."""
    return max(LEAST_GAIN * default_us, *noises_us)


def gain(result: Result) -> float:
    """The share of the default's time that the winner saves; infinite where only the winner runs."""
    best = winner(result)
    if best is None or result.default is None:
        return 0.0 if best is None else math.inf
    return 1 - best.p50_us / result.default.p50_us


def baked_row(result: Result) -> rules.Row | None:
    """The row that the table gets: the winner's, or None where it does not beat the default beyond the noise."""
    best = winner(result)
    if best is None or result.default is None:
        return None if best is None else best.row
    saved = result.default.p50_us - best.p50_us
    return best.row if saved > told_apart_us(result.default.p50_us, result.noise_us) else None


def slowdowns(result: Result) -> dict[rules.Row, float]:
    """How many times the winner's time each measured row takes, the default's among them: at full length if it can."""
    return in_screening(result) | at_length(result)


def at_length(result: Result) -> dict[rules.Row, float]:
    """The slowdown of each row that was timed at full length: finalists, the default, and what took part in races.

    A row that did several times has that of the last race, and a finalist its own record's.
    """
    own = {timing.row: timing.p50_us for timing in (*result.finalists, *filter(None, [result.default]))}
    found: dict[rules.Row, float] = {}
    for times in (*(race.times for race in result.races), own):
        found |= _relative(result, times)
    return found


def in_screening(result: Result) -> dict[rules.Row, float]:
    """The slowdown of each candidate by first impressions, the winner's too."""
    return _relative(result, result.screened)


def _relative(result: Result, times: Mapping[rules.Row, float]) -> dict[rules.Row, float]:
    """Times as multiples of the winner's, or where there is none the default's; nothing where that is not among them.

    Only times of one occasion may be compared, so each has the winner's.
    """
    reference = winner(result) or result.default
    if reference is None or reference.row not in times:
        return {}
    return {row: p50_us / times[reference.row] for row, p50_us in times.items()}


def batches(result: Result) -> Iterator[TimedBatch]:
    """Every batch timed at this key, and the time of what the table has for it: the baked row, or else the default."""
    baked = result.default is None or baked_row(result) is not None
    for tokens, adapters, num_segments, default_us, winner_us in result.batches:
        p50_us = winner_us if baked else default_us
        if p50_us is not None:
            yield TimedBatch(tokens, adapters, num_segments, p50_us)
