"""Find the fastest launch configs for a model's layers on this GPU, and write them as raw results.

A run may be stopped at any time; the next one goes on where it ended. Times are GPU microseconds with a cold L2.
`python -m codegen` makes a table of the results, `csgmv.load_overlay` loads them, `csgmv report` shows them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from csgmv import (
    columns,
    dispatch,
    dtypes,
    footprint,
    layer_options,
    misses,
    no_gpu,
    overlay,
    rules,
)
from csgmv.option_types import number, whole
from csgmv.tuning import again, fleet, run_options, space
from csgmv.tuning.environment import current_run
from csgmv.tuning.plan import ADAPTERS, TOKENS, Keys, Plan, Task
from csgmv.tuning.record import Archive
from csgmv.tuning.session import Step, Summary
from csgmv.tuning.tuner import tune

FAILED = 1
EXAMPLES = {
    "csgmv tune --model Qwen/Qwen3-Embedding-0.6B --rank 64": "Every key of a model's layers, into ./configs.",
    "csgmv tune --model llama-3.1-8b --rank 16 --dry-run": "What that would measure; needs no GPU.",
    "csgmv tune --layer o:2048:1024 --rank 16 --tokens 1 32 --time-budget 600": "One layer in small batches, for ten "
    "minutes at most.",
    "csgmv tune --from-misses misses.json --out tuned --then-load": "What a server was found to lack.",
    "csgmv tune --noisy 10": "Once more what another process may have disturbed.",
}
STATUSES = {FAILED: "some keys could not be measured: they have no config that works"}
# What --from-misses, --stale and --noisy say by themselves, and what it is where none of them is given.
_WHAT = {
    "model": None,
    "adapter": [],
    "layer": [],
    "rank": None,
    "tp": [1],
    "dtype": "bfloat16",
    "ops": rules.OPS,
    "chunk_sizes": rules.CHUNK_SIZES,
    "tokens": TOKENS,
    "adapters": (),
}
# What --dry-run assumes where there is no GPU, neither here nor in the table: an H200.
_H200 = footprint.Limits(shared_memory=232448, programmatic_launch=True)


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `csgmv tune`."""
    what = parser.add_argument_group("what to tune")
    layer_options.add_arguments(what)
    add = what.add_argument
    chunk_sizes, tokens = "most rows of a segment", "batch sizes, in tokens"
    add("--chunk-sizes", type=whole(1), nargs="+", default=rules.CHUNK_SIZES, metavar="N", help=chunk_sizes)
    add("--tokens", type=whole(1), nargs="+", default=TOKENS, metavar="N", help=tokens)
    add(
        "--adapters",
        type=whole(1),
        nargs="+",
        default=(),
        metavar="N",
        help=f"adapters in a batch (default: {_listed(ADAPTERS)}, as far as there are tokens)",
    )
    add(
        "--from-misses",
        type=Path,
        metavar="FILE",
        help="just the keys in a file that csgmv.record_misses wrote, instead of all the above",
    )
    add("--stale", action="store_true", help="just the keys in FOLDER that were measured with other kernels than these")
    add(
        "--noisy",
        type=number(),
        metavar="PERCENT",
        help="just the keys in FOLDER whose times varied by more than this; measured again",
    )
    how = parser.add_argument_group("how")
    add = how.add_argument
    add("--out", type=Path, default=Path("configs"), metavar="FOLDER", help="where raw results go")
    run_options.add_arguments(how)
    add("--force", action="store_true", help="measure also what was measured already")
    add("--then-load", action="store_true", help="load all results in FOLDER and say which keys launch with their own")
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="tune on every GPU of the Ray cluster at ADDRESS, or else of the one that this machine belongs to",
    )
    add("--dry-run", action="store_true", help="print the keys and the size of the search, measure nothing")


def run(args: argparse.Namespace) -> int:
    """Tune, and return the exit status: 0 all well, 1 some keys could not be measured, 2 no GPU.

    Raises:
        ValueError: the options do not make a plan, or a file of raw results is broken.
    """
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out: expected a folder, got {args.out}")
    if args.noisy is not None and args.ray is not None:
        raise ValueError("--noisy: expected without --ray, since what is noisy on one GPU need not be so on another")
    plan = _plan(args)
    if not args.dry_run and args.ray is None:
        no_gpu.require("tune", "--dry-run and --ray work without")
    if args.dry_run:
        return _dry_run(plan, None if _again(args) else args.out, args.seed)
    started = time.monotonic()
    with _progress() as report:
        summary = _tuner(args)(
            plan,
            args.out,
            force=_again(args),
            time_budget=args.time_budget,
            processes=args.processes,
            seed=args.seed,
            report=report,
        )
    seconds = time.monotonic() - started
    gpu = "the GPU was" if args.ray is None else "the GPUs together were"
    print(f"{summary.tuned} keys tuned in {seconds:.0f} s into {args.out}; {summary.fresh} were there already")
    print(
        f"{summary.binaries} binaries compiled; {gpu} measuring for {summary.measuring:.0f} s "
        f"and waiting for {summary.waiting:.0f} s for compilations"
    )
    if summary.left:
        print(f"{summary.left} keys are left; the same command goes on with them")
    if summary.failed:
        print(f"{summary.failed} keys have no config that works", file=sys.stderr)
    if args.then_load and (summary.tuned or summary.fresh):
        _load(args.out, plan)
    return FAILED if summary.failed else 0


