"""Time each kernel with the built-in default config and with the table's, and hold both against the memory.

The floor is the bytes that an operation must move, over the bandwidth of a device-to-device copy measured in the same
run. Times are median GPU times with a cold L2, of the two configs in turn. A wrong result is reported and not timed.
With --peers it measures nothing and tells what bench_peers.py measured beside other projects' kernels; with --e2e it
times a whole transformers model with many adapters in one batch, beside the bare model.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
from collections.abc import Sequence

import torch
import triton

import csgmv
from csgmv import (
    bench_options,
    columns,
    config,
    dispatch,
    dtypes,
    files,
    host,
    measure,
    models,
    no_gpu,
    peer_report,
    readme_block,
    rules,
    workload,
)
from csgmv.bench_options import MARKER, add_arguments
from csgmv.figures import Case, Figure, Report

__all__ = ["MARKER", "add_arguments", "run"]  # the first two are the options'

EXAMPLES = {
    "csgmv bench": "Qwen3-Embedding-0.6B's layers, 30720 tokens of one adapter.",
    "csgmv bench --model llama-3.1-8b --tokens 32 --adapters 32 --rank 8+16+64 --ops add_lora": "A decode batch with "
    "mixed ranks.",
    "csgmv bench --host": "What a call takes of the host.",
    "csgmv bench --e2e": "Whole transformers models with eight adapters in a batch, beside the bare ones.",
    "csgmv bench --json bench.json": "Every figure, for programs and for `csgmv report --bench`.",
}
STATUSES = {1: "a result was wrong"}


def layers(args: argparse.Namespace) -> list[models.LayerShape]:
    """The layers that the options name."""
    named = list(args.layer or ())
    if args.model is not None:
        named += models.layer_shapes(args.model, args.tp or 1)
    return named or list(models.QWEN3_EMBEDDING_0_6B)


def cases(shapes: Sequence[models.LayerShape], args: argparse.Namespace) -> list[Case]:
    """Every kernel that the options ask for, each once, with the names of all layers that launch it.

    A shrink does not depend on the slices' widths, nor an expand on input_dim: o and down share their expand.
    """
    shared: dict[tuple[object, ...], list[models.LayerShape]] = {}
    for op, shape in itertools.product(args.ops or bench_options.OPS, shapes):
        launched = {
            "shrink": (op, shape.input_dim, len(shape.slice_widths)),
            "expand": (op, shape.slice_widths),
            "add_lora": (op, shape.input_dim, shape.slice_widths),
        }
        shared.setdefault(launched[op], []).append(shape)
    batches = list(
        itertools.product(
            args.rank or bench_options.RANKS,
            args.tokens or bench_options.TOKENS,
            args.adapters or bench_options.ADAPTERS,
            args.chunk_sizes or bench_options.CHUNK_SIZES,
        )
    )
    return [
        Case(
            layers=tuple(shape.name for shape in same),
            op=str(launched[0]),
            input_dim=same[0].input_dim,
            slice_widths=same[0].slice_widths,
            ranks=ranks,
            tokens=tokens,
            adapters=adapters,
            distribution=args.distribution or bench_options.DISTRIBUTION,
            chunk_size=chunk_size,
            dtype=args.dtype,
        )
        for launched, same in shared.items()
        for ranks, tokens, adapters, chunk_size in batches
    ]


def _workload(case: Case, device: torch.device, seed: int = 0) -> workload.Workload:
    return workload.make(
        case.input_dim,
        case.slice_widths,
        workload.adapter_ids(case.distribution, case.tokens, case.adapters),
        [rank for rank, _ in zip(itertools.cycle(case.ranks), range(case.adapters))],
        dtype=dtypes.BY_NAME[case.dtype],
        chunk_size=case.chunk_size,
        device=device,
        seed=seed,
    )


def figure(case: Case, device: torch.device, bandwidth: float, invariant: bool = False) -> Figure:
    """Check and time one case.

    Args:
        case: what to measure.
        device: a GPU.
        bandwidth: bytes per second that a copy moves.
        invariant: time a launch with batch_invariant=True as well.
    """
    first = _workload(case, device)
    key = first.key(case.op)
    choice = dispatch.choose(key, device)
    configs = [config.default_config(key, dispatch.device_limits(device)), choice.config]
    if invariant:
        configs.append(dispatch.choose(key, device, True).config)
    errors = [first.error(case.op, each) for each in configs]
    right = [error <= workload.TOLERANCE[first.x.dtype] for error in errors]  # False for NaN
    moved = first.moved_bytes(case.op)
    works = [first, *(_workload(case, device, seed) for seed in range(1, measure.num_copies(moved, device)))]
    worth = [each for each, fine in zip(configs, right) if fine]
    timed = iter(measure.times(works, case.op, worth) if worth else ())
    default_us, tuned_us, *invariant_us = (next(timed) if fine else None for fine in right)
    return Figure(
        case=case,
        step=choice.step,
        default_config=_named(configs[0]),
        tuned_config=_named(configs[1]),
        default_error=errors[0],
        tuned_error=errors[1],
        default_us=default_us,
        tuned_us=tuned_us,
        floor_us=moved / bandwidth * 1e6,
        invariant_config=_named(configs[2]) if invariant else None,
        invariant_error=errors[2] if invariant else 0.0,
        invariant_us=invariant_us[0] if invariant else None,
    )


def _named(each: config.Config) -> dict[str, int | bool | None]:
    return dict(zip(rules.FIELD_NAMES[each.op], config.to_row(each)))


def report(args: argparse.Namespace, device: torch.device) -> Report:
    """Measure all that the options ask for."""
    everything = cases(layers(args), args)
    bandwidth = measure.copy_bandwidth(device)
    measured = []
    for number, case in enumerate(everything, start=1):
        columns.progress(f"{number}/{len(everything)} {case.op} {case.dimension}, chunk size {case.chunk_size}")
        measured.append(figure(case, device, bandwidth, bool(args.batch_invariant)))
    columns.progress("")
    return Report(
        figures=measured,
        gpu=torch.cuda.get_device_name(device),
        torch=torch.__version__,
        triton=triton.__version__,
        csgmv=csgmv.__version__,
        date=datetime.date.today().isoformat(),
        copy_bandwidth=bandwidth,
        method=measure.TURNS,
        command=args.command_line,
    )


def _run_host(args: argparse.Namespace, device: torch.device) -> int:
    layer = layers(args)[0]
    dimension = rules.dimensions("add_lora", layer.input_dim, layer.slice_widths, len(layer.slice_widths), host.RANK)
    found = host.costs(
        host.calls(layer, dtypes.BY_NAME[args.dtype], device), wait=functools.partial(torch.cuda.synchronize, device)
    )
    print(host.table(found))
    print(
        f"\n{torch.cuda.get_device_name(device)}, torch {torch.__version__}, Triton {triton.__version__}, "
        f"csgmv {csgmv.__version__}. {layer.name}, {dimension}, {args.dtype}: {host.ADAPTERS} tokens, each of another "
        f"adapter, chunk size {host.CHUNK_SIZE}. Host time of one of back-to-back calls, the queue never full."
    )
    return 0


def run(args: argparse.Namespace) -> int:
    """Measure and print; exit status 1 where a result was wrong.

    Raises:
        ValueError: there is no GPU, the options do not fit together, or a file of --peers is malformed.
    """
    bench_options.check(args)
    if args.peers is not None:
        return peer_report.run(args)
    if args.e2e:
        from csgmv.e2e import command

        return command.run(args)
    no_gpu.require("bench", "`csgmv demo` runs without one")
    if args.host:
        return _run_host(args, torch.device("cuda", torch.cuda.current_device()))
    if args.into is not None:
        readme_block.check(args.into, args.block or MARKER)
    measured = report(args, torch.device("cuda", torch.cuda.current_device()))
    if args.json is not None:
        files.replace(args.json, measured.json())
    if args.into is not None:
        readme_block.put(args.into, measured.markdown(), args.block or MARKER)
    else:
        print(measured.markdown() if args.markdown else measured.text(columns.terminal_width()))
    return 0 if all(each.right for each in measured.figures) else 1
