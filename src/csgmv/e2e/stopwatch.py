"""Times of calls that take a model's time, not a kernel's: by CUDA events, of all calls in turn."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], torch.Tensor]

ROUNDS, WARM_UP = 25, 3
METHOD = (
    f"Times: median of {ROUNDS} by CUDA events, all columns of a row in turn, each from an idle GPU to its last kernel"
)


@dataclasses.dataclass(frozen=True)
class _Replay:
    """A captured call."""

    graph: torch.cuda.CUDAGraph
    result: torch.Tensor
    call: Call

    def __call__(self) -> torch.Tensor:
        self.graph.replay()
        return self.result


class Stopwatch:
    """Times what runs on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def captured(self, call: Call) -> Call:
        """A call that replays what this one launches, as a CUDA graph. The call is made once beforehand.

        What it returns is the same tensor each time, with what the last replay wrote. It keeps the call, whose tensors
        the graph reads without holding them.
        """
        current = torch.cuda.current_stream(self._device)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            call()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

        return _Replay(graph, result, call)

    def medians(self, calls: Sequence[Call]) -> list[float]:
        """Milliseconds of each call."""
        for call in calls:
            for _ in range(WARM_UP):
                call()
        taken: list[list[float]] = [[] for _ in calls]
        for _ in range(ROUNDS):
            for call, times in zip(calls, taken):
                torch.cuda.synchronize(self._device)
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
        return [*map(statistics.median, taken)]
