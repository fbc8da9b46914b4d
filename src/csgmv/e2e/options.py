"""The options of `csgmv bench --e2e`, and what they ask for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

from csgmv.option_types import whole

MARKER = "e2e"


class Subject(NamedTuple):
    """What is measured of one model: as many layers (None: all), and batches of (rows, tokens of each)."""

    model: str
    layers: int | None
    batches: Sequence[tuple[int, int]]


PREFILL = ((8, 1024), (32, 512), (64, 128))
# Without options: prompts by a whole small model, and decoding by a few layers of a larger one, where a step takes long
# enough to be judged. A step of one layer takes as long as another's.
SUBJECTS = (
    Subject("Qwen/Qwen3-Embedding-0.6B", None, PREFILL),
    Subject("Qwen/Qwen3-8B", 4, ((32, 1),)),
)
ADAPTERS, RANKS = 8, (64,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that bench's other measurements do not have."""
    group = parser.add_argument_group(
        "end to end", "takes --model, --adapters, --rank and --dtype too (8 adapters of rank 64)"
    )
    group.add_argument(
        "--e2e",
        action="store_true",
        help="instead: a transformers model with many adapters in one batch, beside the bare model; without --model "
        "Qwen3-Embedding-0.6B's prompts and the decoding of 4 layers of Qwen3-8B",
    )
    group.add_argument(
        "--batches",
        type=_batch,
        nargs="+",
        metavar="ROWSxTOKENS",
        help="of --model; of one token a row: a step of decoding (default: 8x1024 32x512 64x128)",
    )
    group.add_argument("--layers", type=whole(1), metavar="N", help="decoder layers of --model (default: all)")


def _batch(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected ROWSxTOKENS, such as 8x1024, got {text!r}")
    return int(found[1]), int(found[2])


def check(args: argparse.Namespace) -> None:
    """That these options fit together.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    for option in ("batches", "layers"):
        if getattr(args, option) is not None and not (args.e2e and args.model):
            raise ValueError(f"--{option}: expected together with --e2e and --model")
    for option in ("adapters", "rank"):
        if args.e2e and len(getattr(args, option) or [1]) > 1:
            raise ValueError(f"--{option}: expected one value with --e2e, got {len(getattr(args, option))}")


def subjects(args: argparse.Namespace) -> Sequence[Subject]:
    """The models and batches asked for."""
    return SUBJECTS if args.model is None else [Subject(args.model, args.layers, args.batches or PREFILL)]
