"""Measured results → each architecture's defaults: the rows that are best on average, for some numbers of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

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


def _best(results: Sequence[records.Result]) -> rules.Row:
    """The row with the lowest mean slowdown; where it was not measured it counts like the built-in default."""
    known = [_slowdowns(result) for result in results]
    default = [
        rows[_anywhere(result.default.row, result.key)] if result.default else max(rows.values())
        for result, rows in zip(results, known)
    ]

    def mean(row: rules.Row) -> float:
        return fmean(rows.get(row, usual) for rows, usual in zip(known, default))

    return min({row for rows in known for row in rows}, key=lambda row: (mean(row), rules.row_order(row)))


def on_average(results: Iterable[records.Result]) -> dict[str, Defaults]:
    """The default of each architecture, operation and number of rows that there are results for.

    Rows alone, since they decide most (`fallback.batch_distance`). float32 has none: it is for checking, and its
    products run on other units.
    """
    cells: dict[tuple[str, str, int], list[records.Result]] = defaultdict(list)
    for result in results:
        op, dtype = result.key.op, result.key.dtype
        if dtype != "float32" and result.finalists:
            cells[result.architecture, op, fallback.most_rows(result.key)].append(result)
    defaults: dict[str, Defaults] = {}
    for (architecture, op, rows), found in sorted(cells.items()):
        defaults.setdefault(architecture, {}).setdefault(op, {})[rows] = _best(found)
    return defaults
