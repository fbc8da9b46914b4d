"""Ways to serve a batch whose rows use different adapters: each has a model, and what is around a call of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Union

import torch

from csgmv import dispatch, fallback
from csgmv.e2e import random_model
from csgmv.e2e.random_adapters import Adapter
from csgmv.e2e.results import BARE, BMM, DEFAULTS, NONE, OURS, PEFT, SMALL_CHUNK
from csgmv.integrations.row_batches import StaticBatch
from csgmv.integrations.transformers import MultiLoRA

Names = Sequence[Union[str, None]]


class Way:
    """The bare model; what other ways are derived from.

    Attributes:
        name: of the column.
        model: called within `use`, with `arguments`.
        chunk_size: of the batch's segments; None where it is left to csgmv, or where there are none.
        empty: whether its rows get no adapters.
        capturable: whether CUDA graphs can be made of it.
    """

    empty = False
    capturable = True
    chunk_size: int | None = None

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model

    def use(self, batch: Names | StaticBatch) -> AbstractContextManager[None]:  # noqa: ARG002
        """Around a call: batch has an adapter's name or None for each row, or is what `fixed` gave."""
        return contextlib.nullcontext()

    def fixed(self, names: Names) -> Names | StaticBatch:
        """A batch of one token a row that a graph may hold."""
        return names

    def arguments(self, names: Names) -> dict[str, Any]:  # noqa: ARG002
        """What a call needs besides."""
        return {}


class Bare(Way):
    """The model alone: what the others are held against."""

    empty = True


class Served(Way):
    """`MultiLoRA`, with tables of its own choice, or the process's."""

    def __init__(
        self,
        name: str,
        model: Any,
        many: MultiLoRA,
        *,
        chunk_size: int | None = None,
        tables: AbstractContextManager[None] | None = None,
        empty: bool = False,
    ) -> None:
        super().__init__(name, model)
        self.chunk_size, self.empty = chunk_size, empty
        self._many, self._tables = many, tables or contextlib.nullcontext()

    @contextlib.contextmanager
    def use(self, batch: Names | StaticBatch) -> Iterator[None]:
        """Names are made a batch of anew, as for every request."""
        chunk_size = None if isinstance(batch, StaticBatch) else self.chunk_size
        with self._tables, self._many.use(batch, chunk_size=chunk_size):
            yield

    def fixed(self, names: Names) -> Names | StaticBatch:
        """One in fixed buffers."""
        batch = self._many.static(len(names), chunk_size=self.chunk_size)
        batch.update(names)
        return batch


class Hooked(Way):
    """Forward hooks with two torch.bmm a layer, whose A and B are gathered row by row: good for rows of one length."""

    def __init__(self, model: Any, adapters: Sequence[Adapter]) -> None:
        super().__init__(BMM, model)
        self._places = {adapter.name: place for place, adapter in enumerate(adapters)}
        self._rows = torch.empty(0, dtype=torch.int64)
        self._known: dict[tuple[str | None, ...], torch.Tensor] = {}  # kept, since graphs hold them
        rank = max(adapter.rank for adapter in adapters)
        for path in adapters[0].weights:
            layer = model.get_submodule(path)
            pairs = [(*adapter.weights[path], adapter.scaling) for adapter in adapters]
            a = torch.stack([_padded(a, (rank, a.shape[1])) for a, _, _ in pairs]).to(layer.weight)
            b = torch.stack([_padded(b * scaling, (b.shape[0], rank)) for _, b, scaling in pairs]).to(layer.weight)
            layer.register_forward_hook(self._hook(a, b))

    def _hook(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        def add(_: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            h = torch.bmm(arguments[0], a[self._rows].mT)
            return output + torch.bmm(h, b[self._rows].mT)

        return add

    def use(self, batch: Names | StaticBatch) -> AbstractContextManager[None]:
        """Every row has an adapter."""
        assert not isinstance(batch, StaticBatch), "that is csgmv's"
        names = tuple(batch)
        if (rows := self._known.get(names)) is None:
            places = [self._places[name] for name in names if name is not None]
            rows = self._known[names] = torch.tensor(places, device=next(self.model.parameters()).device)
        self._rows = rows
        return contextlib.nullcontext()


class ByPeft(Way):
    """PEFT's own mixed batch, which looks up the rows of each adapter on the host and so cannot be captured."""

    capturable = False

    def __init__(self, model: Any, adapters: Sequence[Adapter]) -> None:
        """Raises ImportError where peft is missing."""
        from peft import PeftModel

        first, *others = adapters
        # Its autocast would make float32 of adapters that are bfloat16.
        served = PeftModel.from_pretrained(model, first.folder, adapter_name=first.name, autocast_adapter_dtype=False)
        for adapter in others:
            served.load_adapter(adapter.folder, adapter_name=adapter.name, autocast_adapter_dtype=False)
        super().__init__(PEFT, served.eval())

    def arguments(self, names: Names) -> dict[str, Any]:
        """Its name for none is __base__."""
        return {"adapter_names": ["__base__" if name is None else name for name in names]}


def ways(model: Any, adapters: Sequence[Adapter]) -> list[Way]:
    """All of them, the bare one first; without PEFT's where peft is not installed.

    csgmv's are there with the table's configs and with the defaults, each at the chunk size that csgmv chooses and at
    SMALL_CHUNK.

    Args:
        model: the bare one, which stays as it is: the others are twins of it.
        adapters: that the batches to come use.
    """
    served = random_model.twin(model)
    many = MultiLoRA(served, {adapter.name: adapter.folder for adapter in adapters})
    device = next(model.parameters()).device
    where = dispatch.target(device)
    untuned = dispatch.Instead(fallback.Tables({(where.gpu, where.triton): {}}))
    found: list[Way] = [Bare(BARE, model)]
    sizes = (None, SMALL_CHUNK)
    found += [Served(OURS, served, many, chunk_size=size) for size in sizes]
    found += [Served(DEFAULTS, served, many, chunk_size=size, tables=untuned) for size in sizes]
    found += [Served(NONE, served, many, empty=True), Hooked(random_model.twin(model), adapters)]
    with contextlib.suppress(ImportError):
        found.append(ByPeft(random_model.twin(model), adapters))
    return found


def _padded(matrix: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """With zeros past its own rows or columns."""
    whole = matrix.new_zeros(shape)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole
