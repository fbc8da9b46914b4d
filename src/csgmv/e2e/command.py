"""`csgmv bench --e2e`: make the models, check every way to serve them, time the right ones, and tell."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton

import csgmv
from csgmv import chunk_sizes, columns, dtypes, files, no_gpu, readme_block, workload
from csgmv.e2e import options, random_adapters, random_model, reference, steps, stopwatch, ways
from csgmv.e2e.random_adapters import Adapter
from csgmv.e2e.results import SMALL_CHUNK, Batch, Report, Subject, Timed
from csgmv.e2e.stopwatch import Stopwatch
from csgmv.e2e.ways import Names, Way
from csgmv.integrations import linear_layers
from csgmv.measure import copy_bandwidth

_CLEAR = 4  # an adapter's effect must be as many tolerances, or a wrong result could pass for a right one
METHOD = f"{stopwatch.METHOD}. {steps.METHOD}"


def floor_bytes(model: Any, adapters: Sequence[Adapter], names: Names, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that the adapters' calls of one forward pass must move: layers with one input make one call.

    Args:
        model: the bare one.
        adapters: all that the batch uses.
        names: an adapter's for each row, or None.
        tokens: of each row.
        dtype: of the model.
    """
    linears = linear_layers.of(model, dtype)
    paths = [path for path, linear in linears.items() if linear is not None]
    active = [(each.rank, tokens * count) for each in adapters if (count := [*names].count(each.name))]
    moved = 0
    for group in linear_layers.groups(paths, linears):
        found = [linear for path in group if (linear := linears[path]) is not None]
        widths = [linear.output_dim for linear in found]
        moved += workload.moved_bytes("add_lora", found[0].input_dim, widths, active, dtype.itemsize)
    return moved


def measure(
    model: Any,
    adapters: Sequence[Adapter],
    found: Sequence[Way],
    shape: tuple[int, int],
    chosen: int,
    bandwidth: float,
    watch: Stopwatch,
) -> Batch:
    """Check and time one batch, whose rows take the adapters in turn.

    Args:
        model: the bare one.
        adapters: that `found` serves.
        found: the ways to serve it, the bare one first.
        shape: rows, and tokens of each.
        chosen: the chunk size that csgmv chooses for it.
        bandwidth: bytes per second that a copy moves.
        watch: what captures and times.

    Raises:
        ValueError: the adapters change so little that a wrong result could not be told.
    """
    rows, tokens = shape
    parameter = next(model.parameters())
    step = steps.step(rows, tokens, model.config.vocab_size, parameter.device)
    mixed: Names = [adapters[row % len(adapters)].name for row in range(rows)]
    none: Names = [None] * rows
    by_name = {adapter.name: adapter for adapter in adapters}
    wanted = {
        empty: step.states(reference.states(model, by_name, names, step.ids))
        for empty, names in ((True, none), (False, mixed))
    }
    calls, errors = [], []
    with torch.no_grad():
        for way in found:
            columns.progress(f"{rows} x {tokens}: {way.name}")
            calls.append(step.of(way, none if way.empty else mixed, watch))
            errors.append(reference.error(calls[-1](), wanted[way.empty]))
        tolerance = reference.tolerance(errors[0])
        effect = reference.error(wanted[True], wanted[False])
        if effect < _CLEAR * tolerance:
            raise ValueError(
                f"--e2e: expected adapters whose effect is {_CLEAR} times the tolerance of {tolerance:.1e}, "
                f"got {effect:.1e}: no wrong result could be told from a right one"
            )
        right = [error <= tolerance for error in errors]  # False for NaN
        times = iter(watch.medians([call for call, fine in zip(calls, right) if fine]))
    columns.progress("")
    timed = [
        Timed(way.name, way.chunk_size, error if math.isfinite(error) else None, next(times) if fine else None)
        for way, error, fine in zip(found, errors, right)
    ]
    moved = floor_bytes(model, adapters, mixed, tokens, parameter.dtype)
    return Batch(rows, tokens, chosen, tolerance, moved / bandwidth * 1e3, timed)


def subject(
    asked: options.Subject,
    count: int,
    ranks: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    bandwidth: float,
    watch: Stopwatch,
) -> Subject:
    """Make a model and its adapters, and measure all batches that are asked for."""
    model = random_model.make(asked.model, asked.layers, dtype, device)
    with tempfile.TemporaryDirectory() as folder:
        adapters = random_adapters.make(model, count, ranks, dtype, Path(folder))
        found = ways.ways(model, adapters)
    batches = []
    for rows, tokens in asked.batches:
        chosen = chunk_sizes.choose(rows * tokens, min(rows, count), device)
        # Where the chosen chunk size is the small one, it is measured once.
        these = [way for way in found if way.chunk_size is None or chosen != SMALL_CHUNK]
        these = [way for way in these if way.capturable or tokens > 1]
        batches.append(measure(model, adapters, these, (rows, tokens), chosen, bandwidth, watch))
    layers = model.config.num_hidden_layers
    return Subject(asked.model, layers, dtypes.NAMES[dtype], count, ranks, batches)


def report(args: argparse.Namespace, device: torch.device, bandwidth: float, watch: Stopwatch) -> Report:
    """Measure all that the options ask for."""
    count = args.adapters[0] if args.adapters else options.ADAPTERS
    ranks = args.rank[0] if args.rank else options.RANKS
    dtype = dtypes.BY_NAME[args.dtype]
    measured = [subject(asked, count, ranks, dtype, device, bandwidth, watch) for asked in options.subjects(args)]
    return Report(
        subjects=measured,
        gpu=torch.cuda.get_device_name(device),
        torch=torch.__version__,
        triton=triton.__version__,
        transformers=importlib.metadata.version("transformers"),
        peft=_version("peft"),
        csgmv=csgmv.__version__,
        table=csgmv.__table_digest__,
        date=datetime.date.today().isoformat(),
        copy_bandwidth=bandwidth,
        method=METHOD,
        command=args.command_line,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(args: argparse.Namespace) -> int:
    """Measure and print; exit status 1 where a result was wrong.

    Raises:
        ValueError: there is no GPU, or no place in --into.
        ImportError: transformers is missing.
        OSError: a model's config is not found, or a file cannot be read or written.
    """
    no_gpu.require("bench --e2e", "`python -m csgmv.examples.transformers` serves a model's adapters without one")
    if args.into is not None:
        readme_block.check(args.into, args.block or options.MARKER)
    device = torch.device("cuda", torch.cuda.current_device())
    measured = report(args, device, copy_bandwidth(device), Stopwatch(device))
    if args.json is not None:
        files.replace(args.json, measured.json())
    if args.into is not None:
        readme_block.put(args.into, measured.markdown(), args.block or options.MARKER)
    else:
        print(measured.markdown() if args.markdown else measured.text(columns.terminal_width()))
    return 0 if measured.right else 1
