"""Check the table by keys that were not tuned: a fresh search of each, timed beside the table's config and the default.

Keys are drawn from models, ranks and tensor-parallel sizes, always the same for a seed. The searches' records go into a
folder of their own, each with its race, so that a run may be stopped at any time and the next one goes on. What the
folder holds is told at the end, or with --tell by itself, which needs no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from csgmv import columns, dispatch, fallback, layer_options, no_gpu, readme_block, records, rules, shares
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect
from csgmv.coverage import target
from csgmv.option_types import number, version, whole
from csgmv.tuning import run_options
from csgmv.tuning.crossing import Crossing
from csgmv.tuning.plan import Keys
from csgmv.tuning.progress import Progress
from csgmv.tuning.record import Archive
from csgmv.tuning.rig import Gpu, Rig, spare_processes
from csgmv.tuning.spots import MODELS, RANKS, TP, Asked, Spot, Verdict, drawn, unraced, verdict
from csgmv.tuning.tuner import tune

WORSE = 1
MARKER = "spot-check"
EXAMPLES = {
    "csgmv spot-check --dry-run": "Which keys, and what serves them.",
    "csgmv spot-check --keys 100 --time-budget 540": "Measure what nine minutes allow; again to go on.",
    "csgmv spot-check --tell --gpu H200 --triton 3.6.0 --markdown": "What was found, without a GPU.",
}
STATUSES = {
    0: "losses within --median and --percentile-95, no key slower than with the default beyond the noise",
    WORSE: "some loss is larger, or some key slower than that",
}
WORST = 20  # keys that are printed where not all are asked for
_SEARCHING = 0.9  # the share of a time budget after which no further key is searched: timing side by side is quick


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv spot-check`."""
    add = parser.add_argument_group("what to draw from").add_argument
    add(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="NAME",
        help="names of well-known models or on the hub, or folders",
    )
    add("--ranks", type=whole(1, rules.MAX_RANK), nargs="+", default=RANKS, metavar="N", help="of the adapters")
    add("--tp", type=whole(1), nargs="+", default=TP, metavar="N", help="tensor-parallel sizes, in GPUs")
    add("--ops", nargs="+", choices=rules.OPS, default=("add_lora",), metavar="OP", help=layer_options.OPS)
    add("--dtype", choices=list(rules.DTYPE_BYTES), default="bfloat16", help="of every tensor")
    add("--keys", type=whole(1), default=100, metavar="N", help="how many to draw")
    how = parser.add_argument_group("how")
    add = how.add_argument
    add("--out", type=Path, default=Path("spot-check"), metavar="FOLDER", help="where records go")
    run_options.add_arguments(how, "the draw and the random tensors")
    add("--dry-run", action="store_true", help="list the keys and what serves them, measure nothing")
    add("--tell", action="store_true", help="measure nothing, tell what FOLDER holds of the keys")
    asked = "without measuring: a GPU of the table, or part of its name (default: this, or the one that has most rows)"
    add("--gpu", metavar="NAME", help=asked)
    installed = "without measuring: a Triton version (default: the installed one)"
    add("--triton", type=version, metavar="VERSION", help=installed)
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--median", type=number(), default=5.0, metavar="PERCENT", help="that may be lost")
    add("--percentile-95", type=number(), default=20.0, metavar="PERCENT", help="that may be lost")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--all", action="store_true", help=f"every key, not only the {WORST} that lose most")
    form.add_argument("--json", action="store_true", help="every key, as JSON")
    form.add_argument("--markdown", action="store_true", help="a line a model")
    add(
        "--into",
        type=Path,
        metavar="FILE",
        help=f"with --markdown: put it into FILE between {' and '.join(readme_block.markers(MARKER))}",
    )


