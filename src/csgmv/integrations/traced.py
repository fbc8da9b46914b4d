"""What wrapped layers do, as operators of torch.library, for `torch.compile`: they come here only while Dynamo traces.

A graph holds a layer's number, not its batch: which adapter a row uses, and what weights the adapters have, is looked
up when the operator runs, so that neither has anything compiled again. Each static batch has a graph of its own, since
Inductor may make a CUDA graph of it, which has the batch's buffers in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

from csgmv import torch_library
from csgmv.integrations.row_batches import RowBatch, StaticBatch
from csgmv.integrations.wrapped_linear import Serving, SharedInput

_servings: weakref.WeakValueDictionary[int, Serving] = weakref.WeakValueDictionary()


def register(serving: Serving) -> None:
    """Let operators find what they are to serve, by its number, for as long as it lives."""
    _servings[serving.number] = serving


def _found(serving: int, graph: str, shared: int) -> tuple[SharedInput, RowBatch | StaticBatch]:
    served = _servings.get(serving)
    if served is None or served.batch is None or served.batch.graph != graph:
        raise RuntimeError("a graph that was compiled within MultiLoRA.use runs outside of it, or for another batch")
    return served.inputs[shared], served.batch


def _call_add(
    outputs: Sequence[torch.Tensor], x: torch.Tensor, serving: int, graph: str, shared: int, place: int | None
) -> None:
    group, batch = _found(serving, graph, shared)
    group.add(outputs, x, batch, place)


add = torch_library.define(
    "served_add",
    "(Tensor(a!)[] outputs, Tensor x, int serving, str graph, int shared, int? place) -> ()",
    _call_add,
)
