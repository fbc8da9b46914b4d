"""GPU times of short launches as a server sees them: CUDA graphs, every tensor out of the cache.

A server runs a layer's kernels long after it last touched that layer's weights, so nothing that a launch reads may
still be in L2. A ColdGraph holds a number of launches, each on tensors of its own, and the L2 is flushed by reading
other memory before each replay. A short sleep before the flush and the flush itself keep the GPU busy until the host
has queued the replay, so that no launch waits for the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

METHOD = "cold: CUDA graph of launches on separate tensors, 3x L2 read before each replay"
MOST_COPIES = 64
_FLUSHES = 3  # times the L2 that are read, and that rotating copies exceed where MOST_COPIES allows it
_HEAD_START = 100_000  # GPU cycles for which the host may be ahead


def l2_bytes(device: torch.device) -> int:
    """Bytes of the device's L2 cache."""
    size: int = torch.cuda.get_device_properties(device).L2_cache_size
    return size


def num_copies(bytes_per_copy: int, device: torch.device) -> int:
    """How many copies of a problem's tensors to rotate over: more than the L2 holds, at least 2, at most 64."""
    return max(2, min(MOST_COPIES, math.ceil(_FLUSHES * l2_bytes(device) / max(bytes_per_copy, 1))))


@functools.cache
def _scratch(device: torch.device) -> torch.Tensor:
    return torch.ones(_FLUSHES * l2_bytes(device) // 4, dtype=torch.float32, device=device)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@functools.cache
def _keeper(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph that stays, and with it the memory pool that all graphs take their intermediate tensors from.

    Without it each graph would have a pool of its own, and thousands of graphs would fill the GPU.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_side_stream(device)):
        torch.ones(1, device=device)
    return graph


class ColdGraph:
    """A CUDA graph that makes each call in turn; each call works on tensors of its own."""

    def __init__(self, calls: Sequence[Callable[[], object]], device: torch.device) -> None:
        """Capture the calls. The first one is made once beforehand, so that what it compiles is compiled outside."""
        self._device, self._calls = device, len(calls)
        pool = _keeper(device).pool()
        calls[0]()
        stream = _side_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        self._graph = torch.cuda.CUDAGraph()
        # Not `with torch.cuda.graph(...)`: that empties the allocator's cache each time, for 10 ms and more.
        with torch.cuda.stream(stream):
            self._graph.capture_begin(pool=pool)
            try:
                for call in calls:
                    call()
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

    def sample(self) -> float:
        """Microseconds of one call, averaged over one replay."""
        torch.cuda._sleep(_HEAD_START)
        _scratch(self._device).sum()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        microseconds: float = begin.elapsed_time(end) * 1e3
        return microseconds / self._calls


def interleaved(graphs: Sequence[ColdGraph], rounds: int) -> list[list[float]]:
    """`rounds` samples of each graph, taken in turn, so that a drift of the clock falls on all alike."""
    for graph in graphs:
        graph.sample()
    samples: list[list[float]] = [[] for _ in graphs]
    for _ in range(rounds):
        for graph, times in zip(graphs, samples):
            times.append(graph.sample())
    return samples
