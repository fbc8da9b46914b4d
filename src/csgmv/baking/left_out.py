"""Chosen rows → what keys would get without their own: parts of the results left out in turn, and the fallback asked.

`python -m codegen --regret` judges this by what was measured; `csgmv cross` measures it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from typing import NamedTuple

from .. import fallback, records, rules
from .choose import Choice, Target
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


# With a key everything goes that has this in common with it. So dimensions go with all their ranks and batches, on
# every GPU; a rank with all dimensions that have it. An architecture's defaults are made without what is left out.
WAYS: Mapping[str, Callable[[records.Result], Hashable]] = {
    "key": _place,
    "batch": lambda result: (result.key.op, result.key.chunk_size, result.key.segment_bucket),
    "rows": lambda result: (result.key.op, fallback.most_rows(result.key)),
    "dimensions": _dimensions,
    "rank": lambda result: (result.key.op, result.key.max_rank),
    "Triton version": lambda result: (result.gpu, result.triton),
    "GPU": lambda result: result.gpu,
    "all rows": _dimensions,  # only the architecture's default remains
    "everything": lambda _: None,
}


class _Table:
    """The rows of one GPU under one Triton version, and the order in which each key asks for them.

    The order is that of `fallback.lenders`: what is left out makes gaps in it, and it has to be sorted once only.
    """

    def __init__(self, rows: Mapping[rules.Key, rules.Row | None]) -> None:
        self.rows = rows
        self._orders: dict[rules.Key, list[rules.Key]] = {}

    def order(self, key: rules.Key) -> list[rules.Key]:
        if key not in self._orders:
            self._orders[key] = fallback.lenders(key, self.rows)
        return self._orders[key]


class _Rest(Mapping[fallback.Fields, "rules.Row | None"]):
    """A table without some of its keys."""

    def __init__(self, table: _Table, out: Set[rules.Key]) -> None:
        self._table, self._out = table, out

    def lenders(self, key: rules.Key) -> list[rules.Key]:
        """See fallback.lenders."""
        return [other for other in self._table.order(key) if other not in self._out]

    def __contains__(self, key: object) -> bool:
        return key in self._table.rows and key not in self._out

    def __getitem__(self, key: fallback.Fields) -> rules.Row | None:
        if key in self._out:
            raise KeyError(key)
        return self._table.rows[rules.Key._make(key)]

    def __iter__(self) -> Iterator[fallback.Fields]:
        return (key for key in self._table.rows if key not in self._out)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _lenders(key: rules.Key, rest: fallback.Rows) -> list[rules.Key]:
    assert isinstance(rest, _Rest)
    return rest.lenders(key)


class _Left:
    """What the codegen would make of the results that are left."""

    def __init__(self, tables: Mapping[Target, _Table], out: Set[_Place], choice: Choice, averages: Averages) -> None:
        rest = {
            where: _Rest(table, {key for gpu, triton, key in out if (gpu, triton) == where})
            for where, table in tables.items()
        }
        self._tables = fallback.Tables(rest, choice.gpus)
        self._averages, self._out = averages, out

    def serve(self, key: rules.Key, where: fallback.Target) -> fallback.Served:
        """As `fallback.serve` would. Defaults take long to make: they are made if no row serves."""
        served = fallback.serve(key, where, self._tables, _lenders)
        if served.source is None and not self._tables.defaults:
            self._tables = self._tables._replace(defaults=self._averages.without(self._out))
            served = fallback.serve(key, where, self._tables, _lenders)
        return served


def target(choice: Choice, result: records.Result) -> fallback.Target:
    """Where a result was measured, as the fallback is told it."""
    limits = rules.LIMITS.get(result.architecture, rules.UNLIMITED)
    return fallback.Target(result.gpu, result.triton, limits, *choice.gpus[result.gpu])


def cases(choice: Choice) -> Iterator[Case]:
    """Every key, in every way of leaving out.

    A Triton version or a GPU is left out where another one of the same architecture remains.
    """
    averages = Averages(choice.results)
    tables = {where: _Table(rows) for where, rows in choice.table.items()}
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
            left = _Left({} if way == "all rows" else tables, out, choice, averages)
            for result in group:
                yield Case(way, result, left.serve(result.key, target(choice, result)))
