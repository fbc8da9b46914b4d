"""What a batch's hidden states should be: each row by itself in float32, its adapter merged into the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from csgmv.e2e.random_adapters import Adapter

LEAST = 1e-4  # float32 itself, summed in another order


@torch.no_grad()
def states(model: Any, adapters: Mapping[str, Adapter], names: Sequence[str | None], ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states [rows, tokens, hidden], float32.

    Args:
        model: the bare one; stays as it is.
        adapters: by name.
        names: an adapter or None for each row.
        ids: [rows, tokens], of which every row is as long as the others.
    """
    exact = copy.deepcopy(model).float()
    own = {name: weight.clone() for name, weight in exact.named_parameters()}
    found: list[torch.Tensor] = [torch.empty(0)] * len(names)
    for name in dict.fromkeys(names):
        if name is not None:
            _merge(exact, adapters[name])
        for row in (row for row, its in enumerate(names) if its == name):
            found[row] = exact(input_ids=ids[row : row + 1], use_cache=False).last_hidden_state[0]
        for weight_name, weight in exact.named_parameters():
            weight.copy_(own[weight_name])
    return torch.stack(found)


def _merge(exact: Any, adapter: Adapter) -> None:
    for path, (a, b) in adapter.weights.items():
        weight = exact.get_submodule(path).weight
        weight.addmm_(b.to(weight), a.to(weight), alpha=adapter.scaling)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest distance of any row from its reference, as a share of that one's norm; NaN where one has no number.

    Args:
        got: [rows, …], of any dtype.
        wanted: the same shape, float32.
    """
    off = torch.linalg.vector_norm((got.float() - wanted).flatten(1), dim=1)
    return float((off / torch.linalg.vector_norm(wanted.flatten(1), dim=1)).max())


def tolerance(bare: float) -> float:
    """The error that a right result may have: twice that of the bare model in the same dtype.

    A served one rounds twice as often, since it also rounds what an adapter adds.
    """
    return max(LEAST, 2 * bare)
