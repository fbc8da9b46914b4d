"""A model whose linear layers are wrapped: read adapters for it, give its layers room for them, fill a slot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from csgmv.integrations import linear_layers, peft_folder
from csgmv.integrations.adapter_slots import AdapterSlots
from csgmv.integrations.linear_layers import Linear
from csgmv.integrations.peft_config import Size, matches
from csgmv.integrations.peft_folder import LoraWeights
from csgmv.integrations.wrapped_linear import Serving, SharedInput, WrappedLinear
from csgmv.target_modules import check, is_all_linear

Adapter = Mapping[str, LoraWeights]  # by the path of the module


class WrappedModel:
    """The model's modules by their paths, and those of them that are wrapped.

    Attributes:
        layers: that are wrapped, by their paths.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self.layers: dict[str, WrappedLinear] = {}
        self._modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._linears = linear_layers.of(model, dtype)
        self._all_linear = linear_layers.all_linear(model, self._linears)

    def read(self, folder: str | Path) -> Adapter:
        """An adapter's weights for this model; raises what `peft_folder.read` does."""
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"folder: expected a str or a PathLike, got {type(folder).__name__}")
        return peft_folder.read(Path(folder), self._linears, self._all_linear, self._parameters)

    def targeted(self, target_modules: str | Sequence[str], adapters: Iterable[Adapter]) -> list[str]:
        """The linear layers that are named, or that an adapter targets, in the order in which the model has them.

        Raises:
            TypeError: target_modules are neither names nor a string.
            ValueError: target_modules is no regular expression.
        """
        check("target_modules", target_modules)
        named = {path for path, linear in self._linears.items() if linear is not None and matches(target_modules, path)}
        named |= self._all_linear if is_all_linear(target_modules) else set()
        return [path for path in self._modules if path in named or any(path in each for each in adapters)]

    def device(self, paths: Iterable[str]) -> torch.device:
        """Where these layers and those that are wrapped are; raises what `linear_layers.device` does."""
        return linear_layers.device(self._modules[path] for path in (*self.layers, *paths))

    def wrap(self, paths: Sequence[str], slots: AdapterSlots, max_rank: int, serving: Serving) -> None:
        """Wrap layers that are not wrapped yet, with room for an adapter of up to max_rank in each slot.

        Raises:
            ValueError: another model's wrapper is there already.
        """
        for path in paths:
            if isinstance(getattr(vars(self._modules[path]).get("forward"), "__self__", None), WrappedLinear):
                raise ValueError(f"model: expected layers that no other MultiLoRA has wrapped, got {path}")
        groups = linear_layers.groups(paths, self._linears)
        made: list[WrappedLinear] = []
        for group, row in zip(groups, slots.add_rows(len(groups))):
            sizes = [self._linear(path) for path in group]
            like = torch.empty(sizes[0].input_dim, 0, dtype=sizes[0].dtype, device=slots.device)
            widths = [each.output_dim for each in sizes]
            shared = SharedInput(slots.max_loras, max_rank, like, widths, row, serving)
            made += [WrappedLinear(path, self._modules[path], shared, serving) for path in group]
        for layer in made:
            layer.wrap()
            self.layers[layer.path] = layer

    def put(self, name: str, weights: Adapter, slots: AdapterSlots) -> None:
        """Give a free slot to an adapter whose layers are wrapped."""
        slot = slots.free()
        together: dict[SharedInput, list[tuple[WrappedLinear, LoraWeights]]] = {}
        for path, found in weights.items():
            layer = self.layers[path]
            together.setdefault(layer.shared, []).append((layer, found))
        sizes = {}
        for shared, group in together.items():
            scaling = max((found.scaling for _, found in group), key=abs)
            sizes[shared.row] = Size(max(found.rank for _, found in group), scaling)
            shared.clear(slot)
            for layer, found in group:
                ratio = found.scaling / scaling if scaling else 1.0
                lora_b = found.lora_b if ratio == 1.0 else (found.lora_b.float() * ratio).to(found.lora_b.dtype)
                layer.put(slot, found.lora_a, lora_b)
        slots.put(name, slot, sizes)

    def unwrap(self) -> None:
        """Give all layers back their own `forward`.

        Raises:
            RuntimeError: somebody else has wrapped one since. Nothing has been changed.
        """
        if covered := [path for path, layer in self.layers.items() if not layer.on_top]:
            raise RuntimeError(f"{covered[0]}: its `forward` has been replaced since: undo that first")
        for layer in self.layers.values():
            layer.unwrap()
        self.layers.clear()

    def _linear(self, path: str) -> Linear:
        linear = self._linears[path]
        assert linear is not None
        return linear
