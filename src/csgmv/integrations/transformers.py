"""Many PEFT adapters in one transformers model: each row of a batch gets its own, by csgmv's kernels.

The flow: linear_layers, peft_config, peft_folder (a folder → weights by layer) → adapter_slots (which slot, which rank
in which layer) → row_batches (which rows of which tokens) → wrapped_linear, traced (a layer's output); wrapped_model
keeps the layers together.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Union

import torch
from torch import nn

from csgmv import dtypes, plain_arguments, rules
from csgmv.integrations import traced
from csgmv.integrations.adapter_slots import AdapterSlots
from csgmv.integrations.row_batches import RowBatch, StaticBatch
from csgmv.integrations.wrapped_linear import Serving
from csgmv.integrations.wrapped_model import Adapter, WrappedModel

Folder = Union[str, Path]

_RANK_STEP = 16  # the default max_rank is a multiple, so that rows of A and B move 16 bytes at a time
_numbers = itertools.count()


class MultiLoRA:
    """A model's adapters, each in a slot of its own, and the batch that uses them.

    >>> with MultiLoRA(model, {"french": "adapters/french", "sql": "adapters/sql"}) as many:
    ...     with many.use(["french", None, "sql"]):
    ...         model.generate(**tokens_of_three_prompts)

    Wraps the linear layers that adapters target, by an instance's own `forward`; their weights are not touched. One
    batch at a time, on one stream: a model that several threads call needs a lock around `use`. For inference, in the
    layers' own dtype.

    Of layers that share an input (q, k and v; gate and up) the first that is called runs the others' own `forward` too,
    so that one call adds all their adapters; those then hand out what is there. A layer of these that an adapter does
    not target gets zeros added, and where an adapter's scalings differ among them (PEFT's alpha_pattern), B is
    multiplied by their ratio and rounded. An input that is changed in place between two such layers is seen to have
    changed, but for compiled models and under `torch.inference_mode`, where that must not be done.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Mapping[str, Folder],
        *,
        max_loras: int | None = None,
        max_rank: int | None = None,
        target_modules: str | Sequence[str] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        """Read the adapters and wrap the model's layers.

        Args:
            model: a transformers model, on one device; or any module whose layers take [rows, tokens, features].
            adapters: by name, folders as PEFT saves them.
            max_loras: slots, for as many adapters at a time; None for as many as are given, at least one. Memory for
                all of them is allocated now.
            max_rank: the largest rank of any adapter, up to 256; None for the largest of those given, rounded up to a
                multiple of 16.
            target_modules: what adapters that are added later may target besides, as in PEFT's configs: names or a
                regular expression. Without it, adding an adapter may have to wrap more layers.
            dtype: that adapters are kept in, which must be that of layers' inputs; None for the weight's, of a
                quantised layer the model's.

        Raises:
            TypeError: an argument is of another class, or a name is none.
            ValueError: an adapter cannot be honoured or does not fit the model, or there are too many, or the model is
                not on one device that can run the kernels. The model is as it was.
        """
        _check(model, adapters, dtype)
        self._model = WrappedModel(model, dtype)
        found = {_named(name): self._model.read(folder) for name, folder in adapters.items()}
        given = max(len(found), 1)
        slots = given if max_loras is None else plain_arguments.whole("max_loras", max_loras, 1)
        if slots < given:
            raise ValueError(f"max_loras: expected at least {given}, for the adapters given, got {slots}")
        self._max_rank = _max_rank(found)
        if max_rank is not None:
            self._max_rank = plain_arguments.whole("max_rank", max_rank, 1, rules.MAX_RANK)
        for name, weights in found.items():
            self._check_ranks(name, weights)
        targeted = self._model.targeted(target_modules, found.values())
        if not targeted:
            raise ValueError("adapters: expected at least one, or target_modules that the model has, got neither")
        self._slots = AdapterSlots(slots, self._model.device(targeted))
        self._serving = Serving(next(_numbers))
        self._static: weakref.WeakSet[StaticBatch] = weakref.WeakSet()
        self._closed = False
        traced.register(self._serving)
        self._wrap(targeted)
        for name, weights in found.items():
            self._model.put(name, weights, self._slots)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._slots.of)

    @contextlib.contextmanager
    def use(self, batch: Sequence[str | None] | StaticBatch, *, chunk_size: int | None = None) -> Iterator[None]:
        """Within this, the model's rows get adapters.

        Args:
            batch: an adapter's name or None for each row of the model's inputs; or for each sequence, where the model
                is called with several rows for each (beam search). Or a static batch.
            chunk_size: most rows of a segment, as `Segments.from_sequences` takes it. A static batch has its own.

        Raises:
            TypeError, ValueError: these are no names of adapters, or the chunk size is none; and from a layer, as the
                model is called: its rows are no multiple of the names, or its inputs not [rows, tokens, features].
            RuntimeError: a batch is being served, or this is closed; and from a layer, if gradients were needed.
        """
        self._check_open()
        if self._serving.batch is not None:
            raise RuntimeError("a batch is being served already: leave its `with` block first")
        if isinstance(batch, StaticBatch) and batch not in self._static:
            raise ValueError("batch: expected one of this MultiLoRA's own `static`, got another's")
        if isinstance(batch, StaticBatch):
            if chunk_size is not None:
                raise ValueError(f"chunk_size: expected None, since a static batch has its own, got {chunk_size}")
            self._serving.start(batch)
        else:
            self._serving.start(RowBatch(self._slots, batch, chunk_size))
        try:
            yield
        finally:
            self._serving.stop()

    def static(self, rows: int, tokens: int = 1, *, chunk_size: int | None = None) -> StaticBatch:
        """A batch in fixed buffers for CUDA graphs, at first without adapters: see `StaticBatch.update`.

        Args:
            rows: of the model's inputs.
            tokens: a row; 1 for decoding.
            chunk_size: most rows of a segment, as `Segments.allocate` takes it.

        Raises:
            TypeError, ValueError: a number is below 1, or the chunk size is none.
            RuntimeError: this is closed.
        """
        self._check_open()
        batch = StaticBatch(self._slots, rows, tokens, chunk_size)
        self._static.add(batch)
        return batch

    def add(self, name: str, folder: Folder) -> None:
        """One more adapter, in a free slot; batches that are being served, and graphs, go on.

        Args:
            name: that no other adapter has.
            folder: as PEFT saves it.

        Raises:
            TypeError: the name is none.
            ValueError: the name is taken, no slot is free, the rank exceeds max_rank, or the adapter cannot be honoured
                or does not fit; or it targets layers that are not wrapped, while there is a static batch, since a graph
                that was captured would leave them out. Nothing has been changed.
            RuntimeError: this is closed.
        """
        self._check_open()
        if _named(name) in self._slots.of:
            raise ValueError(f"name: expected a new one, got {name!r}")
        self._slots.free()
        weights = self._model.read(folder)
        self._check_ranks(name, weights)
        new = [path for path in weights if path not in self._model.layers]
        if new and self._static:
            raise ValueError(
                f"adapter {name!r}: expected targets among the wrapped layers while there is a static batch, "
                f"got {new[0]}: name it in MultiLoRA's target_modules"
            )
        if new:
            self._model.device(new)
            self._wrap(new)
        self._model.put(name, weights, self._slots)

    def remove(self, name: str) -> None:
        """Frees an adapter's slot for another.

        Args:
            name: that the adapter was given or added under.

        Raises:
            ValueError: there is no such adapter, or a batch that is being served or a static one uses it.
            RuntimeError: this is closed.
        """
        self._check_open()
        if not isinstance(name, str) or name not in self._slots.of:
            raise ValueError(f"name: expected one of {', '.join(self.adapters) or 'none'}, got {name!r}")
        served = [] if self._serving.batch is None else [self._serving.batch]
        if any(self._slots.of[name] in batch.ids for batch in (*served, *self._static)):
            raise ValueError(f"name: expected an adapter that no batch uses, got {name!r}: update static batches first")
        self._slots.take(name)

    def close(self) -> None:
        """Give the model's layers back their own `forward`. Closing twice is no error.

        Raises:
            RuntimeError: a batch is being served, or somebody else has wrapped a layer since. Nothing has been changed.
        """
        if self._closed:
            return
        if self._serving.batch is not None:
            raise RuntimeError("a batch is being served: leave its `with` block first")
        self._model.unwrap()
        self._closed = True
        self._serving.inputs.clear()

    def __enter__(self) -> MultiLoRA:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"MultiLoRA({len(self.adapters)} of {self._slots.max_loras} adapters, ranks up to {self._max_rank}, "
            f"{len(self._model.layers)} layers, {self._slots.device}{', closed' if self._closed else ''})"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this MultiLoRA is closed")

    def _wrap(self, paths: Sequence[str]) -> None:
        self._model.wrap(paths, self._slots, self._max_rank, self._serving)

    def _check_ranks(self, name: str, weights: Adapter) -> None:
        for path, found in weights.items():
            if found.rank > self._max_rank:
                raise ValueError(
                    f"adapter {name!r}: expected ranks of at most max_rank {self._max_rank}, got {found.rank} of {path}"
                )


def _check(model: object, adapters: object, dtype: object) -> None:
    """Raises TypeError or ValueError for what is of another class, before anything is read."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(adapters, Mapping):
        raise TypeError(f"adapters: expected folders by name, got {type(adapters).__name__}")
    if dtype is not None:
        dtypes.name_of("dtype", dtype, None)


def _named(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"adapters: expected names, got {name!r}")
    return name


def _max_rank(adapters: Mapping[str, Adapter]) -> int:
    """The largest rank of any, rounded up."""
    ranks = (found.rank for weights in adapters.values() for found in weights.values())
    return -(-max(ranks, default=_RANK_STEP) // _RANK_STEP) * _RANK_STEP