def _again(args: argparse.Namespace) -> bool:
    """Whether what was measured already is measured too."""
    return args.force or args.noisy is not None


def _tuner(args: argparse.Namespace) -> Callable[..., Summary]:
    """What tunes: this machine's GPU, or a cluster's."""
    return tune if args.ray is None else functools.partial(fleet.tune, address=args.ray or None)


def _plan(args: argparse.Namespace) -> Plan | Keys:
    """What the options ask for.

    Raises:
        ValueError: they contradict each other, or leave out what is needed.
    """
    alone = {"--stale": args.stale, "--noisy": args.noisy is not None, "--from-misses": args.from_misses is not None}
    given = [name for name, is_given in alone.items() if is_given]
    if given:
        option, *others = given
        others += [f"--{name.replace('_', '-')}" for name, usual in _WHAT.items() if getattr(args, name) != usual]
        if others:
            raise ValueError(f"{option}: expected no other option on what to tune, got {', '.join(others)}")
        if option == "--stale":
            return again.stale(args.out)
        if option == "--noisy":
            return again.noisy(args.out, args.noisy)
        found = misses.read(args.from_misses)
        if not found:
            raise ValueError(f"--from-misses: expected a file with misses, got none in {args.from_misses}")
        return Keys([miss.key for miss in found])
    return Plan(
        layers=layer_options.layers(args),
        max_rank=layer_options.rank(args),
        chunk_sizes=args.chunk_sizes,
        tokens=args.tokens,
        adapters=args.adapters,
        dtype=dtypes.BY_NAME[args.dtype],
        ops=args.ops,
    )


def _load(folder: Path, plan: Plan | Keys) -> None:
    """Lay the results over this process's tables, and say what its launches get from them."""
    loaded = overlay.load_overlay(folder)
    device = torch.device("cuda", torch.cuda.current_device())
    keys = [task.key for task in plan.tasks()]
    where = dispatch.target(device)
    exact = sum(dispatch.is_exact(dispatch.choose(key, device), key, where) for key in keys)
    print(
        f"loaded: {loaded.rows} rows, {loaded.defaults_kept} keys that keep the default, chunk sizes for "
        f"{loaded.chunk_sizes} cells of batches; {exact} of the {len(keys)} keys asked for launch with their own"
    )


def _dry_run(plan: Plan | Keys, folder: Path | None, seed: int) -> int:
    """Print the keys; and with a folder, where there is a GPU, how many need not be measured again."""
    tasks = plan.tasks()
    archive = None
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        where = dispatch.target(device)
        limits = where.limits
        if folder is not None:
            archive = Archive(folder, where.gpu, where.triton, current_run(device, seed))
    else:
        best = dispatch.target(torch.device("cpu"))  # the GPU that the table knows best, if it knows any
        limits = footprint.LIMITS.get(best.architecture, _H200)
        print(f"no GPU here: one like {best.gpu or 'an H200'} is assumed")
    for task in tasks:
        print(f"{_describe(task)}: {space.size(task.key, limits):,} configs fit")
    fresh = None if archive is None else sum(archive.fresh(task) is not None for task in tasks)
    left_out = "" if fresh is None else f"; {fresh} of them need not be measured again"
    print(f"{len(tasks)} {'key' if len(tasks) == 1 else 'keys'}{left_out}")
    return 0


def _describe(task: Task) -> str:
    key = task.key
    dims = rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)
    batch = " and ".join(
        ", ".join(
            f"{count} {noun}{'' if count == 1 else 's'}"
            for count, noun in ((batch.tokens, "token"), (batch.adapters, "adapter"))
        )
        for batch in task.deciding
    )
    return f"{key.op:8s} {dims}, {key.dtype}, chunk {key.chunk_size}, bucket {key.segment_bucket} ({batch})"


def _outcome(step: Step) -> str:
    """One line on a key: default, best, and what that gains."""
    if step.record is None:
        return f"{_describe(step.task)}: no config works"
    best = min(finalist.p50_us for finalist in step.record.finalists)
    if step.record.default is None:
        return f"{_describe(step.task)}: {best:.2f} us (the default does not run)"
    default = step.record.default.p50_us
    return f"{_describe(step.task)}: {default:.2f} → {best:.2f} us, {default / best:.2f}x"


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Step], None]]:
    """A bar with an estimate on a terminal where rich is installed; otherwise, or on a dumb one, a line a key."""
    try:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        rich = False
    else:
        rich = columns.rewritable(sys.stdout)
    if not rich:
        yield lambda step: print(f"[{step.done}/{step.total}] {_outcome(step)}", flush=True)
        return
    bar = Progress(
        TextColumn("tuning"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with bar:
        task = bar.add_task("tuning", total=None)

        def report(step: Step) -> None:
            bar.update(task, completed=step.done, total=step.total)
            bar.console.print(_outcome(step), highlight=False)

        yield report
