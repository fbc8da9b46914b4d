"""Times are of launches that nobody waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from csgmv import measure

CPU = torch.device("cpu")


class Gpu:
    """Stands in for torch.cuda: the host is late for as many replays as it is told, which then take longer."""

    def __init__(self, late: int) -> None:
        self.late, self.slept, self.replays = late, list[int](), 0

    def sleep(self, cycles: int) -> None:
        """Of the GPU."""
        self.slept.append(cycles)

    def replay(self) -> None:
        """Of the graph."""
        self.replays += 1

    def event(self, **_: object) -> Gpu:
        """There is no other."""
        return self

    def record(self) -> None:
        """Into the stream."""

    def synchronize(self) -> None:
        """Wait."""

    def query(self) -> bool:
        """Whether the GPU has come to it."""
        return self.replays <= self.late

    def elapsed_time(self, _: object) -> float:
        """Milliseconds."""
        return 3.0 if self.replays <= self.late else 0.2


@pytest.fixture(params=[0, 1, 2, 9])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    found = Gpu(request.param)
    monkeypatch.setattr(torch.cuda, "_sleep", found.sleep)
    monkeypatch.setattr(torch.cuda, "Event", found.event)
    monkeypatch.setattr(measure, "_scratch", lambda _: torch.ones(1))
    return found


def test_a_replay_that_the_gpu_waited_for_is_made_again(gpu: Gpu) -> None:
    """With a longer head start each time; where the host is always late the last one has to do."""
    graph = object.__new__(measure.ColdGraph)
    graph._device, graph._calls, graph._graph = CPU, 4, gpu  # type: ignore[assignment]
    us = graph.sample()
    assert us == pytest.approx(50.0 if gpu.late < 3 else 750.0)
    assert gpu.slept == sorted(gpu.slept)
    assert len({*gpu.slept}) == gpu.replays == min(gpu.late + 1, 3)
