"""The options that say which layers, adapters and operations a command is about."""

from __future__ import annotations

import argparse

from csgmv import rules
from csgmv.models import LayerShape, layer_shapes, parse_layer


def add_arguments(group: argparse._ArgumentGroup, *, rank_required: bool = True) -> None:
    """Add --model, --layer, --rank, --tp, --dtype, --ops and --trust-remote-code."""
    add = group.add_argument
    add("--model", metavar="NAME_OR_FOLDER", help="of transformers: a hub name, or a folder with a config.json")
    add("--layer", metavar="NAME:INPUT_DIM:W1+W2+W3", action="append", default=[], help="a layer by hand; repeatable")
    add("--rank", type=int, required=rank_required, metavar="N", help="max_rank of the adapters, 1 to 256")
    add("--tp", type=int, nargs="+", default=[1], metavar="N", help="tensor-parallel sizes of --model (1)")
    add("--dtype", choices=list(rules.DTYPE_BYTES), default="bfloat16", help="of every tensor (%(default)s)")
    add("--ops", nargs="+", choices=rules.OPS, default=rules.OPS, help="operations (all)")
    add("--trust-remote-code", action="store_true", help="let transformers run the model's own code")


def layers(args: argparse.Namespace) -> list[LayerShape]:
    """The layers asked for, each shape once.

    Raises:
        ValueError: there are none, or what was given is no layer or model.
    """
    if not args.model and not args.layer:
        raise ValueError("--model, --layer: expected one of them, got neither")
    found = [parse_layer(text) for text in args.layer]
    for tp in args.tp if args.model else ():
        found += layer_shapes(args.model, tp, args.trust_remote_code)
    return list({(layer.input_dim, layer.slice_widths): layer for layer in reversed(found)}.values())[::-1]
