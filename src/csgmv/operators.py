"""The three operations as operators of torch.library, for `torch.compile`: the wrappers come here only while
Dynamo traces them.

An operator takes tensors and numbers: a batch is handed over as its tensors and its sizes, which may be symbolic,
so that a graph serves batches of any size; a config is handed over as its row; what may come in slices always as a list
of tensors. What an operator then does is to call the wrapper, with the same plans as an eager call, so that the bits
are the same. No operator has a derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from csgmv import config as configs
from csgmv import expand, layer, rules, shrink, slices, torch_library
from csgmv.segments import Segments
from csgmv.slices import Sliced, SomeSliced

_BATCH = (
    "Tensor[] batch, SymInt chunk_size, SymInt num_segments, SymInt num_tokens, SymInt least_tokens, "
    "SymInt largest_rank"
)
_HOW = "bool padded, int[] config, bool batch_invariant"


def _define(name: str, arguments: str, call: Callable[..., Any], fake: Callable[..., Any] | None = None) -> Any:
    returns = "Tensor" if name == "lora_shrink" else "()"
    return torch_library.define(name, f"({arguments}, {_BATCH}, {_HOW}) -> {returns}", call, fake)


def _row(config: configs.Config) -> list[Any]:
    """`config.to_row`, in words that Dynamo knows: it does not look into an operator.attrgetter."""
    if isinstance(config, configs.AddLoraConfig):
        return [*_row(config.shrink), *_row(config.expand), config.overlap]
    return [getattr(config, name) for name in rules.FIELD_NAMES[config.op]]


def _handed_over(
    segments: Segments, padded: bool, config: configs.Config | None, batch_invariant: bool
) -> tuple[Any, ...]:
    """What follows an operation's own arguments, in the order of `_BATCH` and `_HOW`.

    Of Segments that the library has made, two tensors say all: the buffer that the five are parts of, and one of these,
    for its length. The others, whose lengths may be 0 or 1, for which Dynamo makes graphs of their own, it never sees.

    What the host knows of a refillable batch's contents changes from refill to refill, while a graph that was captured
    with it stays: such Segments count as ones whose contents came from the GPU.
    """
    buffer = segments._buffer
    known = (0, 0) if segments._refillable else (segments.least_tokens, segments.largest_rank)
    return (
        [*segments.tensors] if buffer is None else [buffer, segments.lora_ranks],
        segments.chunk_size,
        segments.num_segments,
        segments.num_tokens,
        *known,
        padded,
        [] if config is None else [-1 if value is None else int(value) for value in _row(config)],
        batch_invariant,
    )


@functools.lru_cache(maxsize=4096)
def _config(op: str, row: tuple[int, ...]) -> Any:
    fields = rules.FIELDS[op]
    values = (bool(value) if field.boolean else value for field, value in zip(fields, row))
    return configs.from_row(op, tuple(None if value == -1 else value for value in values))


# A batch goes through all layers of a model, and cutting its buffer takes half as long as a call: that is done once.
# Buffers are told apart as objects, which live as long as they are remembered, so that none is taken for another.
_of_buffer = functools.lru_cache(maxsize=16)(Segments._of_buffer)


def _taken_over(op: str, given: tuple[Any, ...]) -> tuple[Segments, dict[str, Any]]:
    """The inverse of `_handed_over`: the batch, and the keyword arguments."""
    tensors, *sizes, padded, row, batch_invariant = given
    config = _config(op, tuple(row)) if row else None
    one = len(tensors) == 2
    segments = _of_buffer(tensors[0], tensors[1].numel(), *sizes) if one else Segments(*tensors, *sizes)
    return segments, {"padded": padded, "config": config, "batch_invariant": batch_invariant}


def _sliced(listed: Sequence[torch.Tensor]) -> Sliced:
    """What was handed over as a list."""
    return listed[0] if len(listed) == 1 else tuple(listed)


def _call_shrink(x: torch.Tensor, lora_a: Sequence[torch.Tensor], num_slices: int, *given: Any) -> torch.Tensor:
    segments, how = _taken_over("shrink", given)
    h: torch.Tensor = shrink.lora_shrink(x, _sliced(lora_a), segments, num_slices, **how)
    return h


def _fake_shrink(x: torch.Tensor, lora_a: Sequence[torch.Tensor], *_: Any) -> torch.Tensor:
    return x.new_empty((x.shape[0], sum(each.shape[1] for each in lora_a)))


def _call_shrink_out(
    x: torch.Tensor, lora_a: Sequence[torch.Tensor], num_slices: int, out: Sequence[torch.Tensor], *given: Any
) -> None:
    segments, how = _taken_over("shrink", given)
    shrink.lora_shrink(x, _sliced(lora_a), segments, num_slices, out=_sliced(out), **how)


def _call_expand(
    h: Sequence[torch.Tensor],
    lora_b: Sequence[torch.Tensor],
    slice_offsets: Sequence[int],
    base_output: Sequence[torch.Tensor],
    *given: Any,
) -> None:
    segments, how = _taken_over("expand", given)
    expand.lora_expand(_sliced(h), _sliced(lora_b), segments, tuple(slice_offsets), _sliced(base_output), **how)


def _call_add_lora(
    base_output: Sequence[torch.Tensor],
    x: torch.Tensor,
    lora_a: Sequence[torch.Tensor],
    lora_b: Sequence[torch.Tensor],
    slice_offsets: Sequence[int],
    *given: Any,
) -> None:
    segments, how = _taken_over("add_lora", given)
    layer.add_lora(_sliced(base_output), x, _sliced(lora_a), _sliced(lora_b), segments, tuple(slice_offsets), **how)


_shrink = _define("lora_shrink", "Tensor x, Tensor[] lora_a, int num_slices", _call_shrink, _fake_shrink)
_shrink_out = _define(
    "lora_shrink_out", "Tensor x, Tensor[] lora_a, int num_slices, Tensor(a!)[] out", _call_shrink_out
)
_expand = _define(
    "lora_expand",
    "Tensor[] h, Tensor[] lora_b, int[] slice_offsets, Tensor(a!)[] base_output",
    _call_expand,
)
_add_lora = _define(
    "add_lora",
    "Tensor(a!)[] base_output, Tensor x, Tensor[] lora_a, Tensor[] lora_b, int[] slice_offsets",
    _call_add_lora,
)


def lora_shrink(
    x: torch.Tensor,
    lora_a: Sliced,
    segments: Segments,
    num_slices: int,
    out: Sliced | None,
    padded: bool,
    config: configs.ShrinkConfig | None,
    batch_invariant: bool,
) -> Sliced:
    """`csgmv.lora_shrink` as a node of the graph that is being traced; arguments are those of the wrapper."""
    batch = _handed_over(segments, padded, config, batch_invariant)
    if out is None:
        h: torch.Tensor = _shrink(x, [*slices.parts(lora_a)], num_slices, *batch)
        return h
    _shrink_out(x, [*slices.parts(lora_a)], num_slices, [*slices.parts(out)], *batch)
    return out


def lora_expand(
    h: Sliced,
    lora_b: Sliced,
    segments: Segments,
    slice_offsets: Sequence[int],
    base_output: SomeSliced,
    padded: bool,
    config: configs.ExpandConfig | None,
    batch_invariant: bool,
) -> SomeSliced:
    """`csgmv.lora_expand`, likewise."""
    batch = _handed_over(segments, padded, config, batch_invariant)
    weights = [*slices.parts(lora_b)]
    _expand([*slices.parts(h)], weights, [*slice_offsets], [*slices.parts(base_output)], *batch)
    return base_output


def add_lora(
    base_output: SomeSliced,
    x: torch.Tensor,
    lora_a: Sliced,
    lora_b: Sliced,
    segments: Segments,
    slice_offsets: Sequence[int],
    padded: bool,
    config: configs.AddLoraConfig | None,
    batch_invariant: bool,
) -> SomeSliced:
    """`csgmv.add_lora`, likewise."""
    batch = _handed_over(segments, padded, config, batch_invariant)
    weights = [*slices.parts(lora_a)], [*slices.parts(lora_b)]
    _add_lora([*slices.parts(base_output)], x, *weights, [*slice_offsets], *batch)
    return base_output
