"""What was measured at some keys of a family says of the same configs at others.

The model of bytes and waves errs, but it errs alike: a config that took longer than predicted at one chunk size and
number of segments mostly does so at the next.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from csgmv import rules
from csgmv.config import AddLoraConfig, from_row, to_row
from csgmv.tuning import model, space
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Task, family

_HALF = 2.0  # octaves of distance at which what was seen counts half
_KIN = 2.0  # octaves that a config of the same tiling, but another pipeline, is further away


class Experience:
    """How far configs were off the model, at which keys."""

    def __init__(self, device: model.Device) -> None:
        """Nothing is known."""
        self._device = device
        self._seen: dict[tuple[rules.Key, rules.Row], list[tuple[tuple[float, ...], float]]] = {}
        self._kin: dict[tuple[rules.Key, tuple[int, ...]], list[tuple[tuple[float, ...], float]]] = {}

    def learn(self, task: Task, screened: Mapping[rules.Row, Screening]) -> None:
        """Remember a key of one kernel: each config's time beside the model's guess, as compared with the others'."""
        off = {}
        for row, screening in screened.items():
            config = from_row(task.key.op, row)
            assert not isinstance(config, AddLoraConfig)
            off[config] = math.log(screening.p50_us / model.predicted_us(config, task, self._device))
        if not off:
            return
        usual, place, kind = statistics.median(off.values()), _place(task.key), family(task.key)
        for config, by in off.items():
            self._seen.setdefault((kind, to_row(config)), []).append((place, by - usual))
            self._kin.setdefault((kind, space.tiling(config)), []).append((place, by - usual))

    def estimate(
        self, config: model.Part, task: Task, *, paired: bool = False, like: model.Part | None = None
    ) -> float:
        """The model's guess, in microseconds, corrected by what is known of this config at the nearest keys.

        Where nothing is, by what is known of its tiling, or of the config that it is `like`.
        """
        guess = model.predicted_us(config, task, self._device, paired=paired)
        place, kind = _place(task.key), family(task.key)
        seen, far = self._seen.get((kind, to_row(config))), 0.0
        if seen is None and like is not None:
            seen = self._seen.get((kind, to_row(like)))
        elif seen is None:
            seen, far = self._kin.get((kind, space.tiling(config))), _KIN
        if not seen:
            return guess
        weights = [2 ** (-(far + _distance(place, other)) / _HALF) for other, _ in seen]
        by = sum(weight * by for weight, (_, by) in zip(weights, seen)) / sum(weights)
        return guess * math.exp(by * max(weights))


def far_apart(tasks: Sequence[Task]) -> list[Task]:
    """The tasks of a family in an order in which each lies as far as can be from those before it."""
    left, ordered = list(tasks), list[Task]()
    nearest = {task.key: math.inf for task in left}
    while left:
        best = max(left, key=lambda task: (nearest[task.key], _place(task.key), task.key))
        left.remove(best)
        ordered.append(best)
        for task in left:
            nearest[task.key] = min(nearest[task.key], _distance(_place(task.key), _place(best.key)))
    return ordered


def _place(key: rules.Key) -> tuple[float, ...]:
    """Where a key lies in its family, in octaves."""
    sizes = key.chunk_size, key.chunk_size * key.segment_bucket, key.input_dim or 1, sum(key.slice_widths) or 1
    return tuple(map(math.log2, sizes))


def _distance(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other))
