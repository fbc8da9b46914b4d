"""Which row of the table serves a key that has none of its own; `refit` has what becomes of the row on its way there.

Standard library only, like `rules`, and for the same reason: dispatch asks this at run time, and the codegen asks it
what a key would get whose own row it leaves out.

    serve       a key, where it is launched, the tables → the row, and the step of the fallback that found it
    offers      the same → all rows that could serve, the most trusted first
    lenders     a key, those that have rows → which are asked for theirs, in order
    by_layer    rows by their keys → as tables hold them, by layer and then by batch; `flat` is the way back
    kind        what was found → the step of the fallback by itself, which is what losses are counted by
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from . import footprint, refit, rules
from .rules import Key, Row

# A table holds rows by what keys say of the layer, then by what they say of the batch: with whole keys 10,000 rows take
# longer to import (tests/test_codegen_import.py), and each row of a layer that is too far away has to be looked at.
Head = tuple[str, str]  # what rows stand under first: the GPU's name, the Triton version
LayerPart = tuple[str, int, tuple[int, ...], int, int, str]  # op, input_dim, slice_widths, max_rank, num_slices, dtype
BatchPart = tuple[int, int]  # chunk_size, segment_bucket
Rows = Mapping[LayerPart, Mapping[BatchPart, "Row | None"]]
Near = tuple[float, LayerPart]  # how far a layer is away
# What `layers_near` finds on a GPU under a Triton version.
LayersNear = Callable[[Head, LayerPart], Sequence[Near]]
_HALVES = {"float16", "bfloat16"}


class Tables(NamedTuple):
    """What the codegen generates for launch configs.

    Attributes:
        rows: by GPU and Triton version, the row of each layer and batch; None where nothing beat the built-in default.
        gpus: each GPU's architecture (its compute capability, "9.0") and number of streaming multiprocessors.
        defaults: by architecture and operation, the row that is best on average, for each of some numbers of rows.
    """

    rows: Mapping[Head, Rows]
    gpus: Mapping[str, tuple[str, int]] = {}
    defaults: Mapping[str, Mapping[str, Mapping[int, Row]]] = {}


def by_layer(rows: Mapping[Key, Row | None]) -> dict[LayerPart, dict[BatchPart, Row | None]]:
    """Rows as tables hold them, in the order that they come in."""
    layers: dict[LayerPart, dict[BatchPart, Row | None]] = {}
    for key, row in rows.items():
        layers.setdefault(key.layer, {})[key.batch] = row
    return layers


def flat(rows: Rows) -> dict[Key, Row | None]:
    """Each row by its whole key."""
    return {Key(*layer, *batch): row for layer, batches in rows.items() for batch, row in batches.items()}


class Target(NamedTuple):
    """What launches on a device are looked up under, and what it can run.

    An empty `architecture` is like none that the tables have: nothing is borrowed for it from other GPUs.
    """

    gpu: str
    triton: str
    limits: footprint.Limits
    architecture: str = ""
    sm_count: int = 0


class Served(NamedTuple):
    """What a key gets.

    Attributes:
        row: that the target can run; None for the built-in default.
        step: of the fallback, e.g. "exact", "nearest segment bucket (8)", "default".
        source: the key that the row is stored under, GPU and Triton version that it was tuned on; None for defaults.
    """

    row: Row | None
    step: str
    source: Key | None = None
    gpu: str | None = None
    triton: str | None = None


def kind(served: Served, key: Key, gpu: str, triton: str) -> str:
    """The step by itself: "nearest rank" without the rank that was nearest, "other GPU, exact" without the GPU's name.

    Dimensions of another rank are "nearest dimensions and rank", since they cost more than those of the same.

    Args:
        served: what the key got.
        key: that was asked for.
        gpu, triton: where it was asked for.
    """
    if served.source is None:
        return "default" if served.row is None else "architecture's default"
    elsewhere = ["other GPU"] * (served.gpu != gpu) + ["other Triton version"] * (served.triton != triton)
    step = served.step.rpartition(", ")[2].partition(" (")[0]
    both = step == "nearest dimensions" and served.source.max_rank != key.max_rank
    return ", ".join([*elsewhere, f"{step} and rank" if both else step])


def nearest_versions(wanted: str, present: Iterable[str]) -> list[str]:
    """The present Triton versions, the wanted one first, then by numeric distance (of two equally far the newer)."""

    def number(version: str) -> int:
        major, minor, patch = (*rules.version_numbers(version), 0, 0, 0)[:3]
        return (major * 1000 + minor) * 1000 + patch

    target = number(wanted)
    return sorted(present, key=lambda version: (version != wanted, abs(number(version) - target), -number(version)))


def nearest_gpus(where: Target, gpus: Mapping[str, tuple[str, int]]) -> list[str]:
    """The target's own GPU, then the others of its architecture by number of SMs (of two equally far the larger)."""
    alike = [name for name, (architecture, _) in gpus.items() if architecture == where.architecture]
    count = {name: gpus[name][1] for name in alike if name != where.gpu}
    return [where.gpu, *sorted(count, key=lambda name: (abs(count[name] - where.sm_count), -count[name], name))]


