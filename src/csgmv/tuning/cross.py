"""Time at every key the rows that other keys would lend it, beside its own winner and the default, on this GPU.

That says what borrowing costs (`python -m codegen --regret`) by times at full length alone. The rows that the fallback
would lend come first, then the winners of all other keys of the operation, rank and dtype, each cut to the key. Records
are given a race each time; nothing else of them changes. A run may be stopped at any time; the next one goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from csgmv import columns, fallback, no_gpu, rules
from csgmv.baking.choose import Chosen, choose
from csgmv.baking.collect import collect
from csgmv.kernel_hash import same_kernels
from csgmv.tuning import run_options
from csgmv.tuning.crossing import Crossing, Summary
from csgmv.tuning.heats import Heats, heats, seconds
from csgmv.tuning.progress import Progress
from csgmv.tuning.record import Archive, check_places
from csgmv.tuning.rig import Gpu, Rig, spare_processes

FAILED = 1
EXAMPLES = {
    "csgmv cross --dry-run": "How many timings there are, and how long they take.",
    "csgmv cross --time-budget 540": "What nine minutes allow, rows that the fallback lends first; again to go on.",
}
STATUSES = {FAILED: "some rows do not work at some keys"}
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv cross`."""
    add = parser.add_argument
    add("--configs", type=Path, default=Path("configs"), metavar="FOLDER", help="of raw results")
    run_options.add_arguments(parser)
    add("--dry-run", action="store_true", help="say what there is to be timed and how long it takes; no GPU needed")


def run(args: argparse.Namespace) -> int:
    """Time, and return the exit status: 0 all well, 1 some rows do not work at some keys, 2 there is no GPU.

    Raises:
        ValueError: a file is broken or not where the tuner puts it, or there is nothing of this GPU.
    """
    if args.dry_run:
        collected = collect(args.configs)
        choice = choose(collected.found)
        here = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        for where in choice.table:
            if here in (None, where[0]):
                print(*_planned(choice, where), sep="\n")
        return 0
    no_gpu.require("cross", "--dry-run works without")
    started = time.monotonic()
    deadline = None if args.time_budget is None else started + args.time_budget
    summary = cross(args.configs, Gpu(), seed=args.seed, processes=args.processes, deadline=deadline)
    print(*_told(summary, args.configs, time.monotonic() - started), sep="\n")
    return FAILED if summary.refused else 0


def _looking(done: int, total: int) -> None:
    columns.progress(f"looking for what there is to be timed: {done:,} of {total:,} keys")


def _planned(choice: Chosen, where: fallback.Head) -> list[str]:
    """What there is to be timed at a GPU's keys, in words."""
    lent, others = heats(choice, where, report=_looking)
    columns.progress("")
    kinds = (("rows that the fallback would lend", lent), ("winners of all other keys", others))
    lines = [f"{where[0]}, Triton {where[1]}: {len(choice.table[where])} keys"]
    for what, some in kinds:
        keys = len({heat.result.key for heat in some})
        rows, minutes = sum(len(heat.rows) for heat in some), seconds(some) / 60
        lines.append(f"{what}: {rows:,} timings in {len(some):,} races at {keys} keys, about {minutes:.1f} minutes")
    binaries = {(heat.result.key._replace(segment_bucket=1), row) for heat in (*lent, *others) for row in heat.all_rows}
    lines.append(f"at most {len(binaries):,} configs to be compiled, ahead and in parallel; on an H200")
    return lines


def cross(
    folder: Path, rig: Rig, *, seed: int = 0, processes: int | None = None, deadline: float | None = None
) -> Summary:
    """Time what remains to be timed at the keys that a rig's results in a folder are of.

    Args:
        folder: of raw results, as the tuner writes them.
        rig: a GPU of this machine.
        seed: of the random tensors.
        processes: that compile; None for all the machine's processors but two.
        deadline: on the monotonic clock; None for as long as it takes.

    Raises:
        ValueError: a file is broken or not where the tuner puts it, or there is nothing of this GPU.
        RuntimeError: there is no GPU.
    """
    site = rig.survey(seed)
    where = site.gpu, site.triton
    collected = collect(folder)
    check_places(folder, collected, where)
    choice = choose(collected.found)
    if where not in choice.table:
        raise ValueError(f"{folder}: expected results of {site.gpu} under Triton {site.triton}, got those of others")
    archive = Archive(folder, *where, site.run)
    planned = heats(choice, where, lambda result: archive.raced(result.key), _looking)
    columns.progress("")
    today = site.run.kernel_hash
    current = Heats(*([one for one in part if same_kernels(one.result.kernel_hash, today)] for part in planned))
    if stale := len({one.result.key for part in planned for one in part} - {*_keys(current)}):
        print(f"{stale} keys were measured with other kernels; `csgmv tune --stale` measures them again, then cross")
    with rig.opened(seed, processes or spare_processes()) as (bench, farm):
        return Crossing(bench, farm, archive, Progress("timings")).run([*current.lent, *current.others], deadline)


def _keys(planned: Heats) -> list[rules.Key]:
    return [one.result.key for part in planned for one in part]


def _told(summary: Summary, folder: Path, took: float) -> list[str]:
    """What came of a run, in words."""
    lines = [f"{summary.races} races with {summary.rows} rows of other keys in {took:.0f} s, added to {folder}"]
    if summary.beaten:
        lines.append(
            f"at {len(summary.beaten)} keys another's row beat the winner by more than the noise: what a search of "
            "these would find now"
        )
    if summary.left:
        lines.append(f"{summary.left} races are left; the same command goes on with them")
    lines += _refusals(summary)
    return lines


def _refusals(summary: Summary) -> Sequence[str]:
    lines = [f"does not work: {one.row} at {one.key}: {one.reason}" for one in summary.refused[:_SHOWN]]
    more = len(summary.refused) - len(lines)
    return [*lines, f"… and {more} more do not work"] if more else lines
