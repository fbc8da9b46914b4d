"""Shares of a launch's time that keys lose, summed up as reports and limits tell them. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Losses(NamedTuple):
    """How many keys were judged, and what they lose: 0.05 is 5 % of their own row's time."""

    keys: int
    median: float
    percentile_95: float
    worst: float


def summed(losses: Iterable[float]) -> Losses | None:
    """None of no losses."""
    ordered = sorted(losses)
    if not ordered:
        return None
    return Losses(len(ordered), statistics.median(ordered), percentile_95(ordered), ordered[-1])


def percentile_95(losses: Sequence[float]) -> float:
    """Of sorted ones: the least of them that 95 % of them do not exceed."""
    return losses[-(-95 * len(losses) // 100) - 1]


def percent(share: float) -> str:
    """For people."""
    return f"{100 * share:.1f} %"