# How far apart two keys are, in octaves of each size; the weights are what `python -m codegen --regret` found to lose
# least. Rows and segments decide most, since tiles and programs follow from them; too few programs cost more than too
# many, so a row tuned to fewer rows is further away.
_FEWER_ROWS = 1.5
_WEIGHTS = {"rank": 1.0, "columns": 0.5, "input_dim": 0.5, "width": 0.25}
_OTHER_SLICES = 0.5  # octaves that another number of slices counts for, by 150 keys of `csgmv spot-check` (an H100)
NEAR = 3.0  # of two batches: beyond this, another Triton version that knows the layer is asked first
REACH = 4  # octaves of any one of _WEIGHTS, beyond which nothing is borrowed


def most_rows(key: Key) -> int:
    """The rows of a batch whose segments, as many as the key's bucket says, are all full."""
    return key.chunk_size * key.segment_bucket


def batch_distance(key: Key, other: Key) -> float:
    """How far apart two keys' batches are."""
    return _batches_apart(key.batch, other.batch)


@functools.lru_cache(maxsize=16384)  # few batches are had by many keys: of `codegen --regret` it saves 0.3 s
def _batches_apart(batch: BatchPart, another: BatchPart) -> float:
    (chunk_size, bucket), (other_chunk_size, other_bucket) = batch, another
    rows = refit.octaves(chunk_size * bucket, other_chunk_size * other_bucket)
    return max(rows, -_FEWER_ROWS * rows) + abs(refit.octaves(bucket, other_bucket))


def _sizes(key: Key) -> dict[str, int]:
    """What of a key's layer decides its best config."""
    sizes = {"rank": key.max_rank}
    if key.op != "expand":
        sizes |= {"columns": key.num_slices * key.max_rank, "input_dim": key.input_dim}
    if key.op != "shrink":
        sizes["width"] = sum(key.slice_widths)
    return sizes


@functools.lru_cache(maxsize=65536)  # few layers have many keys
def layer_distance(layer: LayerPart, other: LayerPart) -> float:
    """How far apart two layers of one operation are in dimensions and rank; infinite beyond REACH."""
    key, another = (Key(*fields, chunk_size=1, segment_bucket=1) for fields in (layer, other))
    sizes, others = _sizes(key), _sizes(another)
    apart = {name: abs(refit.octaves(size, others[name])) for name, size in sizes.items()}
    if max(apart.values()) > REACH:
        return math.inf
    by_slices = _OTHER_SLICES * (key.num_slices != another.num_slices)
    return sum(_WEIGHTS[name] * by for name, by in apart.items()) + by_slices


def _lends_to(dtype: str) -> tuple[str, ...]:
    """The dtypes whose rows may serve a key of this one, its own first."""
    return (dtype, *(_HALVES - {dtype})) if dtype in _HALVES else (dtype,)


def _step(key: Key, other: Key) -> str:
    """What is different about the key that served."""
    if other.layer != key._replace(max_rank=other.max_rank, dtype=other.dtype).layer:
        sizes = other.op, other.input_dim, other.slice_widths, other.num_slices, other.max_rank
        return f"nearest dimensions ({rules.dimensions(*sizes)})"
    if other.max_rank != key.max_rank:
        return f"nearest rank ({other.max_rank})"
    if other.chunk_size != key.chunk_size:
        return f"nearest chunk size ({other.chunk_size})"
    if other.segment_bucket != key.segment_bucket:
        return f"nearest segment bucket ({other.segment_bucket})"
    return "exact" if other.dtype == key.dtype else f"other 16-bit dtype ({other.dtype})"


def layers_near(layer: LayerPart, present: Rows) -> list[Near]:
    """The layers whose rows may serve a layer's keys, the nearest first."""
    op, *_, dtype = layer
    dtypes = _lends_to(dtype)
    layers = (other for other in present if other[0] == op and other[-1] in dtypes)
    return [near for near in sorted((layer_distance(layer, other), other) for other in layers) if near[0] < math.inf]


