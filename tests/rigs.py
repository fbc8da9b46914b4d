"""Rigs without a GPU, which compile nothing; that for workers of a Ray cluster has hashes of configs for times."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from csgmv import rules
from csgmv.tuning.environment import kernel_hash
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Task
from csgmv.tuning.race import Bench
from csgmv.tuning.rig import Site
from searching import H200, RUN, Farm, HashBench

HERE = Site("NVIDIA H200", "3.6.0", H200, dataclasses.replace(RUN, kernel_hash=kernel_hash()))


class StillRig:
    """A rig in this process, whose bench and farm the test has made."""

    resource, threads = "GPU", 1

    def __init__(self, bench: Bench, farm: Farm | None = None, site: Site = HERE) -> None:
        self._bench, self._farm, self._site = bench, farm or Farm(), site

    def survey(self, seed: int) -> Site:
        """As it was given."""
        return self._site._replace(run=dataclasses.replace(self._site.run, seed=seed))

    @contextlib.contextmanager
    def opened(self, seed: int, processes: int) -> Iterator[tuple[Bench, Farm]]:
        """No processes are started."""
        del seed, processes
        yield self._bench, self._farm


class HashRig:
    """Takes a processor instead of a GPU, and leaves a trace of every process that it works in.

    Screening a config takes `pause` seconds. The first process to screen its `fatal`-th config of so many slices is
    killed there: (slices, configs).
    """

    resource, threads = "CPU", 1  # the same order each time

    def __init__(self, traces: Path, pause: float = 0.0, fatal: tuple[int, int] = (0, 0)) -> None:
        self._traces, self._pause, self._fatal = traces, pause, fatal

    def survey(self, seed: int) -> Site:
        """The GPU that is named by the node's accelerator type, where it has one."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
        names = [kind.partition(":")[2] for kind in resources if kind.startswith("accelerator_type:")]
        return HERE._replace(gpu=names[0] if names else HERE.gpu, run=dataclasses.replace(HERE.run, seed=seed))

    @contextlib.contextmanager
    def opened(self, seed: int, processes: int) -> Iterator[tuple[HashBench, Farm]]:
        """No processes are started."""
        del seed, processes
        (self._traces / str(os.getpid())).touch()
        yield _Fragile(self._traces / "killed", self._pause, self._fatal), Farm()


class _Fragile(HashBench):
    def __init__(self, trace: Path, pause: float, fatal: tuple[int, int]) -> None:
        super().__init__()
        self._trace, self._pause, self._fatal = trace, pause, fatal

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        time.sleep(self._pause)
        screening = super().screen(task, row, stop_above)
        if (task.key.num_slices, self.screens) == self._fatal and not self._trace.exists():
            self._trace.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return screening
