"""One GPU's side of the tuner: checks and times configs, in a process that does nothing else."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from csgmv import dtypes, measure, rules, workload
from csgmv.config import from_row
from csgmv.segments import Segments
from csgmv.tuning.arena import Arena
from csgmv.tuning.plan import Batch, Task, adapter_ids
from csgmv.workload import Workload

_SCREEN_LAUNCHES = 24  # in a graph; shared out where a task has several batches
_SCREEN_REPLAYS = 3
_UPLOAD_SHOWS_US = 2000.0  # of a whole replay, below which the upload of the graph would be more than a few percent
_SCALING = 2.0**-10  # of what is added to the base over and over, so that it does not overflow


def _first_sample(graph: measure.ColdGraph, launches: int) -> float:
    """A sample that is not burdened with the upload of the graph, which takes as long as ten launches of a decode."""
    sample = graph.sample()
    return graph.sample() if sample * launches < _UPLOAD_SHOWS_US else sample


class Screening(NamedTuple):
    """A first impression of a config. Units: microseconds (median), launches timed."""

    p50_us: float
    samples: int
    stopped_early: bool


class WrongResult(Exception):
    """A config whose result is not the reference's."""


def tolerance(key: rules.Key) -> float:
    """Largest difference from the reference that is allowed, as a share of the reference's largest value."""
    return workload.TOLERANCE[dtypes.BY_NAME[key.dtype]]


