"""Models that were not tuned → keys drawn from theirs, what the table gives each, and what a search of its own finds.

drawn    what is asked for → keys, each with what serves it
unraced  a drawn key, tuned → what is still to be timed side by side
verdict  a drawn key, tuned and timed → what the table's config loses
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from csgmv import fallback, records, rules
from csgmv.models import LayerShape, layer_shapes
from csgmv.tuning.heats import Heat, heat
from csgmv.tuning.plan import Plan, parts

# None of them had been tuned for when the shipped rows were chosen; a key that has its own row is never drawn.
MODELS = (
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B",
    "mistralai/Mistral-7B-v0.3",
    "google/gemma-2-9b",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-72B",
)
RANKS, TP = (8, 32, 128), (1, 2, 4)


class Asked(NamedTuple):
    """What keys are drawn from: every model at every rank and tensor-parallel size."""

    models: Sequence[str] = MODELS
    ranks: Sequence[int] = RANKS
    tp: Sequence[int] = TP
    ops: Sequence[str] = ("add_lora",)
    dtype: str = "bfloat16"


class Spot(NamedTuple):
    """A key without a row of its own, the first model that was found to have it, and what serves it."""

    model: str
    tp: int
    layer: str
    key: rules.Key
    served: fallback.Served


class Verdict(NamedTuple):
    """A spot in microseconds: of the table's config, of what a search of its own found, and of the built-in default.

    Attributes:
        default_us: None where the device cannot run it.
        noise_us: by which two times of one launch may differ.
    """

    spot: Spot
    table_us: float
    own_us: float
    default_us: float | None
    noise_us: float

    @property
    def loss(self) -> float:
        """The share of its own row's time that the table's takes longer."""
        return self.table_us / self.own_us - 1

    @property
    def slower(self) -> bool:
        """Whether the table's config is slower than the default by more than the noise."""
        return self.default_us is not None and self.table_us - self.default_us > self.noise_us


def drawn(
    asked: Asked,
    where: fallback.Target,
    tables: fallback.Tables,
    seed: int,
    refused: Callable[[str], None] = lambda _: None,
) -> Iterator[Spot]:
    """Keys in a random order that is the same each time; models, ranks and tensor-parallel sizes take turns.

    Args:
        asked: what to draw from.
        where: the keys are looked up for.
        tables: that are judged; what has a row of its own there is left out.
        seed: of the order.
        refused: told of a model that cannot be split as asked.

    Raises:
        ValueError: a model is not known, an operation or a rank is none.
    """
    decks = []
    for model, tp, rank in itertools.product(asked.models, asked.tp, asked.ranks):
        chance = random.Random(f"{seed} {model} {tp} {rank}")
        try:
            layers = layer_shapes(model, tp)
        except ValueError as error:
            refused(f"{model}, tp {tp}: {error}")
            continue
        deck = [(model, tp, layer.name, key) for layer in layers for key in _keys(layer, rank, asked)]
        chance.shuffle(deck)
        decks.append(deck)
    random.Random(seed).shuffle(decks)
    seen = set[rules.Key]()
    for model, tp, layer_name, key in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*decks))):
        if key in seen:
            continue
        seen.add(key)
        served = fallback.serve(key, where, tables)
        if fallback.kind(served, key, where.gpu, where.triton) != "exact":
            yield Spot(model, tp, layer_name, key, served)


def _keys(layer: LayerShape, rank: int, asked: Asked) -> Iterator[rules.Key]:
    """Those that `csgmv tune` would tune for a layer, by operation."""
    widths = tuple(layer.slice_widths)
    for chunk_size, bucket in _batches():
        joint = rules.Key("add_lora", layer.input_dim, widths, rank, len(widths), asked.dtype, chunk_size, bucket)
        for key in (*parts(joint), joint):
            if key.op in asked.ops:
                if fault := rules.key_fault(key):
                    raise ValueError(fault)
                yield key


@functools.cache
def _batches() -> list[tuple[int, int]]:
    """Chunk sizes and segment buckets, which are the same for every layer."""
    tasks = Plan((LayerShape("any", 16, (16,)),), 16, ops=("shrink",)).tasks()
    return [(task.key.chunk_size, task.key.segment_bucket) for task in tasks]


def _launched(spot: Spot, result: records.Result) -> rules.Row | None:
    """The row that the table has a launch do; None where it is a default that the device cannot run."""
    return spot.served.row or (result.default and result.default.row)


def unraced(spot: Spot, result: records.Result) -> Heat | None:
    """The race that a tuned spot still needs; None where it has it, or where there is nothing to race."""
    row = _launched(spot, result)
    missing = [] if row is None or any(row in race.times for race in result.races) else [row]
    needed = heat(result, missing)
    return needed if needed.rows else None


def verdict(spot: Spot, result: records.Result) -> Verdict | None:
    """What the table's config loses at a spot; None as long as it was not timed beside the others."""
    row, own = _launched(spot, result), records.winner(result) or result.default
    assert own is not None, "a result has a winner or a default"
    default = result.default and result.default.row
    first = {timing.row: timing.p50_us for timing in (own, *filter(None, [result.default]))}
    for times in (first, *(race.times for race in reversed(result.races))):
        if row is not None and row in times:
            default_us = None if default is None else times.get(default)
            noise_us = records.told_apart_us(default_us or 0.0, result.noise_us)
            return Verdict(spot, times[row], times[own.row], default_us, noise_us)
    return None
