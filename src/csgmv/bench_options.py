"""The options of `csgmv bench`, and which of them go together: it measures kernels, or one thing else instead."""

from __future__ import annotations

import argparse
import pathlib

from csgmv import host, layer_options, models, peer_report, readme_block, rules, workload
from csgmv.e2e import options as end_to_end
from csgmv.option_types import whole

MARKER = "bench"
# What kernels are measured with; an option that is not given is None, so that it can be told where it has no place.
TOKENS, ADAPTERS, RANKS, CHUNK_SIZES = [30720], [1], [(64,)], [16, 32, 64, 128]
OPS, DISTRIBUTION = ["shrink", "expand"], "even"
_KERNELS_ONLY = ("layer", "tp", "tokens", "chunk_sizes", "distribution", "ops", "batch_invariant")
_INSTEAD = ("host", "peers", "e2e")


def _ranks(text: str) -> tuple[int, ...]:
    """'64' or, mixed over the adapters in turn, '8+16+64'."""
    parts = text.split("+")
    if not all(part.isdecimal() and 1 <= int(part) <= rules.MAX_RANK for part in parts):
        raise argparse.ArgumentTypeError(f"expected R or R+R+… with ranks of 1 to {rules.MAX_RANK}, got {text!r}")
    return tuple(map(int, parts))


def _layer(text: str) -> models.LayerShape:
    try:
        return models.parse_layer(text)
    except ValueError as error:  # argparse drops the message of any error but its own
        raise argparse.ArgumentTypeError(str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv bench`."""
    shapes = parser.add_argument_group("layers", "Qwen3-Embedding-0.6B's if neither is given")
    shapes.add_argument(
        "--model", metavar="NAME_OR_FOLDER", help="a name on the Hugging Face hub, or a folder with a config.json"
    )
    shapes.add_argument(
        "--tp", type=whole(1), metavar="N", help="tensor-parallel size of --model, in GPUs (default: 1)"
    )
    shapes.add_argument(
        "--layer",
        action="append",
        type=_layer,
        metavar="NAME:INPUT_DIM:W1+W2+W3",
        help=layer_options.LAYER,
    )
    batch = parser.add_argument_group("batch", "every combination is measured")
    batch.add_argument(
        "--tokens", type=whole(1), nargs="+", metavar="N", help="batch sizes, in tokens (default: 30720)"
    )
    batch.add_argument("--adapters", type=whole(1), nargs="+", metavar="N", help="adapters in a batch (default: 1)")
    batch.add_argument(
        "--rank", type=_ranks, nargs="+", metavar="R", help="1 to 256; 8+16+64 deals several in turn (default: 64)"
    )
    batch.add_argument(
        "--chunk-sizes", type=whole(1), nargs="+", metavar="N", help="most rows of a segment (default: 16 32 64 128)"
    )
    batch.add_argument("--distribution", choices=workload.DISTRIBUTIONS, help="of tokens over adapters (default: even)")
    batch.add_argument("--dtype", choices=list(rules.DTYPE_BYTES), default="bfloat16", help="of every tensor")
    batch.add_argument(
        "--ops", choices=rules.OPS, nargs="+", metavar="OP", help=f"{layer_options.OPS} (default: shrink expand)"
    )
    batch.add_argument("--batch-invariant", action="store_const", const=True, help="time batch_invariant=True as well")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--host",
        action="store_true",
        help=f"instead: host time of a call, for the first layer and one token of each of {host.ADAPTERS} adapters",
    )
    output.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    output.add_argument(
        "--into",
        type=pathlib.Path,
        metavar="FILE",
        help="with --markdown: put it into FILE between its bench (--peers: peers, --e2e: e2e) markers, such as "
        f"{' and '.join(readme_block.markers(MARKER))}",
    )
    output.add_argument(
        "--block", metavar="NAME", help="with --into: between the markers of this name, for figures of another GPU"
    )
    output.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures to FILE")
    peer_report.add_arguments(parser)
    end_to_end.add_arguments(parser)


def check(args: argparse.Namespace) -> None:
    """That the options fit together.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    if args.into is not None and not args.markdown:
        raise ValueError("--into: expected together with --markdown")
    if args.block is not None and args.into is None:
        raise ValueError("--block: expected together with --into")
    for option in ("plot", "measured_on"):
        if args.peers is None and getattr(args, option) is not None:
            raise ValueError(f"{_flag(option)}: expected together with --peers")
    if args.json is not None and args.json.is_dir():
        raise ValueError(f"--json: expected a file, got the folder {args.json}")
    asked = [_flag(option) for option in _INSTEAD if getattr(args, option)]
    if len(asked) > 1:
        raise ValueError(f"{asked[1]}: expected without {asked[0]}")
    if args.host and (args.markdown or args.json is not None):
        raise ValueError("--host: expected without --markdown and --json")
    if args.e2e and (given := [option for option in _KERNELS_ONLY if getattr(args, option) is not None]):
        raise ValueError(f"{_flag(given[0])}: expected without --e2e")
    end_to_end.check(args)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
