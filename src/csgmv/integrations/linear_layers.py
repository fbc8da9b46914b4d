"""A model's linear layers: their sizes, where they are, and which of them are called with the same tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from csgmv import dtypes, launch

# Names of neighbours that models call with the same tensor, one after the other.
_SHARING = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("w1", "w3"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
)
# Of modules so called, keys and values read another tensor than queries, and often one that was read before.
_CROSS = re.compile("cross|encoder_attn|encdec", re.IGNORECASE)


class Linear(NamedTuple):
    """What an adapter has to fit: a layer's sizes, and the dtype that its adapters are kept in."""

    input_dim: int
    output_dim: int
    dtype: torch.dtype


def of(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Linear | None]:
    """All of a model's modules by their paths; None for those that are not linear.

    Linear is what says its in_features and out_features, quantised or not. The dtype that is given counts, else the
    weight's, else (the weight is quantised) the model's.
    """
    return {path: _linear(module, dtype or _dtype(module, model)) for path, module in model.named_modules()}


def all_linear(model: nn.Module, linears: Mapping[str, Linear | None]) -> set[str]:
    """What PEFT means by all linear layers: all but the one that makes logits."""
    head_of = getattr(model, "get_output_embeddings", None)
    head = head_of() if callable(head_of) else None
    return {path for path, module in model.named_modules() if linears[path] is not None and module is not head}


def device(modules: Iterable[nn.Module]) -> torch.device:
    """The device of modules.

    Raises:
        ValueError: there are several, or it cannot run the kernels.
    """
    places = {tensor.device: None for module in modules for tensor in (*module.parameters(), *module.buffers())}
    if len(places) != 1:
        raise ValueError(f"model: expected the targeted layers on one device, got {', '.join(map(str, places))}")
    (place,) = places
    if place.type != "cuda" and not (launch.INTERPRETED and place.type == "cpu"):
        raise ValueError(
            f"model: expected it on a GPU, got {place}"
            " (set TRITON_INTERPRET=1 before the first import to run on the CPU)"
        )
    return place


def groups(paths: Sequence[str], linears: Mapping[str, Linear | None]) -> list[list[str]]:
    """Paths of linear layers, those together that read the same tensor, in the order in which it is read."""
    together: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        linear = linears[path]
        assert linear is not None
        sharing = next((names for names in _SHARING if name in names and not _CROSS.search(parent)), (name,))
        key = parent, sharing, linear.input_dim, linear.dtype
        together.setdefault(key, []).append((sharing.index(name), path))
    return [[path for _, path in sorted(group)] for group in together.values()]


def _linear(module: nn.Module, dtype: torch.dtype) -> Linear | None:
    input_dim, output_dim = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return Linear(input_dim, output_dim, dtype) if type(input_dim) is int and type(output_dim) is int else None


def _dtype(module: nn.Module, model: nn.Module) -> torch.dtype:
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.dtype in dtypes.NAMES:
        return weight.dtype
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and dtype in dtypes.NAMES else torch.get_default_dtype()