def run(args: argparse.Namespace) -> int:
    """Draw, search, time and tell; the exit status is one of STATUSES.

    Raises:
        ValueError: the options do not fit together, name no model or GPU, or there is nothing to tell.
    """
    if args.into is not None and not args.markdown:
        raise ValueError("--into: expected together with --markdown")
    if args.tell and args.dry_run:
        raise ValueError("--tell: expected without --dry-run")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out: expected a folder, got {args.out}")
    if args.tell and not args.out.exists():
        raise ValueError(f"--out: expected a folder that a run on a GPU has filled, got no {args.out}")
    measures = not args.tell and not args.dry_run
    if measures:
        no_gpu.require("spot-check", "--tell and --dry-run work without")
    where = target(None if measures else args.gpu, None if measures else args.triton)
    asked = Asked(args.models, args.ranks, args.tp, args.ops, args.dtype)
    left_out = (lambda text: print(f"left out: {text}", file=sys.stderr)) if not args.tell else (lambda _: None)
    spots = list(itertools.islice(drawn(asked, where, dispatch.tables(), args.seed, left_out), args.keys))
    if not spots:
        raise ValueError("--models: expected some whose layers launch what the table has no row for, got none")
    if args.dry_run:
        print(*(_listed(spot) for spot in spots), f"{len(spots)} keys", sep="\n")
        return 0
    if measures:
        measure(spots, args.out, Gpu(), seed=args.seed, processes=args.processes, time_budget=args.time_budget)
    found = verdicts(spots, args.out, where)
    _tell(found, args, where, len(spots))
    return 0 if acceptable(found, args.median / 100, args.percentile_95 / 100) else WORSE


def measure(
    spots: Sequence[Spot],
    folder: Path,
    rig: Rig,
    *,
    seed: int = 0,
    processes: int | None = None,
    time_budget: float | None = None,
) -> None:
    """Search each spot's key afresh, then time what was found beside the table's config and the default.

    Args:
        spots: see spots.drawn.
        folder: of the records; what it has is not measured again.
        rig: a GPU of this machine.
        seed: of the random tensors.
        processes: that compile; None for all the machine's processors but two.
        time_budget: seconds; None for as long as it takes.

    Raises:
        ValueError: there are no spots, or a file in the folder is broken.
        RuntimeError: there is no GPU.
    """
    started = time.monotonic()
    plan = Keys([spot.key for spot in spots])
    summary = tune(
        plan,
        folder,
        rig=rig,
        seed=seed,
        processes=processes,
        time_budget=None if time_budget is None else _SEARCHING * time_budget,
        report=Progress("keys searched"),
    )
    done = f"{summary.tuned} keys searched into {folder}, {summary.fresh} were there, {summary.left} are left"
    print(done, file=sys.stderr)
    site = rig.survey(seed)
    archive = Archive(folder, site.gpu, site.triton, site.run)
    fresh = {task.key for task in plan.tasks() if archive.fresh(task) is not None}
    there = _results(folder, site.gpu, site.triton) if fresh else {}
    heats = list(filter(None, (unraced(spot, there[spot.key]) for spot in spots if spot.key in fresh)))
    if not heats:
        return
    with rig.opened(seed, processes or spare_processes()) as (bench, farm):
        crossing = Crossing(bench, farm, archive, Progress("rows timed side by side"))
        raced = crossing.run(heats, None if time_budget is None else started + time_budget)
    for refused in raced.refused:
        print(f"does not work: {refused.row} at {refused.key}: {refused.reason}", file=sys.stderr)


def _results(folder: Path, gpu: str, triton: str) -> dict[rules.Key, records.Result]:
    every = choose(collect(folder).found).results
    return {result.key: result for result in every if (result.gpu, result.triton) == (gpu, triton)}


def verdicts(spots: Sequence[Spot], folder: Path, where: fallback.Target) -> list[Verdict]:
    """What a folder says of the spots, as far as it does.

    Raises:
        ValueError: a file is broken, or none is of these spots.
    """
    there = _results(folder, where.gpu, where.triton)
    found = [verdict(spot, there[spot.key]) for spot in spots if spot.key in there]
    judged = [one for one in found if one is not None]
    if not judged:
        raise ValueError(f"{folder}: expected records of the keys drawn, with their races, got none of {len(spots)}")
    return judged


def acceptable(found: Sequence[Verdict], median: float, percentile_95: float) -> bool:
    """Whether losses are within these shares, and nothing is slower than with the default."""
    told = shares.summed(one.loss for one in found)
    assert told is not None
    return told.median <= median and told.percentile_95 <= percentile_95 and not any(one.slower for one in found)


