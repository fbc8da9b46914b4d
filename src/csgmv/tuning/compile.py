"""Compiling ahead: fills Triton's cache on disk from several processes, while another one measures.

A binary depends on a config, a key's dimensions and its chunk size, not on the number of segments, so it is compiled
once for all segment buckets. None of our kernels is launched here: one that runs in another process would disturb what
is being measured.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import torch

from csgmv import launch, rules
from csgmv.config import ExpandConfig, ShrinkConfig, from_row
from csgmv.tuning.lab import ragged_batch
from csgmv.tuning.worker import Failure, Farm

COMPILE_SECONDS = 60.0


class Binary(NamedTuple):
    """What a config's kernels take: the most of any of them; spills (bytes) are summed."""

    shared_bytes: int
    registers: int
    spills: int


class Compiler:
    """Compiles configs in the process that it is made in, which can launch nothing from then on."""

    def __init__(self, device: str) -> None:
        """Kernels are compiled for `device`."""
        torch.cuda.set_device(torch.device(device))
        self._batch = functools.lru_cache(maxsize=8)(lambda key: ragged_batch(key, torch.device(device)))
        self._compiled: list[Any] = []
        launch.run = self._compile_instead

    def compile(self, key: rules.Key, row: rules.Row) -> Binary:
        """Compile a config's kernels for a key, or raise what Triton raises."""
        self._compiled.clear()
        self._batch(key).run(key.op, from_row(key.op, row))
        kernels = self._compiled
        return Binary(
            shared_bytes=max(kernel.metadata.shared for kernel in kernels),
            registers=max(kernel.n_regs for kernel in kernels),
            spills=sum(kernel.n_spills for kernel in kernels),
        )

    def _compile_instead(
        self,
        kernel: Any,
        programs: int,
        config: ShrinkConfig | ExpandConfig | None,
        tensors: Sequence[torch.Tensor],
        sizes: Sequence[int],
        constants: Mapping[str, int | bool],
        *,
        overlap: bool = False,
    ) -> None:
        """Stands in for launch.run: compiles and loads what would have been launched."""
        options = launch.options(config, overlap)
        binary = kernel.warmup(*tensors, *sizes, grid=(programs,), **constants, **options)
        binary._init_handles()  # loads it: shared memory or registers beyond the device's raise here
        self._compiled.append(binary)

    def healthy(self) -> bool:
        """Whether the next compilation stands a chance; nothing is launched here that could spoil it."""
        return True


class CompileFarm:
    """Compiles configs in several processes, each config once."""

    def __init__(self, device: torch.device, processes: int) -> None:
        """`processes` of them, started as work comes in."""
        self._farm = Farm(processes, Compiler, str(device))
        self._futures: dict[tuple[rules.Key, rules.Row], Future[Binary]] = {}

    def submit(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, Future[Binary]]:
        """A future for each row, which gives its Binary or raises Failure."""
        shape = key._replace(segment_bucket=1)
        for row in rows:
            if (shape, row) not in self._futures:
                self._futures[shape, row] = self._farm.submit("compile", shape, row, limit=COMPILE_SECONDS)
        return {row: self._futures[shape, row] for row in rows}

    def close(self) -> None:
        """Stop every process."""
        self._farm.close()


def outcome(future: Future[Binary]) -> Binary | Failure:
    """What became of a compilation that has ended."""
    error = future.exception()
    return future.result() if error is None else Failure(str(error))
