"""The options that every command has that measures for minutes: how long, with how many processes, with which seed."""

from __future__ import annotations

import argparse

from csgmv.option_types import number, whole


def add_arguments(group: argparse.ArgumentParser | argparse._ArgumentGroup, seeded: str = "the random tensors") -> None:
    """Add --time-budget, --processes and --seed; `seeded` is what the seed is of."""
    add = group.add_argument
    add(
        "--time-budget",
        type=number(),
        metavar="SECONDS",
        help="begin nothing more after so long; the same command goes on with the rest (default: no limit)",
    )
    add_processes(group)
    add("--seed", type=whole(0, 2**63 - 1), metavar="N", default=0, help=f"of {seeded} (default: %(default)s)")


def add_processes(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --processes alone."""
    group.add_argument(
        "--processes",
        type=whole(1),
        metavar="N",
        help="processes that compile for a GPU (default: as many as processors, less two)",
    )
