"""A linear layer whose output gets each row's adapter added, in place of the layer's own `forward`.

Layers that read the same tensor (q, k and v; gate and up) share one shrink: the first that is called computes h of all,
and each adds its own slice of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Union

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from csgmv.expand import lora_expand
from csgmv.integrations.row_batches import RowBatch, StaticBatch
from csgmv.layer import add_lora
from csgmv.shrink import lora_shrink

Batch = Union[RowBatch, StaticBatch]


class Serving:
    """What all layers that one `MultiLoRA` wraps have in common.

    Attributes:
        active: whether a batch with adapters is being served.
        batch: that batch; None while there is none.
        graph: its own `graph`.
        inputs: what the layers read, one for each group of layers; `SharedInput.number` is the place in here.
        number: tells this one from others, in a graph that was compiled.
    """

    def __init__(self, number: int) -> None:
        self.active = False
        self.batch: Batch | None = None
        self.graph = ""
        self.inputs: list[SharedInput] = []
        self.number = number

    def start(self, batch: Batch) -> None:
        """Serve this batch from now on."""
        self.batch, self.active, self.graph = batch, batch.mask != 0, batch.graph

    def stop(self) -> None:
        """Serve none, and keep nothing of the one before."""
        if self.active:
            for shared in self.inputs:
                shared.forget()
        self.batch, self.active = None, False


class _Shrunk(NamedTuple):
    """An input and its h, for layers that are still to come."""

    input: torch.Tensor
    version: int
    h: torch.Tensor | None


class SharedInput:
    """The A matrices of up to four linear layers that are called with the same tensor, one after the other.

    Attributes:
        lora_a: [max_loras, num_slices · max_rank, input_dim], padded: slice i begins at row i · max_rank.
        layers: that read this input, in the order of the slices.
        row: of the slots' table, with the largest rank of any of the layers.
        number: in `Serving.inputs`.
    """

    def __init__(self, lora_a: torch.Tensor, row: int, serving: Serving) -> None:
        self.lora_a, self.row, self.number = lora_a, row, len(serving.inputs)
        self.layers: list[WrappedLinear] = []
        self._serving = serving
        self._left = 0
        self._shrunk: _Shrunk | None = None
        # While Dynamo traces: what is traced is known by the variable, and forgotten before the graph ends.
        self._traced_left = 0
        self._traced: tuple[torch.Tensor, torch.Tensor] | None = None
        serving.inputs.append(self)

    def h(self, input: torch.Tensor, batch: Batch) -> torch.Tensor | None:  # noqa: A002
        """[num_tokens, num_slices · max_rank], of the layer before if that had this very tensor, unchanged since.

        None where no row's adapter has a rank in any of the layers.
        """
        kept, version = self._shrunk, _version(input)
        if kept is None or kept.input is not input or kept.version != version:
            kept = self._shrunk = _Shrunk(input, version, self.shrink(input, batch))
            self._left = len(self.layers)
        self._left -= 1
        if not self._left:
            self._shrunk = None
        return kept.h

    def shrink(self, input: torch.Tensor, batch: Batch) -> torch.Tensor | None:  # noqa: A002
        """The same, computed."""
        segments = batch.segments(input.shape, self.row)
        if segments is None:
            return None
        x = input.reshape(-1, input.shape[-1])
        return lora_shrink(x, self.lora_a, segments, len(self.layers), padded=True)

    def traced_h(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """As `h`, for a graph. A change in place between two layers' calls is not seen there."""
        from csgmv.integrations import traced

        if self._traced is not None and self._traced[0] is input:
            h = self._traced[1]
        else:
            serving = self._serving
            h = traced.shrink(input, serving.number, serving.graph, self.number, self.lora_a.shape[1])
            self._traced, self._traced_left = (input, h), len(self.layers)
        self._traced_left -= 1
        if self._traced_left == 0:
            self._traced = None
        return h

    def forget(self) -> None:
        """Let go of what was kept for a layer that was not called."""
        self._shrunk = self._traced = None


