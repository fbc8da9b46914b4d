"""Whole models are timed in turn, each call from an idle GPU to its last kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from csgmv.e2e import stopwatch


class Clock:
    """A GPU whose calls take known times; what happens on it is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.noted = 0.0, []
        clock = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = clock.now
                clock.noted.append("record")

            def synchronize(self) -> None:
                clock.noted.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return end.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: self.noted.append("idle"))

    def call(self, name: str, times: list[float]) -> stopwatch.Call:
        """Takes these times in turn; those of warming up come first."""
        left = iter(times)

        def run() -> torch.Tensor:
            self.now += next(left)
            self.noted.append(name)
            return torch.empty(0)

        return run


def test_calls_are_made_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """After warming up, so that a drift of the clock falls on all alike; the median counts, not what was slow once."""
    clock, rounds = Clock(monkeypatch), stopwatch.ROUNDS
    slow_first = [90.0] * stopwatch.WARM_UP
    calls = [
        clock.call("a", [*slow_first, *[2.0] * (rounds // 2 + 1), *[7.0] * (rounds // 2)]),
        clock.call("b", [*slow_first, 50.0, *[5.0] * (rounds - 1)]),
    ]
    assert stopwatch.Stopwatch(torch.device("cpu")).medians(calls) == [2.0, 5.0]
    one = ["idle", "record", "{}", "record", "wait"]
    warm_up = ["a"] * stopwatch.WARM_UP + ["b"] * stopwatch.WARM_UP
    assert clock.noted == warm_up + [step.format(name) for _ in range(rounds) for name in "ab" for step in one]
