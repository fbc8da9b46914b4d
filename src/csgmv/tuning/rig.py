"""What a session measures and compiles with: one GPU, the process that has it to itself, those that compile for it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from csgmv import dispatch, rules
from csgmv.tuning.compile import Binary, CompileFarm
from csgmv.tuning.environment import current_run
from csgmv.tuning.lab import Screening, open_lab
from csgmv.tuning.model import Device
from csgmv.tuning.plan import Batch, Task
from csgmv.tuning.race import Bench
from csgmv.tuning.record import Run
from csgmv.tuning.side_by_side import Samples
from csgmv.tuning.worker import Failure, Worker, prepare

MEASURE_SECONDS = 60.0


class Compiling(Protocol):
    """What a session asks of the processes that compile. See compile.CompileFarm."""

    @property
    def binaries(self) -> int:
        """How many were asked for."""

    def missing(self, key: rules.Key, rows: Sequence[rules.Row]) -> Mapping[rules.Row, int]:
        """How many binaries of each row nobody has asked for."""

    def submit(self, key: rules.Key, rows: Sequence[rules.Row]) -> Mapping[rules.Row, Sequence[Future[Binary]]]:
        """The futures of each row's binaries."""


class Site(NamedTuple):
    """Where records are measured: the names that they are kept under, what its device can run, and the environment."""

    gpu: str
    triton: str
    device: Device
    run: Run


class Rig(Protocol):
    """What tunes on one GPU. See Gpu.

    Attributes:
        resource: Ray's name for what a rig takes one of.
        threads: of a session; see session.Session.
    """

    resource: str
    threads: int

    def survey(self, seed: int) -> Site:
        """What there is here; `seed` is that of the records."""

    def opened(self, seed: int, processes: int) -> AbstractContextManager[tuple[Bench, Compiling]]:
        """A bench, and what compiles for it in so many processes, until the context is left."""


class Gpu:
    """A GPU of this machine."""

    resource = "GPU"
    threads = 2  # deciding takes less time than measuring: a third would find nothing to do

    def __init__(self, device: torch.device | None = None) -> None:
        """`device` None is the current GPU of the process that asks."""
        self._given = device

    def survey(self, seed: int) -> Site:
        """See Rig.

        Raises:
            RuntimeError: torch finds no GPU.
        """
        device = self._device()
        prepare()
        where = dispatch.target(device)
        sm_count = torch.cuda.get_device_properties(device).multi_processor_count
        return Site(where.gpu, where.triton, Device(where.limits, sm_count), current_run(device, seed))

    @contextlib.contextmanager
    def opened(self, seed: int, processes: int) -> Iterator[tuple[Bench, Compiling]]:
        """See Rig."""
        device = self._device()
        worker = Worker(open_lab, str(device), seed)
        worker.start()
        farm = CompileFarm(device, processes)
        try:
            yield RemoteBench(worker), farm
        finally:
            farm.close()
            worker.close()

    def _device(self) -> torch.device:
        if not torch.cuda.is_available():
            raise RuntimeError("tuning needs a GPU, and torch finds none")
        return torch.device("cuda", torch.cuda.current_device()) if self._given is None else self._given


def spare_processes(rigs: int = 1) -> int:
    """How many processes may compile for each of so many rigs on this machine; each keeps two processors for itself."""
    return max(1, len(os.sched_getaffinity(0)) // rigs - 2)


class RemoteBench:
    """A lab in another process, asked once per config and shape whether the config is right."""

    def __init__(self, worker: Worker) -> None:
        """`worker` serves a `lab.Lab`."""
        self.seconds = 0.0  # that it has been measuring
        self._worker = worker
        self._checked: dict[tuple[rules.Key, rules.Row], float | Failure] = {}

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """See lab.Lab.check."""
        shape = key._replace(segment_bucket=1)
        if (shape, row) not in self._checked:
            try:
                self._checked[shape, row] = self._call("check", shape, row)
            except Failure as failure:
                self._checked[shape, row] = failure
        known = self._checked[shape, row]
        if isinstance(known, Failure):
            raise known
        return known

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """See lab.Lab.screen."""
        screening: Screening = self._call("screen", task, row, stop_above)
        return screening

    def race(self, key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int) -> tuple[Samples, int]:
        """See lab.Lab.race."""
        times: tuple[Samples, int] = self._call("race", key, batch, rows, rounds)
        return times

    def _call(self, method: str, *args: Any) -> Any:
        begun = time.monotonic()
        try:
            return self._worker.call(method, *args, limit=MEASURE_SECONDS)
        finally:
            self.seconds += time.monotonic() - begun