class WrappedLinear:
    """One layer.

    Attributes:
        path: of the module in the model.
        lora_b: [max_loras, output_dim, max_rank].
        shared: where its A matrix is.
        row: of the slots' table.
    """

    def __init__(
        self, path: str, module: nn.Module, shared: SharedInput, lora_b: torch.Tensor, row: int, serving: Serving
    ) -> None:
        self.path, self.lora_b, self.row = path, lora_b, row
        self.shared, self._module, self._serving = shared, module, serving
        self._place = len(shared.layers)
        shared.layers.append(self)
        self._own: Any = vars(module).get("forward")  # an instance's own `forward`, which accelerate's hooks set
        self._base = module.forward
        self._offsets: Sequence[int] = (0, lora_b.shape[1])

    def wrap(self) -> None:
        """Take the place of the module's `forward`; once all layers of the shared input are there."""
        self._offsets = _slice_offsets(self._place, len(self.shared.layers), self.lora_b.shape[1])
        self._module.forward = self.forward

    @property
    def on_top(self) -> bool:
        """Whether nobody else has replaced the module's `forward` since."""
        return vars(self._module).get("forward") == self.forward

    def unwrap(self) -> None:
        """Give the module back its own."""
        del self._module.forward
        if self._own is not None:
            self._module.forward = self._own

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: A002  as nn.Linear's
        """The layer's output, [rows, tokens, output_dim], with each row's adapter added."""
        output: torch.Tensor = self._base(input, *args, **kwargs)
        serving = self._serving
        if serving.active:
            if output.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{self.path}: adapters are for inference, which has no gradients: "
                    "call the model under torch.no_grad() or torch.inference_mode()"
                )
            if is_dynamo_compiling():
                self._add_traced(output, input)
            else:
                assert serving.batch is not None
                self.add(output, input, serving.batch)
        return output

    def put(self, slot: int, lora_a: torch.Tensor, lora_b: torch.Tensor) -> None:
        """Fill a slot with an adapter's A [rank, input_dim] and B [output_dim, rank]; what is past its rank stays."""
        first, rank = self._place * self.lora_b.shape[2], len(lora_a)
        self.shared.lora_a[slot, first : first + rank].copy_(lora_a)
        self.lora_b[slot, :, :rank].copy_(lora_b)

    def add(self, output: torch.Tensor, input: torch.Tensor, batch: Batch) -> None:  # noqa: A002
        """Add each row's adapter to the output, in place."""
        if len(self.shared.layers) > 1:
            h = self.shared.h(input, batch)
            if h is not None:
                self.expand(output, h, batch)
            return
        segments = batch.segments(input.shape, self.row)
        if segments is not None:
            x, base = input.reshape(-1, input.shape[-1]), output.view(-1, output.shape[-1])
            add_lora(base, x, self.shared.lora_a, self.lora_b, segments, self._offsets)

    def expand(self, output: torch.Tensor, h: torch.Tensor, batch: Batch) -> None:
        """The half of it that is left when h is known; the other layers' slices of h count as of no width."""
        segments = batch.segments(output.shape, self.row)
        if segments is not None:
            lora_expand(h, self.lora_b, segments, self._offsets, output.view(-1, output.shape[-1]), padded=True)

    def _add_traced(self, output: torch.Tensor, input: torch.Tensor) -> None:  # noqa: A002
        from csgmv.integrations import traced

        shared, serving = self.shared, self._serving
        if len(shared.layers) > 1:
            h = shared.traced_h(input)
            traced.expand(output, h, serving.number, serving.graph, shared.number, self._place)
        else:
            traced.add(output, input, serving.number, serving.graph, shared.number)


@functools.cache
def _slice_offsets(place: int, slices: int, width: int) -> tuple[int, ...]:
    """Of one slice among others that count as of no width; the same object each time, which launches need not check."""
    return (0,) * (place + 1) + (width,) * (slices - place)


def _version(tensor: torch.Tensor) -> int:
    """Grows with every change in place; inference tensors do not count theirs and are taken not to change."""
    return -1 if tensor.is_inference() else tensor._version
