"""Say how well two runs of the tuner agree: the winners of both, timed side by side on this GPU.

The times in two files are those of two moments: a GPU's clock and a driver's mood lie between them. Here each key's two
winners are launched in turn, on the batches that decided, with a cold L2, as a search's finalists are.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from csgmv import columns, no_gpu, records, rules
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect
from csgmv.option_types import number
from csgmv.tuning import run_options
from csgmv.tuning.crossing import Crossing, Report
from csgmv.tuning.heats import Heat
from csgmv.tuning.progress import Progress
from csgmv.tuning.record import Race
from csgmv.tuning.rig import Gpu, Rig, spare_processes

EXAMPLES = {
    "csgmv agree configs again": "After `csgmv tune --out again …`: how far is the search to be trusted?",
    "csgmv agree configs again --within 5 --least 99": "All but one key in a hundred within 5 % of time.",
}
STATUSES = {1: "fewer keys than --least agree"}
_SHOWN = 10
_SEED = 0  # of the random tensors


class Agreement(NamedTuple):
    """One key of two runs.

    `ratio` is the second run's winner's time as a multiple of the first's: 1 for the same row, infinite where one of
    them does not work here.
    """

    key: rules.Key
    first: rules.Row
    second: rules.Row
    ratio: float


def winners(results: Mapping[rules.Key, records.Result]) -> dict[rules.Key, rules.Row]:
    """What each key's launches would get: the row that was fastest, the default where nothing beats it."""
    found = {}
    for key, result in results.items():
        row = records.baked_row(result) or (result.default and result.default.row)
        if row is not None:
            found[key] = row
    return found


class _Times:
    """Of both winners, by key; what a Crossing keeps races in."""

    def __init__(self) -> None:
        self.of: dict[rules.Key, dict[rules.Row, float]] = {}

    def add_race(self, key: rules.Key, race: Race) -> None:
        """See crossing.Store."""
        self.of[key] = dict(race.times)

    def ratio(self, key: rules.Key, first: rules.Row, second: rules.Row) -> float:
        """Of two rows of a key; of those that were not timed either they are the same, or one does not work."""
        if first == second:
            return 1.0
        times = self.of.get(key)
        return math.inf if times is None else times[second] / times[first]


def differing(
    first: Mapping[rules.Key, records.Result], second: Mapping[rules.Key, records.Result]
) -> tuple[dict[rules.Key, tuple[rules.Row, rules.Row]], list[Heat]]:
    """Both winners of each key that both runs have, in the first one's order; and a heat of each two that differ."""
    ours, theirs = winners(first), winners(second)
    both = {key: (row, theirs[key]) for key, row in ours.items() if key in theirs}
    return both, [Heat(first[key], (mine,), (other,)) for key, (mine, other) in both.items() if mine != other]


def compare(
    first: Mapping[rules.Key, records.Result],
    second: Mapping[rules.Key, records.Result],
    rig: Rig,
    processes: int,
    report: Report = lambda _: None,
) -> list[Agreement]:
    """Every key that both runs have; what needs no timing, because the rows are the same, asks nothing of the GPU.

    Args:
        first, second: results of the rig's GPU.
        rig: checks rows, compiles them ahead and launches them in turn.
        processes: that compile.
        report: is told of each key that was timed.
    """
    both, heats = differing(first, second)
    times = _Times()
    if heats:
        with rig.opened(_SEED, processes) as (bench, farm):
            Crossing(bench, farm, times, report).run(heats)
    return [Agreement(key, *rows, times.ratio(key, *rows)) for key, rows in both.items()]


def results_of(path: Path, gpu: str, version: str) -> dict[rules.Key, records.Result]:
    """Of one GPU under one Triton version; of a key that several files have, the one that the codegen would take.

    Raises:
        ValueError: a file is broken, or there is none of this GPU.
    """
    every = choose(collect(path).found).results
    found = {result.key: result for result in every if (result.gpu, result.triton) == (gpu, version)}
    if not found:
        raise ValueError(f"{path}: expected results of {gpu} under Triton {version}, got {len(every)} of others")
    return found


def summary(found: Sequence[Agreement], within: float, width: int | None = None) -> str:
    """In words: how many keys agree, and those that agree least."""
    same = sum(one.first == one.second for one in found)
    close = sum(abs(one.ratio - 1) <= within for one in found)
    timed = [one.ratio for one in found if one.ratio < math.inf]
    mean = statistics.geometric_mean(timed) if timed else math.nan
    text = (
        f"{len(found)} keys: {same} have the same row, {close} ({close / len(found):.1%}) agree within {within:.1%}; "
        f"on average the second run's winners take {mean:.4f} times as long"
    )
    if refused := len(found) - len(timed):
        text += f"; of {refused} a winner does not work here"
    apart = sorted((one for one in found if one.first != one.second), key=lambda one: -abs(one.ratio - 1))[:_SHOWN]
    if not apart:
        return text
    rows = [(f"{one.ratio:.3f}", _named(one.key), str(one.first), str(one.second)) for one in apart]
    return f"{text}\n\n{columns.aligned(('ratio', 'key', 'first', 'second'), rows, width)}"


def _named(key: rules.Key) -> str:
    sizes = rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)
    return f"{key.op} {sizes}, chunk size {key.chunk_size}, {key.segment_bucket} segments"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv agree`."""
    parser.add_argument("first", type=Path, metavar="FIRST", help="a file or folder of raw results")
    parser.add_argument("second", type=Path, metavar="SECOND", help="a file or folder of another run of the tuner")
    parser.add_argument(
        "--within",
        type=number(),
        default=2.0,
        metavar="PERCENT",
        help="a key agrees where its two winners' times differ by so many percent at most",
    )
    parser.add_argument(
        "--least",
        type=number(0, 100),
        default=95.0,
        metavar="PERCENT",
        help="of the keys must agree, for exit status 0",
    )
    run_options.add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, and return the exit status: 0 the runs agree, 1 they do not.

    Raises:
        ValueError: there is no GPU, a file is broken, or there is nothing to compare.
    """
    no_gpu.require("agree")
    where = torch.cuda.get_device_name(), triton.__version__
    first, second = (results_of(path, *where) for path in (args.first, args.second))
    found = compare(first, second, Gpu(), args.processes or spare_processes(), Progress("winners"))
    if not found:
        raise ValueError(f"expected keys that both have, got none among {len(first)} and {len(second)}")
    print(summary(found, args.within / 100, columns.terminal_width()))
    agreeing = sum(abs(one.ratio - 1) <= args.within / 100 for one in found)
    return 0 if 100 * agreeing >= args.least * len(found) else 1
