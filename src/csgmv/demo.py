"""Run the LoRA layers of Qwen3-Embedding-0.6B for a batch with many adapters, by the configs in the package's table.

Adapters have different ranks and scalings, and some rows have no adapter. Every result is compared with a float32
reference in plain torch. On a GPU each operation is also timed, with the built-in default config and with the table's;
without one the kernels are interpreted on the CPU, at a size that takes some seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from csgmv import columns, dispatch, launch, measure, rules, workload
from csgmv.config import default_config
from csgmv.models import QWEN3_EMBEDDING_0_6B, LayerShape

EXAMPLES = {"csgmv demo": "There are no options: it is the same for everyone."}
STATUSES = {1: "a result is wrong"}


class Batch(NamedTuple):
    """How many tokens a batch has, the ranks of its adapters, and the most rows of a segment."""

    tokens: int
    ranks: tuple[int, ...]
    chunk_size: int


_RANKS = (64, 16, 8, 64, 32, 48, 12, 64)
ON_GPU: tuple[Batch, ...] = (Batch(64, _RANKS, 16), Batch(8192, _RANKS, 64))
INTERPRETED: tuple[Batch, ...] = (Batch(24, (64, 24, 8), 16),)


def ids(batch: Batch) -> list[int | None]:
    """The adapter of each token: requests of uneven lengths in no order; one token in eight has no adapter."""
    drawn = workload.adapter_ids("zipf", batch.tokens, len(batch.ranks))
    return [None if token % 8 == 5 else adapter for token, adapter in enumerate(drawn)]


class Line(NamedTuple):
    """One operation of one layer: the step that its config came from, how far from the reference it is, and its times.

    Times are microseconds, of the default config and of the table's; None without a GPU or for a wrong result.
    """

    layer: str
    batch: Batch
    op: str
    step: str
    error: float
    right: bool
    times_us: tuple[float, ...] | None  # default, tuned

    @property
    def cells(self) -> list[str]:
        """The line as a row of the table, in the order of HEADER and TIMES."""
        error = f"{self.error:.1e}" if self.right else f"WRONG: {self.error:.1e}"
        step = self.step.replace("nearest ", "").replace("the default was measured best", "default")
        cells = [self.layer, self.op, str(self.batch.tokens), step, error]
        if self.times_us is None:
            return [*cells, "-", "-", "-"]
        default, tuned = self.times_us
        return [*cells, f"{default:.1f}", f"{tuned:.1f}", f"{default / tuned:.2f}×"]


HEADER = ("layer", "operation", "tokens", "config", "max error")
TIMES = ("default", "tuned", "gain")  # microseconds, microseconds, their ratio


def lines(layer: LayerShape, batch: Batch, dtype: torch.dtype, device: torch.device) -> Iterator[Line]:
    """Run each operation of one layer with the table's config, check it, and on a GPU time it."""

    def make(seed: int) -> workload.Workload:
        return workload.make(
            layer.input_dim,
            layer.slice_widths,
            ids(batch),
            batch.ranks,
            dtype=dtype,
            chunk_size=batch.chunk_size,
            device=device,
            seed=seed,
        )

    works = [make(0)]
    # Every check comes before any timing: timed calls pile up on base_output until its rounding hides what they add.
    errors = {op: works[0].error(op) for op in rules.OPS}
    for op, error in errors.items():
        key = works[0].key(op)
        choice = dispatch.choose(key, device)
        right = error <= workload.TOLERANCE[dtype]  # False for NaN
        times_us = None
        if right and device.type == "cuda":
            works += [make(seed) for seed in range(len(works), measure.num_copies(works[0].moved_bytes(op), device))]
            default = default_config(key, dispatch.device_limits(device))
            times_us = tuple(measure.times(works, op, [default, choice.config]))
        yield Line(layer.name, batch, op, choice.step, error, right, times_us)


def add_arguments(_: argparse.ArgumentParser) -> None:
    """`csgmv demo` has no options: it is the same for everyone."""


def run(_: argparse.Namespace) -> int:
    """Run, check and print every layer; exit status 1 where a result is wrong."""
    on_gpu = torch.cuda.is_available() and not launch.INTERPRETED
    if not on_gpu and importlib.util.find_spec("numpy") is None:
        raise ValueError("without a GPU, Triton interprets the kernels and needs numpy: pip install 'csgmv[interpret]'")
    if on_gpu:
        device, dtype, batches = torch.device("cuda", torch.cuda.current_device()), torch.bfloat16, ON_GPU
        print(f"Qwen3-Embedding-0.6B's LoRA layers, {dtype}, on {torch.cuda.get_device_name(device)}")
    else:
        device, dtype, batches = torch.device("cpu"), torch.float16, INTERPRETED
        print(f"Qwen3-Embedding-0.6B's LoRA layers, {dtype}, interpreted on the CPU: results, no times")
    for batch in batches:
        none = sum(adapter is None for adapter in ids(batch))
        ranks = ", ".join(map(str, batch.ranks))
        print(f"{batch.tokens} tokens, chunk size {batch.chunk_size}, {none} rows without an adapter; ranks {ranks}")
    found: list[Line] = []
    for batch, layer in itertools.product(batches, QWEN3_EMBEDDING_0_6B):
        columns.progress(f"{layer.name}, {batch.tokens} tokens")
        found += lines(layer, batch, dtype, device)
    columns.progress("")
    header = (*HEADER, *TIMES) if on_gpu else HEADER
    print()
    print(columns.aligned(header, [line.cells[: len(header)] for line in found], columns.terminal_width()))
    wrong = sum(not line.right for line in found)
    print()
    print("config: the table's row for exactly this launch, or for the nearest one that it has a row for.")
    print("max error: largest difference from a float32 reference, relative to its largest value", end=" ")
    print(f"(allowed: {workload.TOLERANCE[dtype]:g}).")
    if on_gpu:
        print(f"default, tuned: microseconds. {measure.TURNS}")
    if wrong:
        print(f"{wrong} of {len(found)} results are WRONG.")
    else:
        print(f"All {len(found)} results are right. What there is for your model says `csgmv coverage --model NAME`.")
    return 1 if wrong else 0
