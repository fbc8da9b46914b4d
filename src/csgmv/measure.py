"""GPU times of short launches as a server sees them: CUDA graphs, every tensor out of the cache.

A server runs a layer's kernels long after it last touched that layer's weights, so nothing that a launch reads may
still be in L2. A ColdGraph holds a number of launches, each on tensors of its own, and the L2 is flushed by reading
other memory before each replay. A short sleep before the flush and the flush itself keep the GPU busy until the host
has queued the replay, so that no launch waits for the host; where the host was late all the same, it is made again.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence

import torch

from csgmv.config import Config
from csgmv.workload import Workload

METHOD = "cold: CUDA graph of launches on separate tensors, 3x L2 read before each replay"
ROUNDS = 40  # samples of a time that is told
TURNS = f"Times: median of {ROUNDS} samples, {METHOD}; default and tuned in turn."
MOST_COPIES = 64
_COPIED_BYTES = 1 << 30
_FLUSHES = 3  # times the L2 that are read, and that rotating copies exceed where MOST_COPIES allows it
# GPU cycles of sleep in which the host has to queue a replay, and what it gets if it was late, as a loaded host is at
# times: until a late sample was taken again, 100 of 5,815 records of an H100 had noise of more than 10 %; now none has.
_HEAD_STARTS = (100_000, 400_000, 1_600_000)


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
        """Microseconds of one call, averaged over a replay that the GPU did not wait for, else the last of three."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for cycles in _HEAD_STARTS:
            torch.cuda._sleep(cycles)
            _scratch(self._device).sum()
            begin.record()
            self._graph.replay()
            end.record()
            in_time = not begin.query()  # the GPU has not even come to what precedes the replay
            end.synchronize()
            if in_time:
                break
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


def times(works: Sequence[Workload], op: str, configs: Sequence[Config]) -> list[float]:
    """Median microseconds of one call with each config, all configs in turn, the L2 cold.

    Args:
        works: copies of one workload that together exceed the L2.
        op: the operation to time.
        configs: of that operation's class; equal ones are timed once.
    """
    device = works[0].x.device
    distinct = list(dict.fromkeys(configs))
    graphs = [ColdGraph([functools.partial(work.run, op, each) for work in works], device) for each in distinct]
    medians = dict(zip(distinct, map(statistics.median, interleaved(graphs, ROUNDS))))
    return [medians[each] for each in configs]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written ones both counted, of a device-to-device copy much larger than the L2."""
    source = torch.randn(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    # Launched one by one: in a graph a copy is a node of its own kind, which on an H200 moves 2.8 TB/s instead of 4.2.
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) * 1e-3)
    bandwidth: float = 2 * _COPIED_BYTES / statistics.median(seconds)
    return bandwidth
