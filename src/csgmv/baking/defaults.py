"""Measured results → each architecture's defaults: the rows that are best on average, for some numbers of rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .. import fallback, records, rules

Defaults = dict[str, dict[int, rules.Row]]  # by operation and number of rows


def _anywhere(row: rules.Row, key: rules.Key) -> rules.Row:
    """A row as any rank can use it: where expand takes the whole rank at once, it says so whatever the rank."""
    fields = dict(zip(rules.FIELD_NAMES[key.op], row))
    for op, prefix, part in rules.parts(key.op, row):
        if op == "expand" and part["block_k"] >= key.max_rank:
            fields[prefix + "block_k"] = rules.MAX_RANK
    return tuple(fields.values())


def _slowdowns(result: records.Result) -> dict[rules.Row, float]:
    """Every measured row as any rank can use it, and how many times the winner's time it takes."""
    found: dict[rules.Row, float] = {}
    for row, slowdown in records.slowdowns(result).items():
        anywhere = _anywhere(row, result.key)
        found[anywhere] = min(slowdown, found.get(anywhere, slowdown))
    return found


class _Measured(NamedTuple):
    """What one result says of rows that any rank can use, and of the built-in default among them."""

    slowdowns: dict[rules.Row, float]
    default: float  # what rows that were not measured count like


def _measured(result: records.Result) -> _Measured:
    slowdowns = _slowdowns(result)
    default = result.default and slowdowns[_anywhere(result.default.row, result.key)]
    return _Measured(slowdowns, max(slowdowns.values()) if default is None else default)


def _best(results: Iterable[_Measured]) -> rules.Row:
    """The row with the lowest mean slowdown; where it was not measured it counts like the built-in default."""
    apart: dict[rules.Row, list[float]] = defaultdict(list)  # from the default, where it was measured
    for slowdowns, default in results:
        for row, slowdown in slowdowns.items():
            apart[row].append(slowdown - default)
    sums = {row: math.fsum(by) for row, by in apart.items()}
    least = min(sums.values())
    return min((row for row, by in sums.items() if by == least), key=rules.row_order)


_Place = tuple[str, str, rules.Key]
_Cell = Mapping[_Place, _Measured]  # what was measured at one architecture, operation and number of rows


class _Averaged(Mapping[int, rules.Row]):
    """The default for each number of rows, averaged when it is first asked for."""

    def __init__(self, cells: Mapping[int, Sequence[_Measured]]) -> None:
        self._cells = cells
        self._known: dict[int, rules.Row] = {}

    def __getitem__(self, rows: int) -> rules.Row:
        if rows not in self._known:
            self._known[rows] = _best(self._cells[rows])
        return self._known[rows]

    def __iter__(self) -> Iterator[int]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


class Averages:
    """Chooses defaults from all but some of the results; what each result says of its rows is made out once.

    By rows alone, since they decide most (`fallback.batch_distance`). float32 has none: it is for checking, and its
    products run on other units.
    """

    def __init__(self, results: Iterable[records.Result]) -> None:
        cells: dict[tuple[str, str, int], dict[_Place, _Measured]] = defaultdict(dict)
        for result in results:
            if result.key.dtype != "float32" and result.finalists:
                cell = result.architecture, result.key.op, fallback.most_rows(result.key)
                cells[cell][result.gpu, result.triton, result.key] = _measured(result)
        self._cells: dict[tuple[str, str, int], _Cell] = dict(sorted(cells.items()))

    def without(self, places: Collection[_Place]) -> Mapping[str, Mapping[str, Mapping[int, rules.Row]]]:
        """The defaults of each architecture, operation and number of rows that other places have results for."""
        left: dict[str, dict[str, dict[int, list[_Measured]]]] = {}
        for (architecture, op, rows), cell in self._cells.items():
            if others := [measured for place, measured in cell.items() if place not in places]:
                left.setdefault(architecture, {}).setdefault(op, {})[rows] = others
        return {
            architecture: {op: _Averaged(cells) for op, cells in by_op.items()} for architecture, by_op in left.items()
        }


def on_average(results: Iterable[records.Result]) -> dict[str, Defaults]:
    """The defaults of all of the results."""
    whole = Averages(results).without(())
    return {architecture: {op: dict(rows) for op, rows in by_op.items()} for architecture, by_op in whole.items()}