def ragged_batch(key: rules.Key, device: torch.device, seed: int = 0) -> Workload:
    """What a config is checked on: adapters of mixed ranks and scalings, gathered rows, NaN where nobody may look.

    Adapters of full rank and of lower ones, one without rows, one of rank 0, rows without an adapter; groups that fill
    several segments and a part of one, that fill none, one of a single row.
    """
    rank, chunk = key.max_rank, key.chunk_size
    ranks = [rank, max(rank // 2 - 1, 1), rank, rank, 1, 0, max(rank * 3 // 4, 1)]
    rows = [2 * chunk + 3, chunk + 1, 0, 5, 1, 3, chunk - 1]
    ids: list[int | None] = [adapter for adapter, count in enumerate(rows) for _ in range(count)] + [None] * 3
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return _make(key, [ids[i] for i in order.tolist()], ranks, device, seed)


def _make(key: rules.Key, ids: Sequence[int | None], ranks: Sequence[int], device: torch.device, seed: int) -> Workload:
    """Tensors for a key; the dimension that its operation does not have is 16."""
    return workload.make(
        key.input_dim or 16,
        key.slice_widths or (16,) * key.num_slices,
        ids,
        ranks,
        dtype=dtypes.BY_NAME[key.dtype],
        chunk_size=key.chunk_size,
        device=device,
        seed=seed,
    )


class Lab:
    """Checks and times configs on one GPU.

    Timed launches work on random numbers that one arena holds for all keys: making tensors for each would take longer
    than timing them.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        """Nothing is allocated yet. `seed` is that of every random tensor."""
        self._device, self._seed = device, seed
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._ragged = functools.lru_cache(maxsize=16)(self._make_ragged)
        self._segments = functools.lru_cache(maxsize=256)(self._make_segments)
        self._copies = functools.lru_cache(maxsize=128)(self._make_copies)
        self._read, self._written = (Arena(device, seed + i, self._copies.cache_clear) for i in range(2))

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """The largest error of a config on the ragged batch, as a share of the reference's largest value.

        Raises:
            WrongResult: it is beyond the tolerance, or NaN.
        """
        batch, expected = self._ragged(key._replace(segment_bucket=1))
        error = batch.error(key.op, from_row(key.op, row), expected)
        if not error <= tolerance(key):
            raise WrongResult("wrong result")
        return error

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """Time a config briefly on the batches that decide; the geometric mean of the batches' medians.

        If the first two samples of each give more than `stop_above` microseconds it is left at that, and at the lesser:
        one alone may have taken seven times as long for reasons of its own (seen on an H100, of a config that won).
        """
        most = _SCREEN_LAUNCHES // task.tuned_on
        every = [self._calls(task.key, batch, row)[:most] for batch in task.deciding]
        graphs = [measure.ColdGraph(calls, self._device) for calls in every]
        samples = [[_first_sample(graph, len(calls))] for graph, calls in zip(graphs, every)]
        least, stopped = math.inf, False
        while len(samples[0]) < _SCREEN_REPLAYS and not stopped:
            for graph, times in zip(graphs, samples):
                times.append(graph.sample())
            least = _mean(map(min, samples))
            stopped = len(samples[0]) < _SCREEN_REPLAYS and least > stop_above
        middle = least if stopped else _mean(sorted(times)[len(times) // 2] for times in samples)
        return Screening(middle, len(samples[0]) * sum(map(len, every)), stopped)

    def race(
        self, key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int
    ) -> tuple[list[list[float]], int]:
        """`rounds` samples of each config, interleaved, in microseconds; and the number of launches in each sample."""
        every = [self._calls(key, batch, row) for row in rows]
        graphs = [measure.ColdGraph(calls, self._device) for calls in every]
        return measure.interleaved(graphs, rounds), len(every[0])

    def healthy(self) -> bool:
        """Whether the GPU still answers: after an illegal access every later call of the process would fail."""
        try:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except RuntimeError:
            return False
        return True

    def _make_ragged(self, key: rules.Key) -> tuple[Workload, torch.Tensor]:
        batch = ragged_batch(key, self._device, self._seed)
        return batch, batch.expected(key.op)

    def _make_segments(self, batch: Batch, max_rank: int, chunk_size: int) -> Segments:
        ids, ranks = adapter_ids(batch.tokens, batch.adapters, self._seed), [max_rank] * batch.adapters
        scalings = [_SCALING] * batch.adapters
        return Segments.from_tokens(ids, ranks, scalings, chunk_size=chunk_size, device=self._device)

    def _calls(self, key: rules.Key, batch: Batch, row: rules.Row) -> list[Callable[[], object]]:
        config = from_row(key.op, row)
        return [functools.partial(copy.run, key.op, config) for copy in self._copies(key, batch)]

    def _make_copies(self, key: rules.Key, batch: Batch) -> list[Workload]:
        """The batch over and over, each time with tensors of its own; the routing is shared, as among layers."""
        tokens, adapters, columns = batch.tokens, batch.adapters, key.num_slices * key.max_rank
        outputs, dtype = sum(key.slice_widths), dtypes.BY_NAME[key.dtype]
        shrinks, expands = key.op != "expand", key.op != "shrink"
        read = {
            "x": (tokens, key.input_dim) if shrinks else (0, 0),
            "lora_a": (adapters, columns, key.input_dim) if shrinks else (0, 0, 0),
            "h": (tokens, columns) if key.op == "expand" else (0, 0),
            "lora_b": (adapters, outputs, key.max_rank) if expands else (0, 0, 0),
        }
        written = {"base_output": (tokens, outputs) if expands else (0, 0)}
        moved = sum(math.prod(shape) for shape in (*read.values(), *written.values())) * dtype.itemsize
        copies = measure.num_copies(moved, self._device)
        inputs = self._read.cut(dtype, copies, read)
        bases = self._written.cut(dtype, copies, written)
        segments = self._segments(batch, key.max_rank, key.chunk_size)
        ids, ranks = adapter_ids(tokens, adapters, self._seed), [key.max_rank] * adapters
        widths = key.slice_widths or (16,) * key.num_slices
        return [Workload(ids, ranks, widths, segments, **one, **base) for one, base in zip(inputs, bases)]


def _mean(times: Iterable[float]) -> float:
    """The geometric mean: what is twice as fast on one batch and takes twice as long on another is as good."""
    return statistics.geometric_mean(times)


def open_lab(device: str, seed: int) -> Lab:
    """A lab in the process that calls this (see `worker.Worker`)."""
    return Lab(torch.device(device), seed)