def lenders(key: Key, present: Rows, near: Sequence[Near] | None = None) -> Iterator[Key]:
    """The keys of one GPU and Triton version whose rows may serve a key, the nearest first.

    Two keys are as far apart as their batches and their layers are, added up.

    Args:
        key: what is launched; itself the first if present.
        present: the rows that there are.
        near: `layers_near`, if it is known.
    """
    waiting: list[tuple[float, bool, Key]] = []
    for apart, layer in layers_near(key.layer, present) if near is None else near:
        while waiting and waiting[0][0] < apart:  # no key of this layer or a later one is as near
            yield heapq.heappop(waiting)[2]
        for batch in present[layer]:
            other = Key(*layer, *batch)
            heapq.heappush(waiting, (batch_distance(key, other) + apart, other.dtype != key.dtype, other))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _knows(key: Key, present: Rows, within: float = NEAR) -> bool:
    """Whether there are rows of a key's very layer, for batches like its own."""
    layers = (key._replace(dtype=dtype).layer for dtype in _lends_to(key.dtype))
    near = (batch_distance(key, Key(*layer, *batch)) for layer in layers for batch in present.get(layer, ()))
    return any(distance <= within for distance in near)


def serve(key: Key, where: Target, tables: Tables, near: LayersNear | None = None) -> Served:
    """The row that a key gets on a device: the first that is offered, or else the built-in default."""
    return next(offers(key, where, tables, near), Served(None, "default"))


def offers(key: Key, where: Target, tables: Tables, near: LayersNear | None = None) -> Iterator[Served]:
    """What the tables have for a key that a device can run, the most trusted first; the key's own may come twice.

    The rows of its own GPU are asked first, then those of others of its architecture. Of each GPU, those under the
    nearest Triton version that knows the very layer at about this batch, then those under any. What remains gets the
    architecture's default for about as many rows.

    A GPU that differs in its memory alone, as far as can be told, comes in between: what it found for the very key,
    under the Triton version that is asked first, loses less than what this one found for others, and what it found for
    the layer less than what this one found for other layers (H100 and H200, `python -m codegen --regret`).

    Whoever asks for many keys of the same tables may keep what is near: `near`.
    """
    own = tables.rows.get((where.gpu, where.triton), {})
    if key.batch in own.get(key.layer, ()) and (served := _served(key, where, tables, key, where.gpu, where.triton)):
        yield served
    asked = set[Head]()
    for gpu, version in _places(key, where, tables):
        if (gpu, version) in asked:
            continue
        asked.add((gpu, version))
        layers = near and near((gpu, version), key.layer)
        for source in lenders(key, tables.rows[gpu, version], layers):
            if served := _served(key, where, tables, source, gpu, version):
                yield served
    for row in _defaults(key, where, tables):
        if lent := refit.default(row, key, where.limits):
            yield Served(lent, f"default of architecture {where.architecture}")


def _places(key: Key, where: Target, tables: Tables) -> Iterator[Head]:
    """GPUs and Triton versions in the order in which `offers` asks for their rows; some come twice."""
    gpus = nearest_gpus(where, tables.gpus)
    heads = [head for head, rows in tables.rows.items() if any(rows.values())]
    present = {gpu: [version for name, version in heads if name == gpu] for gpu in gpus}
    versions = {gpu: nearest_versions(where.triton, present[gpu]) for gpu in gpus}
    knowing = {gpu: [version for version in versions[gpu] if _knows(key, tables.rows[gpu, version])] for gpu in gpus}
    alike = [gpu for gpu in gpus if gpu == where.gpu or tables.gpus[gpu][1] == where.sm_count]
    version = (versions[where.gpu] or [where.triton])[0]
    for gpu in alike:
        if version in knowing[gpu] and _knows(key, tables.rows[gpu, version], within=0.0):
            yield gpu, version
    for gpu in alike:
        yield from ((gpu, other) for other in knowing[gpu])
    for gpu in gpus:
        yield from ((gpu, other) for other in knowing[gpu] + versions[gpu])


def _served(key: Key, where: Target, tables: Tables, source: Key, gpu: str, version: str) -> Served | None:
    """What one stored row is to a key; None where it does not fit the device.

    That the default was best is an answer for the very key, in either 16-bit dtype, and says little of others.
    """
    row = tables.rows[gpu, version][source.layer][source.batch]
    lent = row and refit.adapted(row, source, key, where.limits)
    if lent is None and (row is not None or source._replace(dtype=key.dtype) != key):
        return None
    elsewhere = [f"GPU {gpu}"] * (gpu != where.gpu) + [f"Triton {version}"] * (version != where.triton)
    return Served(lent, ", ".join([*elsewhere, _step(key, source)]), source, gpu, version)


def _defaults(key: Key, where: Target, tables: Tables) -> Iterator[Row]:
    """The architecture's defaults for an operation, that for the nearest number of rows first; float32 has none."""
    by_rows = tables.defaults.get(where.architecture, {}).get(key.op, {}) if key.dtype in _HALVES else {}
    for rows in sorted(by_rows, key=lambda rows: (abs(refit.octaves(most_rows(key), rows)), rows)):
        yield by_rows[rows]
