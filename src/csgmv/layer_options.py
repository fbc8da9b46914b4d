"""The options that say which layers, adapters and operations a command is about."""

from __future__ import annotations

import argparse
from pathlib import Path

from csgmv import peft_adapter, rules
from csgmv.models import LayerShape, layer_shapes, parse_layer
from csgmv.option_types import whole
from csgmv.target_modules import Targets

LAYER = "a layer by hand: its name, columns of x and columns of each slice, e.g. qkv:1024:2048+1024+1024; repeatable"
OPS = f"operations, some of {', '.join(rules.OPS)}"


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add --model, --adapter, --layer, --rank, --tp, --dtype, --ops and --trust-remote-code."""
    add = group.add_argument
    add("--model", metavar="NAME_OR_FOLDER", help="a name on the Hugging Face hub, or a folder with a config.json")
    add("--layer", metavar="NAME:INPUT_DIM:W1+W2+W3", action="append", default=[], help=LAYER)
    add(
        "--adapter",
        type=Path,
        metavar="FOLDER",
        action="append",
        default=[],
        help="with an adapter_config.json: its rank, the layers that it targets, and its model if no --model is given; "
        "repeatable",
    )
    add(
        "--rank",
        type=whole(1, rules.MAX_RANK),
        metavar="N",
        help="max_rank of the adapters, 1 to 256 (default: the largest of --adapter)",
    )
    add(
        "--tp",
        type=whole(1),
        nargs="+",
        default=[1],
        metavar="N",
        help="tensor-parallel sizes of --model, in GPUs",
    )
    add("--dtype", choices=list(rules.DTYPE_BYTES), default="bfloat16", help="of every tensor")
    add("--ops", nargs="+", choices=rules.OPS, default=rules.OPS, metavar="OP", help=OPS)
    add("--trust-remote-code", action="store_true", help="let transformers run the model's own code")


def layers(args: argparse.Namespace) -> list[LayerShape]:
    """The layers asked for, each shape once.

    Raises:
        ValueError: there are none, or what was given is no layer, model or adapter.
    """
    if not args.model and not args.layer and not args.adapter:
        raise ValueError(
            "--model, --adapter, --layer: expected one of them, such as --model llama-3.1-8b, got none of them"
        )
    found = [parse_layer(text) for text in args.layer]
    adapters = [peft_adapter.read(folder) for folder in args.adapter]
    for folder, adapter in zip(args.adapter, adapters):
        if not (args.model or adapter.base):
            raise ValueError(f"--adapter: expected --model too, since {folder} does not name its model, got none")
    sources: list[tuple[str, Targets | None]]
    sources = [(args.model or adapter.base, adapter.targets) for adapter in adapters]
    if args.model and not adapters:
        sources = [(args.model, None)]
    for tp in args.tp:
        for model, targets in sources:
            found += layer_shapes(model, tp, args.trust_remote_code, targets)
    return list({(layer.input_dim, layer.slice_widths): layer for layer in reversed(found)}.values())[::-1]


def rank(args: argparse.Namespace) -> int:
    """The max_rank asked for.

    Raises:
        ValueError: there is none, it is less than an adapter's, or an adapter's folder cannot be read.
    """
    ranks = {folder: peft_adapter.read(folder).rank for folder in args.adapter}
    if args.rank is None and not ranks:
        raise ValueError("--rank: expected the adapters' rank, such as 64, since there is no --adapter, got none")
    if args.rank is None:
        return max(ranks.values())
    for folder, own in ranks.items():
        if args.rank < own:
            raise ValueError(f"--rank: expected at least {own}, the rank of {folder}, got {args.rank}")
    max_rank: int = args.rank
    return max_rank
