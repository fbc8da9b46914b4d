"""Measured results → each architecture's defaults: the rows that are best on average, for some numbers of rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
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


def _best(results: Sequence[_Measured]) -> rules.Row:
    """The row with the lowest mean slowdown; where it was not measured it counts like the built-in default."""
    apart: dict[rules.Row, list[float]] = defaultdict(list)  # from the default, where it was measured
    for slowdowns, default in results:
        for row, slowdown in slowdowns.items():
            apart[row].append(slowdown - default)
    return min(apart, key=lambda row: (math.fsum(apart[row]), rules.row_order(row)))


class Averages:
    """Chooses defaults from any part of some results; what each result says of its rows is made out once."""

    def __init__(self, results: Iterable[records.Result]) -> None:
        self._measured = {
            _place(result): _measured(result)
            for result in results
            if result.key.dtype != "float32" and result.finalists
        }

    def defaults(self, results: Iterable[records.Result]) -> dict[str, Defaults]:
        """The default of each architecture, operation and number of rows that there are results for.

        Rows alone, since they decide most (`fallback.batch_distance`). float32 has none: it is for checking, and its
        products run on other units.
        """
        cells: dict[tuple[str, str, int], list[_Measured]] = defaultdict(list)
        for result in results:
            if measured := self._measured.get(_place(result)):
                cells[result.architecture, result.key.op, fallback.most_rows(result.key)].append(measured)
        chosen: dict[str, Defaults] = {}
        for (architecture, op, rows), found in sorted(cells.items()):
            chosen.setdefault(architecture, {}).setdefault(op, {})[rows] = _best(found)
        return chosen


def _place(result: records.Result) -> tuple[str, str, rules.Key]:
    return result.gpu, result.triton, result.key


def on_average(results: Sequence[records.Result]) -> dict[str, Defaults]:
    """The defaults of all of the results."""
    return Averages(results).defaults(results)
