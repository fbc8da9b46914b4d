"""Measured results → each architecture's defaults: the rows that are best on average, for some numbers of rows."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from .. import fallback, records, rules

Defaults = dict[str, dict[int, rules.Row]]  # by operation and number of rows


@functools.lru_cache(maxsize=16384)  # races have the same rows at many keys
def _anywhere(op: str, row: rules.Row, max_rank: int) -> rules.Row:
    """A row as any rank can use it: where expand takes the whole rank at once, it says so whatever the rank."""
    fields = dict(zip(rules.FIELD_NAMES[op], row))
    for kernel, prefix, part in rules.parts(op, row):
        if kernel == "expand" and part["block_k"] >= max_rank:
            fields[prefix + "block_k"] = rules.MAX_RANK
    return tuple(fields.values())


def _slowdowns(result: records.Result) -> dict[rules.Row, float]:
    """Every measured row as any rank can use it, and how many times the winner's time it takes."""
    found: dict[rules.Row, float] = {}
    for row, slowdown in records.slowdowns(result).items():
        anywhere = _anywhere(result.key.op, row, result.key.max_rank)
        found[anywhere] = min(slowdown, found.get(anywhere, slowdown))
    return found


# What one result says of rows that any rank can use: by how much their slowdowns are more than the built-in default's,
# or where that does not run the largest one. A row that was not measured counts like it: 0.
_Apart = Mapping[rules.Row, float]


def _apart(result: records.Result) -> _Apart:
    slowdowns, key = _slowdowns(result), result.key
    default = result.default and slowdowns[_anywhere(key.op, result.default.row, key.max_rank)]
    others = max(slowdowns.values()) if default is None else default
    return {row: slowdown - others for row, slowdown in slowdowns.items()}


def _best(results: Iterable[_Apart]) -> rules.Row:
    """The row with the lowest mean slowdown."""
    every: dict[rules.Row, list[float]] = defaultdict(list)
    for apart in results:
        for row, by in apart.items():
            every[row].append(by)
    sums = {row: math.fsum(by) for row, by in every.items()}
    least = min(sums.values())
    return min((row for row, by in sums.items() if by == least), key=rules.row_order)


_Place = tuple[str, str, rules.Key]
_Cell = Mapping[_Place, _Apart]  # what was measured at one architecture, operation and number of rows


class _Averaged(Mapping[int, rules.Row]):
    """The default for each number of rows, averaged over what is left in its cell when it is first asked for."""

    def __init__(self, cells: Mapping[int, _Cell], out: Collection[_Place]) -> None:
        self._cells, self._out = cells, out
        self._known: dict[int, rules.Row] = {}

    def __getitem__(self, rows: int) -> rules.Row:
        if rows not in self._known:
            cell = self._cells[rows]
            self._known[rows] = _best(apart for place, apart in cell.items() if place not in self._out)
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
        cells: dict[tuple[str, str, int], dict[_Place, _Apart]] = defaultdict(dict)
        for result in results:
            if result.key.dtype != "float32" and result.finalists:
                cell = result.architecture, result.key.op, fallback.most_rows(result.key)
                cells[cell][result.gpu, result.triton, result.key] = _apart(result)
        self._cells: dict[tuple[str, str, int], _Cell] = dict(sorted(cells.items()))

    def without(self, places: Collection[_Place]) -> Mapping[str, Mapping[str, Mapping[int, rules.Row]]]:
        """The defaults of each architecture, operation and number of rows that other places have results for."""
        left: dict[str, dict[str, dict[int, _Cell]]] = {}
        for (architecture, op, rows), cell in self._cells.items():
            if any(place not in places for place in cell):
                left.setdefault(architecture, {}).setdefault(op, {})[rows] = cell
        return {
            architecture: {op: _Averaged(cells, places) for op, cells in by_op.items()}
            for architecture, by_op in left.items()
        }


def on_average(results: Iterable[records.Result]) -> dict[str, Defaults]:
    """The defaults of all of the results."""
    whole = Averages(results).without(())
    return {architecture: {op: dict(rows) for op, rows in by_op.items()} for architecture, by_op in whole.items()}
