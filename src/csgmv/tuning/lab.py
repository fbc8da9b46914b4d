"""One GPU's side of the tuner: checks and times configs, in a process that does nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from csgmv import measure, rules, workload
from csgmv.config import from_row
from csgmv.tuning.plan import Task, adapter_ids
from csgmv.workload import Workload

_SCREEN_LAUNCHES = 24
_SCREEN_REPLAYS = 3
_TENSORS = {
    "shrink": ("x", "lora_a"),
    "expand": ("h", "lora_b", "base_output"),
    "add_lora": ("x", "lora_a", "lora_b", "base_output"),
}


class Screening(NamedTuple):
    """A first impression of a config. Units: microseconds (median), launches timed."""

    p50_us: float
    samples: int
    stopped_early: bool


class WrongResult(Exception):
    """A config whose result is not the reference's."""


def tolerance(key: rules.Key) -> float:
    """Largest difference from the reference that is allowed, as a share of the reference's largest value."""
    return workload.TOLERANCE[getattr(torch, key.dtype)]


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
        dtype=getattr(torch, key.dtype),
        chunk_size=key.chunk_size,
        device=device,
        seed=seed,
    )


class Lab:
    """Checks and times configs on one GPU. What was built for a key stays until another key is asked for."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        """Nothing is allocated yet. `seed` is that of every random tensor."""
        self._device, self._seed = device, seed
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._ragged = functools.lru_cache(maxsize=2)(lambda key: ragged_batch(key, device, seed))
        self._copies = functools.lru_cache(maxsize=1)(self._make_copies)

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """The largest error of a config on the ragged batch, as a share of the reference's largest value.

        Raises:
            WrongResult: it is beyond the tolerance, or NaN.
        """
        error = self._ragged(key._replace(segment_bucket=1)).error(key.op, from_row(key.op, row))
        if not error <= tolerance(key):
            raise WrongResult("wrong result")
        return error

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """Time a config briefly; after a first sample of more than `stop_above` microseconds it is left at that."""
        calls = self._calls(task, row)[:_SCREEN_LAUNCHES]
        graph = measure.ColdGraph(calls, self._device)
        times = [graph.sample()]
        while times[0] <= stop_above and len(times) < _SCREEN_REPLAYS:
            times.append(graph.sample())
        middle = sorted(times)[len(times) // 2]
        return Screening(middle, len(times) * len(calls), stopped_early=len(times) < _SCREEN_REPLAYS)

    def race(self, task: Task, rows: Sequence[rules.Row], rounds: int) -> tuple[list[list[float]], int]:
        """`rounds` samples of each config, interleaved, in microseconds; and the number of launches in each sample."""
        every = [self._calls(task, row) for row in rows]
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

    def _calls(self, task: Task, row: rules.Row) -> list[Callable[[], object]]:
        op, config = task.key.op, from_row(task.key.op, row)
        return [functools.partial(copy.run, op, config) for copy in self._copies(task)]

    def _make_copies(self, task: Task) -> list[Workload]:
        """The task's batch over and over, each time with tensors of its own; the routing is shared, as among layers."""
        self._copies.cache_clear()
        ids = adapter_ids(task.tokens, task.adapters, self._seed)
        first = _make(task.key, ids, [task.key.max_rank] * task.adapters, self._device, self._seed)
        names = _TENSORS[task.key.op]
        copies = measure.num_copies(sum(getattr(first, name).nbytes for name in names), self._device)
        return [first] + [
            replace(first, **{name: getattr(first, name).clone() for name in names}) for _ in range(copies - 1)
        ]


def open_lab(device: str, seed: int) -> Lab:
    """A lab in the process that calls this (see `worker.Worker`)."""
    return Lab(torch.device(device), seed)
