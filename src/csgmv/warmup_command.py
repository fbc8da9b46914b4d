"""Compile every kernel that a model's layers can need, before the first launch.

Binaries come into Triton's cache on disk, where a server's processes find them; from Python, `csgmv.warmup` has them
ready to launch in its own process too.
"""

from __future__ import annotations

import argparse
import sys

from csgmv import binaries, columns, dtypes, layer_options, no_gpu
from csgmv.option_types import whole

EXAMPLES = {
    "csgmv warmup --model Qwen/Qwen3-Embedding-0.6B --rank 64 --max-tokens 8192 --max-loras 32": "Before a server "
    "starts: its processes find the binaries in Triton's cache on disk.",
    "csgmv warmup --adapter adapters/sql --max-tokens 2048 --max-loras 8 --ops add_lora": "Rank, layers and model as "
    "an adapter's folder says; add_lora alone.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv warmup`."""
    what = parser.add_argument_group("what to compile")
    layer_options.add_arguments(what)
    add = what.add_argument
    add("--max-tokens", type=whole(1), required=True, metavar="N", help="most rows of x of any batch")
    add("--max-loras", type=whole(1), required=True, metavar="N", help="most adapter slots of any batch")
    add(
        "--chunk-sizes",
        type=whole(1),
        nargs="+",
        metavar="N",
        help="of the Segments (default: those that they choose themselves)",
    )
    add("--padded", action="store_true", help="for calls with padded=True")
    add("--batch-invariant", action="store_true", help="for calls with batch_invariant=True")
    add(
        "--apart",
        nargs="+",
        choices=binaries.APART,
        default=(),
        metavar="NAME",
        help=f"which are tuples: {', '.join(binaries.APART)}",
    )
    parser.add_argument(
        "--threads",
        type=whole(1),
        metavar="N",
        help="threads that compile (default: as many as processors, 16 at most)",
    )


def run(args: argparse.Namespace) -> int:
    """Fill Triton's cache on disk, and return the exit status.

    Raises:
        ValueError: there is no GPU, or the options do not fit together.
    """
    no_gpu.require("warmup")
    done = binaries.warmup(
        layer_options.layers(args),
        max_rank=layer_options.rank(args),
        max_tokens=args.max_tokens,
        max_loras=args.max_loras,
        dtype=dtypes.BY_NAME[args.dtype],
        ops=args.ops,
        chunk_sizes=args.chunk_sizes,
        padded=args.padded,
        batch_invariant=args.batch_invariant,
        apart=args.apart,
        threads=args.threads,
        progress=_show if columns.rewritable(sys.stderr) else None,
    )
    print(
        f"{done.binaries} binaries for {done.calls} kinds of calls in {done.seconds:.1f} s: in Triton's cache on disk"
    )
    return 0


def _show(done: int, total: int) -> None:
    """One line on the terminal, written over until it is complete."""
    print(f"\r{done}/{total} binaries", end="\n" if done == total else "", file=sys.stderr, flush=True)
