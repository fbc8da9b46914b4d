"""Host time of one call: what the CPU does before a kernel starts, which at decode is longer than the kernel runs.

Every figure is the median of many runs of back-to-back calls, few enough that the queue to the GPU is never full; the
GPU is idle when a run begins. The batch is one token for each of eight adapters, so that kernels end sooner than the
next call begins. A CPU's clock varies: compare figures of one run only, with `torch.empty` as the yardstick.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import csgmv
from csgmv import columns, dispatch, launch, models, rules, workload

ADAPTERS, RANK, CHUNK_SIZE = 8, 32, 16
_CALLS, _RUNS, _WARM_UP = 50, 41, 20


class Cost(NamedTuple):
    """Nanoseconds of one call: the median over runs, and the least."""

    name: str
    median: float
    least: float


def costs(calls: dict[str, Callable[[], object]], wait: Callable[[], object]) -> list[Cost]:
    """The host time of each call, all in turn, so that a drift of the clock falls on all alike.

    Args:
        calls: what to time, by name.
        wait: returns when the GPU has done all that was launched.
    """
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_RUNS):
        for name, call in calls.items():
            wait()
            start = time.perf_counter_ns()
            for _ in range(_CALLS):
                call()
            taken[name].append((time.perf_counter_ns() - start) / _CALLS)
    return [Cost(name, statistics.median(each), min(each)) for name, each in taken.items()]


def calls(layer: models.LayerShape, dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], object]]:
    """What `csgmv bench --host` times, by name: allocating h, the three operations, and looking up what is known.

    A look-up is timed beside a plain dict.get with a tuple of as many fields, which is the least that it could take.
    """
    work = workload.make(
        layer.input_dim,
        layer.slice_widths,
        range(ADAPTERS),
        [RANK] * ADAPTERS,
        dtype=dtype,
        chunk_size=CHUNK_SIZE,
        device=device,
    )
    work.run("add_lora")
    ready = next(key for key in reversed(launch.plans) if key[0] == "add_lora")
    key, shape = work.key("add_lora"), tuple(work.h.shape)
    table = {tuple(key): None}
    row, plans = tuple(key), launch.plans
    return {
        "torch.empty": lambda: torch.empty(shape, dtype=dtype, device=device),
        **{f"{'' if op == 'add_lora' else 'lora_'}{op}": _operation(work, op) for op in rules.OPS},
        "dict.get, a table's key": lambda: table.get(row),
        "plan of a known call": lambda: plans.get(ready),
        "config of a known key": lambda: dispatch.choose(key, device),
        "nothing": lambda: None,
    }


def _operation(work: workload.Workload, op: str) -> Callable[[], object]:
    """One operation without the workload's own way to it."""
    offsets, slices = work.slice_offsets, len(work.slice_widths)
    if op == "shrink":
        return lambda: csgmv.lora_shrink(work.x, work.lora_a, work.segments, slices)
    if op == "expand":
        return lambda: csgmv.lora_expand(work.h, work.lora_b, work.segments, offsets, work.base_output)
    return lambda: csgmv.add_lora(work.base_output, work.x, work.lora_a, work.lora_b, work.segments, offsets)


def table(found: list[Cost]) -> str:
    """The figures as text, in microseconds, less what calling nothing takes, and as multiples of torch.empty."""
    *measured, nothing = found
    empty = measured[0].median - nothing.median
    rows = [
        (
            each.name,
            f"{(each.median - nothing.median) / 1e3:.2f}",
            f"{(each.least - nothing.least) / 1e3:.2f}",
            f"{(each.median - nothing.median) / empty:.2f}",
        )
        for each in measured
    ]
    return columns.aligned(("call", "median µs", "least µs", "of torch.empty"), rows, columns.terminal_width())
