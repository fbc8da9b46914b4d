"""Say which config a launch gets, and by which step of the fallback; on this machine's GPU, or on one named.

Without a GPU and without --gpu the answer is for an interpreted launch, which takes the rows of the GPU that the table
knows best.
"""

from __future__ import annotations

import argparse

import torch
import triton

from csgmv import columns, config, dispatch, footprint, launch, rules
from csgmv.option_types import architecture, version, whole
from csgmv.show import bucket_text, widths_text

EXAMPLES = {
    "csgmv explain --op shrink --input-dim 1024 --slices 3 --rank 64 --chunk-size 16 --segments 8": "On this GPU.",
    "csgmv explain --input-dim 2048 --slice-widths 1024 --rank 16 --chunk-size 64 --segments 40 --gpu 'NVIDIA H200'": (
        "On a GPU that is elsewhere."
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv explain`."""
    parser.add_argument("--op", choices=rules.OPS, default="add_lora", help="operation")
    parser.add_argument("--input-dim", type=int, default=0, metavar="N", help="columns of x; for shrink and add_lora")
    parser.add_argument(
        "--slice-widths",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="columns of each slice; for expand and add_lora",
    )
    parser.add_argument("--slices", type=int, metavar="N", help="num_slices of a shrink (default: 1)")
    parser.add_argument("--rank", type=int, required=True, metavar="N", help="max_rank of lora_a and lora_b")
    parser.add_argument("--dtype", choices=rules.DTYPE_BYTES, default="bfloat16", help="of every tensor")
    parser.add_argument(
        "--chunk-size", type=int, required=True, metavar="N", help="chunk_size of the Segments: most rows of one"
    )
    parser.add_argument(
        "--segments", type=int, required=True, metavar="N", help="num_segments of the Segments, of all adapters"
    )
    parser.add_argument("--batch-invariant", action="store_true", help="for a launch with batch_invariant=True")
    parser.add_argument(
        "--gpu", metavar="NAME", help="one of the table's, or part of its name; or another one (default: this)"
    )
    parser.add_argument(
        "--architecture",
        type=architecture,
        metavar="X.Y",
        help="compute capability of a --gpu that the table does not know",
    )
    parser.add_argument(
        "--sm-count",
        type=whole(0),
        default=0,
        metavar="N",
        help="how many streaming multiprocessors that --gpu has",
    )
    parser.add_argument(
        "--triton",
        type=version,
        metavar="VERSION",
        help=f"whose rows to look for (default: the installed one, {triton.__version__}; for a GPU that is not here "
        "that of its rows)",
    )


def key_of(args: argparse.Namespace) -> rules.Key:
    """The key of the launch that the options describe.

    Raises:
        ValueError: no launch has such a key; names the option.
    """
    if args.slices is not None and args.op != "shrink":
        raise ValueError(f"--slices: only for shrink; for {args.op} the slices are those of --slice-widths")
    if args.op != "expand" and args.input_dim < 1:
        raise ValueError(
            f"--input-dim: expected a positive number for {args.op}, such as --input-dim 1024, got {args.input_dim}"
        )
    if args.op != "shrink" and not args.slice_widths:
        raise ValueError(
            f"--slice-widths: expected one or more for {args.op}, such as --slice-widths 2048 1024 1024, got none"
        )
    key = rules.Key(
        op=args.op,
        input_dim=args.input_dim,
        slice_widths=tuple(args.slice_widths),
        max_rank=args.rank,
        num_slices=len(args.slice_widths) or args.slices or 1,
        dtype=args.dtype,
        chunk_size=args.chunk_size,
        segment_bucket=rules.segment_bucket(args.segments),
    )
    if args.segments < 1:
        raise ValueError(f"--segments: expected a positive number, got {args.segments}")
    if fault := rules.key_fault(key):
        raise ValueError(fault)
    return rules.expand_part(key) if key.op == "expand" else key


def target_of(args: argparse.Namespace) -> tuple[dispatch.Target, str]:
    """What the launch is looked up under, and a word on where that comes from."""
    interpreted = launch.INTERPRETED or not torch.cuda.is_available()
    here = dispatch.target(torch.device("cpu") if interpreted else torch.device("cuda", torch.cuda.current_device()))
    if args.gpu is None:
        named = here._replace(triton=args.triton or here.triton)
        return (
            named,
            "no GPU here: answered as for the one that the table knows best" if interpreted else "this machine's",
        )
    names = dispatch.named(args.gpu)
    if len(names) > 1:
        raise ValueError(f"--gpu: expected one of the table's, {', '.join(names)}; got {args.gpu}")
    named = here._replace(gpu=names[0] if names else args.gpu, triton=args.triton or triton.__version__)
    if named.gpu == here.gpu and not interpreted:
        return named, "this machine's"
    named = named._replace(triton=args.triton or dispatch.tuned_under(named.gpu))
    architecture, sm_count = dispatch.tables().gpus.get(named.gpu, (args.architecture or "", args.sm_count))
    limits = footprint.LIMITS.get(architecture)
    named = named._replace(limits=limits or footprint.UNLIMITED, architecture=architecture, sm_count=sm_count)
    return (
        named,
        f"not in this machine: its limits are {f'those of architecture {architecture}' if limits else 'not checked'}",
    )


def _config_rows(choice: dispatch.Choice, op: str) -> list[list[str]]:
    values = ("compiler's choice" if value is None else str(value) for value in config.to_row(choice.config))
    return [[name, value] for name, value in zip(rules.FIELD_NAMES[op], values)]


def _key_text(key: rules.Key) -> str:
    parts = [
        key.op,
        f"input_dim {key.input_dim}" if key.input_dim else "",
        f"slice_widths {widths_text(key.slice_widths)}" if key.slice_widths else f"slices {key.num_slices}",
        f"rank {key.max_rank}",
        key.dtype,
        f"chunk size {key.chunk_size}",
        f"{bucket_text(key.segment_bucket)} segments",
    ]
    return ", ".join(filter(None, parts))


def run(args: argparse.Namespace) -> int:
    """Print the key, the step that served it, the row it came from and the config."""
    key = key_of(args)
    target, word = target_of(args)
    resolve = dispatch.resolve_invariant if args.batch_invariant else dispatch.resolve
    choice = resolve(key, target, dispatch.tables())
    known = sorted({gpu for gpu, _ in dispatch.tables().rows})
    lines = [
        ("launch", f"{_key_text(key)}{', batch-invariant' if args.batch_invariant else ''}"),
        ("on", f"{target.gpu or 'no GPU (the table is empty)'}, Triton {target.triton} ({word})"),
    ]
    if target.gpu not in known:
        lines.append(("", f"the table has no rows for it; it has rows for {', '.join(known) or 'no GPU'}"))
        if not target.architecture:
            lines.append(("", "--architecture, as 9.0 for Hopper, and --sm-count say whose rows it borrows"))
    lines.append(("step", choice.step))
    if choice.source is None:
        which = "the built-in default" if choice.step == "default" else "what does best on average"
        lines.append(("row", f"none: {which}, made to fit the device; `csgmv tune` finds a better one"))
    else:
        lines.append(
            ("row", f"{_key_text(choice.source)}; tuned on {choice.gpu} under Triton {choice.triton}"),
        )
    width = columns.terminal_width()
    print(*(columns.labelled(*line, width) for line in lines), sep="\n")
    print()
    print(columns.aligned(("field", "value"), _config_rows(choice, key.op), width))
    return 0
