"""Random LoRA adapters of a model's linear layers, as tensors and in folders as PEFT saves them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from csgmv.integrations import linear_layers

_STRENGTH = 0.3  # size of what an adapter adds, of that of its input; PEFT's own random ones have about as much


class Adapter(NamedTuple):
    """One adapter.

    Attributes:
        name: that ways to serve know it by.
        rank: of all its layers.
        scaling: of the product, alpha / rank.
        weights: A [rank, input_dim] and B [output_dim, rank] by the layer's path, in the model's dtype, on the host.
        folder: with adapter_config.json and adapter_model.safetensors.
    """

    name: str
    rank: int
    scaling: float
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    folder: Path


def make(
    model: Any,
    count: int,
    ranks: Sequence[int],
    dtype: torch.dtype,
    folder: Path,
    targets: Collection[str] | None = None,
) -> list[Adapter]:
    """Adapters of a model's linear layers, the same each time, in folders of their names.

    Args:
        model: a transformers model.
        count: how many.
        ranks: of the adapters in turn. Every other one has scaling 2, the rest 1.
        dtype: of their weights.
        folder: where theirs are made.
        targets: the layers' names, as PEFT's target_modules; None for all linear layers that the model has.
    """
    from safetensors.torch import save_file

    there = {path: linear for path, linear in linear_layers.of(model, dtype).items() if linear is not None}
    linears = {path: each for path, each in there.items() if targets is None or _name(path) in targets}
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        rank, scaling, name = ranks[number % len(ranks)], 1.0 + number % 2, f"adapter{number}"
        weights = {}
        for path, linear in linears.items():
            a = torch.randn(rank, linear.input_dim, generator=draw) / linear.input_dim**0.5
            b = torch.randn(linear.output_dim, rank, generator=draw) * (_STRENGTH / scaling / rank**0.5)
            weights[path] = a.to(dtype), b.to(dtype)
        own = folder / name
        own.mkdir(parents=True)
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": scaling * rank,
            "target_modules": sorted({*map(_name, linears)}),
        }
        (own / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        named = {
            f"base_model.model.{path}.lora_{matrix}.weight": tensor
            for path, pair in weights.items()
            for matrix, tensor in zip("AB", pair)
        }
        save_file(named, own / "adapter_model.safetensors")
        made.append(Adapter(name, rank, scaling, weights, own))
    return made


def _name(path: str) -> str:
    return path.rpartition(".")[2]
