"""Say how well two runs of the tuner agree: the winners of both, timed side by side on this GPU.

The times in two files are those of two moments: a GPU's clock and a driver's mood lie between them. Here each key's two
winners are launched in turn, on the batches that decided, with a cold L2, as a search's finalists are.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from csgmv import columns, no_gpu, records, rules
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect
from csgmv.option_types import number
from csgmv.tuning.lab import Lab
from csgmv.tuning.side_by_side import Track, deciding, side_by_side

EXAMPLES = {
    "csgmv agree configs again": "After `csgmv tune --out again …`: how far is the search to be trusted?",
    "csgmv agree configs again --within 5 --least 99": "All but one key in a hundred within 5 % of time.",
}
STATUSES = {1: "fewer keys than --least agree"}
_SHOWN = 10


class Agreement(NamedTuple):
    """One key of two runs. `ratio`: the second run's winner's time as a multiple of the first's; 1 for the same row."""

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


def compare(
    first: Mapping[rules.Key, records.Result], second: Mapping[rules.Key, records.Result], track: Track
) -> Iterator[Agreement]:
    """Every key that both have, in the first one's order; keys whose rows are the same are not timed.

    Args:
        first, second: results of one GPU.
        track: launches rows in turn, see `lab.Lab.race`.
    """
    ours, theirs = winners(first), winners(second)
    for key, row in ours.items():
        if key in theirs:
            yield Agreement(key, row, theirs[key], _ratio(first[key], (row, theirs[key]), track))


def _ratio(result: records.Result, rows: tuple[rules.Row, rules.Row], track: Track) -> float:
    if rows[0] == rows[1]:
        return 1.0
    before, after = side_by_side(result.key, deciding(result), rows, track).medians()
    return after / before


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
    mean = statistics.geometric_mean(one.ratio for one in found)
    text = (
        f"{len(found)} keys: {same} have the same row, {close} ({close / len(found):.1%}) agree within {within:.1%}; "
        f"on average the second run's winners take {mean:.4f} times as long"
    )
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


def run(args: argparse.Namespace) -> int:
    """Compare, and return the exit status: 0 the runs agree, 1 they do not.

    Raises:
        ValueError: there is no GPU, a file is broken, or there is nothing to compare.
    """
    no_gpu.require("agree")
    device = torch.device("cuda", torch.cuda.current_device())
    where = torch.cuda.get_device_name(device), triton.__version__
    first, second = (results_of(path, *where) for path in (args.first, args.second))
    found: list[Agreement] = []
    common = len(first.keys() & second.keys())
    for agreement in compare(first, second, Lab(device)):
        found.append(agreement)
        columns.progress(f"{len(found)} of {common} keys")
    columns.progress("")
    if not found:
        raise ValueError(f"expected keys that both have, got none among {len(first)} and {len(second)}")
    print(summary(found, args.within / 100, columns.terminal_width()))
    agreeing = sum(abs(one.ratio - 1) <= args.within / 100 for one in found)
    return 0 if 100 * agreeing >= args.least * len(found) else 1