def _tell(found: Sequence[Verdict], args: argparse.Namespace, where: fallback.Target, asked: int) -> None:
    if args.markdown:
        told = markdown(found, where, args.command_line)
        if args.into is None:
            print(told)
        else:
            readme_block.put(args.into, told, MARKER)
    elif args.json:
        print(as_json(found, where))
    else:
        print(text(found, asked, None if args.all else WORST, columns.terminal_width()))


def _named(key: rules.Key) -> str:
    sizes = rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)
    return f"{key.op} {sizes}, chunk size {key.chunk_size}, {key.segment_bucket} segments"


def _listed(spot: Spot) -> str:
    return f"{_named(spot.key)} ({spot.layer} of {spot.model}, tp {spot.tp}): {spot.served.step}"


def _figures(found: Sequence[Verdict]) -> list[str]:
    told = shares.summed(one.loss for one in found)
    assert told is not None
    losses = (shares.percent(loss) for loss in (told.median, told.percentile_95, told.worst))
    return [str(told.keys), *losses, str(sum(one.slower for one in found))]


def text(found: Sequence[Verdict], asked: int, most: int | None, width: int | None) -> str:
    """For a terminal of so many columns (None: any): the sum, then `most` keys (None: all), the worst first."""
    keys, median, percentile_95, worst, slower = _figures(found)
    rows = [
        [
            shares.percent(one.loss),
            f"{one.table_us:.2f}",
            f"{one.own_us:.2f}",
            "-" if one.default_us is None else f"{one.default_us:.2f}",
            "slower" if one.slower else "",
            _named(one.spot.key),
            f"{one.spot.model.rpartition('/')[2]} {one.spot.layer}, tp {one.spot.tp}",
            one.spot.served.step,
        ]
        for one in sorted(found, key=lambda one: -one.loss)[:most]
    ]
    header = ("loss", "table µs", "own µs", "default µs", "than default", "key", "layer", "served by")
    said = (
        f"{keys} of {asked} keys judged: the table's config loses {median} to a search of the key's own (median; 95 %: "
        f"{percentile_95}, worst: {worst}); {slower} are slower than with the built-in default"
    )
    ending = ["", f"These are the worst; --all prints all {len(found)}."] if len(rows) < len(found) else []
    return "\n".join([*columns.folded(said, width), "", columns.aligned(header, rows, width), *ending])


def markdown(found: Sequence[Verdict], where: fallback.Target, command: str) -> str:
    """For the README: a row a model and one for all, what they say, and the command that writes it."""
    models: dict[str, list[Verdict]] = defaultdict(list)
    for one in found:
        models[one.spot.model].append(one)
    header = ("model", "keys", "median", "95 %", "worst", "slower than default")
    rows = [[model, *_figures(of_model)] for model, of_model in sorted(models.items())]
    ranks = ", ".join(map(str, sorted({one.spot.key.max_rank for one in found})))
    sizes = ", ".join(map(str, sorted({one.spot.tp for one in found})))
    return (
        f"{columns.markdown(header, [*rows, ['all', *_figures(found)]])}\n\n"
        f"{where.gpu}, Triton {where.triton}; ranks {ranks}; tensor-parallel sizes {sizes}. Keys without a row of "
        "their own, drawn at random: the time of what the table has for each, over that of what a search of the very "
        "key found, less 1; these two and the built-in default launched in turn. 95 %: the 95th percentile. slower "
        f"than default: keys, by more than the noise. Printed by `{command}`."
    )


def as_json(found: Sequence[Verdict], where: fallback.Target) -> str:
    """Everything, by name."""
    keys = [
        {
            "model": one.spot.model,
            "tp": one.spot.tp,
            "layer": one.spot.layer,
            **one.spot.key._asdict(),
            "step": one.spot.served.step,
            "table_row": one.spot.served.row,
            "table_us": one.table_us,
            "own_us": one.own_us,
            "default_us": one.default_us,
            "noise_us": one.noise_us,
            "loss": one.loss,
            "slower_than_default": one.slower,
        }
        for one in found
    ]
    told = shares.summed(one.loss for one in found)
    assert told is not None
    return json.dumps({"gpu": where.gpu, "triton": where.triton, **told._asdict(), "judged": keys}, indent=1)
