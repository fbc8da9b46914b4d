"""Chosen rows → what keys would get without their own: parts of the results left out in turn, and the fallback asked.

`python -m codegen --regret` judges this by what was measured; `csgmv cross` measures it.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from typing import NamedTuple

from .. import fallback, footprint, records, rules
from .choose import Chosen
from .defaults import Averages


class Case(NamedTuple):
    """One key without its own row.

    Attributes:
        left_out: what the tables were made without: one of WAYS.
        result: what was measured at the key.
        served: what the fallback finds instead.
    """

    left_out: str
    result: records.Result
    served: fallback.Served


_Place = tuple[str, str, rules.Key]


def _place(result: records.Result) -> _Place:
    return result.gpu, result.triton, result.key


def _dimensions(result: records.Result) -> Hashable:
    return result.key._replace(max_rank=0, dtype="", chunk_size=0, segment_bucket=0)


# A result → the group that is left out with it. So dimensions go with all their ranks and batches, on every GPU, or on
# one GPU alone; a rank with all dimensions that have it. An architecture's defaults are made without what is left out.
WAYS: Mapping[str, Callable[[records.Result], Hashable]] = {
    "key": _place,
    "batch": lambda result: (result.key.op, result.key.chunk_size, result.key.segment_bucket),
    "rows": lambda result: (result.key.op, fallback.most_rows(result.key)),
    "dimensions": _dimensions,
    "dimensions of a GPU": lambda result: (result.gpu, _dimensions(result)),
    "rank": lambda result: (result.key.op, result.key.max_rank),
    "Triton version": lambda result: (result.gpu, result.triton),
    "GPU": lambda result: result.gpu,
    "all rows": _dimensions,  # only the architecture's default remains
    "everything": lambda _: None,
}


class _Left:
    """What the codegen would make of the results that are left."""

    def __init__(self, whole: fallback.Tables, near: fallback.LayersNear, out: Set[_Place], averages: Averages) -> None:
        self._tables = whole._replace(rows={where: _rest(rows, where, out) for where, rows in whole.rows.items()})
        self._near, self._averages, self._out, self._averaged = near, averages, out, False

    def serve(self, key: rules.Key, where: fallback.Target) -> fallback.Served:
        """As `fallback.serve` would. Defaults take long to make: they are made if no row serves."""
        served = fallback.serve(key, where, self._tables, self._near)
        if served.source is None and not self._averaged:
            self._averaged = True
            self._tables = self._tables._replace(defaults=self._averages.without(self._out))
            served = fallback.serve(key, where, self._tables, self._near)
        return served


def _rest(rows: fallback.Rows, where: fallback.Head, out: Set[_Place]) -> fallback.Rows:
    """A table's rows without those of some places; layers that lose none are shared."""
    rest = dict(rows)
    for gpu, triton, key in out:
        layer, batch = key.layer, key.batch
        if (gpu, triton) == where and layer in rest:
            rest[layer] = {other: row for other, row in rest[layer].items() if other != batch}
    return rest


def target(choice: Chosen, result: records.Result) -> fallback.Target:
    """Where a result was measured, as the fallback is told it."""
    limits = footprint.LIMITS.get(result.architecture, footprint.UNLIMITED)
    return fallback.Target(result.gpu, result.triton, limits, *choice.gpus[result.gpu])


def cases(choice: Chosen) -> Iterator[Case]:
    """Every key, in every way of leaving out.

    A Triton version or a GPU is left out where another one of the same architecture remains.
    """
    averages = Averages(choice.results)
    rows = {where: fallback.by_layer(of) for where, of in choice.table.items()}
    near = functools.cache(lambda where, layer: fallback.layers_near(layer, rows[where]))  # what is left has all layers
    for way, in_common in WAYS.items():
        groups: dict[Hashable, list[records.Result]] = defaultdict(list)
        for result in choice.results:
            groups[in_common(result)].append(result)
        for common, group in groups.items():
            if way in ("Triton version", "GPU"):
                others = {other.architecture for other in choice.results if in_common(other) != common}
                if group[0].architecture not in others:
                    continue
            out = frozenset(map(_place, group))
            whole = fallback.Tables({} if way == "all rows" else rows, choice.gpus)
            left = _Left(whole, near, out, averages)
            for result in group:
                yield Case(way, result, left.serve(result.key, target(choice, result)))
