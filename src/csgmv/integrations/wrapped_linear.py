"""A linear layer whose output gets each row's adapter added, in place of the layer's own `forward`.

Layers that read the same tensor (q, k and v; gate and up) share one call of `add_lora`: the first that is called has
all of them compute their outputs, and the others hand out what is there already.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Union

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from csgmv.integrations import tensor_version
from csgmv.integrations.row_batches import RowBatch, StaticBatch
from csgmv.layer import add_lora
from csgmv.segments import Segments
from csgmv.slices import Stationary

Batch = Union[RowBatch, StaticBatch]

_PATIENCE = 3  # times in a row that outputs may be computed in vain before layers no longer wait for each other
_offsets = functools.cache(lambda widths: (0, *itertools.accumulate(widths)))
"""The same object for the same widths: a launch that knows it need not check it."""


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


class _Ahead(NamedTuple):
    """Outputs of an input, for layers that are still to come."""

    input: torch.Tensor
    version: int
    outputs: list[torch.Tensor | None]


class SharedInput:
    """Up to four linear layers that are called with the same tensor, one after the other, and their adapters.

    An adapter has one rank and one scaling here. In a layer where its rank is lower, or that it does not target, the
    rest of its A and B is zero; where its scaling is another, B is multiplied by the ratio.

    Attributes:
        layers: in the order of the slices.
        lora_a: of each layer [max_loras, max_rank, input_dim].
        lora_b: of each layer [max_loras, its width, max_rank].
        row: of the slots' table.
        number: in `Serving.inputs`.
        together: whether there are several layers.
    """

    def __init__(
        self, max_loras: int, max_rank: int, like: torch.Tensor, widths: Sequence[int], row: int, serving: Serving
    ) -> None:
        """`like` is an empty tensor [input_dim, 0] of the adapters' dtype, on their device."""
        self.row, self.number, self._serving = row, len(serving.inputs), serving
        self.layers: list[WrappedLinear] = []
        self.lora_a = Stationary(tuple(like.new_zeros(max_loras, max_rank, like.shape[0]) for _ in widths))
        self.lora_b = Stationary(tuple(like.new_zeros(max_loras, width, max_rank) for width in widths))
        self._offsets: tuple[int, ...] = _offsets(tuple(widths))
        self._alone = [
            (Stationary((a,)), Stationary((b,)), _offsets((width,)))
            for a, b, width in zip(self.lora_a, self.lora_b, widths)
        ]
        self.together = len(widths) > 1
        self._ahead: _Ahead | None = None
        self._in_vain = 0 if self.together else _PATIENCE
        # While Dynamo traces: what is traced is known by the variable, and forgotten once all layers have come.
        self._traced: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._traced_left = 0
        serving.inputs.append(self)

    def put(self, slot: int, place: int, lora_a: torch.Tensor, lora_b: torch.Tensor) -> None:
        """Fill a slot with an adapter's A [rank, input_dim] and B [output_dim, rank] of one layer."""
        rank = len(lora_a)
        self.lora_a[place][slot, :rank].copy_(lora_a)
        self.lora_b[place][slot, :, :rank].copy_(lora_b)

    def clear(self, slot: int) -> None:
        """Zero a slot's weights."""
        for weights in (*self.lora_a, *self.lora_b):
            weights[slot].zero_()

    def output(self, place: int, input: torch.Tensor, batch: Batch) -> torch.Tensor:  # noqa: A002
        """What a layer gives for an input.

        Raises:
            RuntimeError: gradients would be needed.
        """
        if self._ahead is not None and (output := self._ready(place, input)) is not None:
            return output
        segments = batch.segments(input.shape, self.row)
        if segments is None or self._in_vain >= _PATIENCE:
            return self._computed([self.layers[place]], input, segments, place)[0]
        outputs = self._computed(self.layers, input, segments, None)
        self._ahead = _Ahead(input, tensor_version.version(input), [*outputs[:place], None, *outputs[place + 1 :]])
        return outputs[place]

    def _ready(self, place: int, inputs: torch.Tensor) -> torch.Tensor | None:
        """What was computed for this layer when another one was called; None, and all is let go of, if it was not."""
        assert self._ahead is not None
        known, then, outputs = self._ahead
        output = outputs[place] if known is inputs and then == tensor_version.version(inputs) else None
        if output is None:
            self._ahead = None
            self._in_vain += 1
            return None
        outputs[place] = None
        if all(each is None for each in outputs):
            self._ahead, self._in_vain = None, 0
        return output

    def _computed(
        self, layers: Sequence[WrappedLinear], inputs: torch.Tensor, segments: Segments | None, place: int | None
    ) -> list[torch.Tensor]:
        """The outputs of these layers, the one in this place or all (None), with each row's adapter added."""
        outputs: list[torch.Tensor] = [layer.base(inputs) for layer in layers]
        for layer, output in zip(layers, outputs):
            layer.refuse_gradients(output)
        self._add(outputs, inputs, segments, place)
        return outputs

    def add(self, outputs: Sequence[torch.Tensor], inputs: torch.Tensor, batch: Batch, place: int | None) -> None:
        """Add each row's adapter to the output of the layer in this place, or to those of all (None), in place."""
        self._add(outputs, inputs, batch.segments(inputs.shape, self.row), place)

    def _add(
        self, outputs: Sequence[torch.Tensor], inputs: torch.Tensor, segments: Segments | None, place: int | None
    ) -> None:
        if segments is None:
            return
        x = inputs.reshape(-1, inputs.shape[-1])
        bases = tuple([output.view(-1, output.shape[-1]) for output in outputs])
        lora_a, lora_b, offsets = (self.lora_a, self.lora_b, self._offsets) if place is None else self._alone[place]
        add_lora(bases, x, lora_a, lora_b, segments, offsets, padded=True)

    def traced_output(self, place: int, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """As `output`, for a graph. A change in place between two layers' calls is not seen there."""
        if self._traced is not None and self._traced[0] is input:
            outputs = self._traced[1]
        elif self.together:
            outputs = [layer.base(input) for layer in self.layers]
            self.add_traced(outputs, input)
            self._traced, self._traced_left = (input, outputs), len(self.layers)
        else:
            alone: torch.Tensor = self.layers[place].base(input)
            self.add_traced([alone], input, place)
            return alone
        self._traced_left -= 1
        if self._traced_left == 0:
            self._traced = None
        return outputs[place]

    def add_traced(self, outputs: list[torch.Tensor], inputs: torch.Tensor, place: int | None = None) -> None:
        """As `add`, for a graph."""
        from csgmv.integrations import traced

        traced.add(outputs, inputs, self._serving.number, self._serving.graph, self.number, place)

    def forget(self) -> None:
        """A batch has ended: let go of what was computed for a layer that was not called. The next one tries again."""
        self._ahead = self._traced = None
        self._in_vain = 0 if self.together else _PATIENCE


class WrappedLinear:
    """One layer.

    Attributes:
        path: of the module in the model.
        shared: what it reads, and its adapters.
        base: the module's own `forward`.
    """

    def __init__(self, path: str, module: nn.Module, shared: SharedInput, serving: Serving) -> None:
        self.path, self.shared = path, shared
        self._module, self._serving = module, serving
        self._place = len(shared.layers)
        shared.layers.append(self)
        self._own: Any = vars(module).get("forward")  # an instance's own `forward`, which accelerate's hooks set
        self.base = module.forward

    def wrap(self) -> None:
        """Take the place of the module's `forward`."""
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
        serving, shared, place = self._serving, self.shared, self._place
        output: torch.Tensor
        if not serving.active:
            output = self.base(input, *args, **kwargs)
            return output
        if args or kwargs:  # what this layer alone is told
            output = self.base(input, *args, **kwargs)
            self.refuse_gradients(output)
            if is_dynamo_compiling():
                shared.add_traced([output], input, place)
            else:
                assert serving.batch is not None
                shared.add([output], input, serving.batch, place)
        elif is_dynamo_compiling():
            output = shared.traced_output(place, input)
            self.refuse_gradients(output)
        else:
            assert serving.batch is not None
            output = shared.output(place, input, serving.batch)
        return output

    def refuse_gradients(self, output: torch.Tensor) -> None:
        """Raises RuntimeError if the output is one that gradients could be asked of."""
        if output.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{self.path}: adapters are for inference, which has no gradients: "
                "call the model under torch.no_grad() or torch.inference_mode()"
            )

    def put(self, slot: int, lora_a: torch.Tensor, lora_b: torch.Tensor) -> None:
        """Fill a slot with an adapter's A [rank, input_dim] and B [output_dim, rank]."""
        self.shared.put(slot, self._place, lora_a, lora_b)
