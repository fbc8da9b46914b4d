"""Measured results → each architecture's default: the row that is best on average, for some numbers of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from codegen.source import records, rules

Defaults = dict[str, dict[int, rules.Row]]  # by operation and by rows of a batch


def _best(results: Sequence[records.Result]) -> rules.Row:
    """The row with the lowest mean slowdown; where it was not measured, it counts as no better than the default."""
    slowdowns = [
        {row: records.slowdown(result, row) for row in {*result.screened, *(f.row for f in result.finalists)}}
        for result in results
    ]
    defaults = [records.slowdown(result, None) or max(filter(None, by.values())) for result, by in zip(results, slowdowns)]

    def mean(row: rules.Row) -> float:
        return fmean(by.get(row) or default for by, default in zip(slowdowns, defaults))

    return min({row for by in slowdowns for row in by}, key=lambda row: (mean(row), rules.row_order(row)))


def on_average(results: Iterable[records.Result]) -> dict[str, Defaults]:
    """The default of each architecture, operation and number of rows that there are results for.

    Rows alone, since tiles and programs follow from them; see `fallback.batch_distance`. float32 has none: it is for
    checking, and its products run on other units.
    """
    cells: dict[tuple[str, str, int], list[records.Result]] = defaultdict(list)
    for result in results:
        key = result.key
        if key.dtype != "float32" and result.finalists:
            cells[result.architecture, key.op, rules.nearest_power_of_two(key.chunk_size * key.segment_bucket)].append(result)
    defaults: dict[str, Defaults] = defaultdict(lambda: defaultdict(dict))
    for (architecture, op, rows), found in sorted(cells.items()):
        defaults[architecture][op][rows] = _best(found)
    return {architecture: dict(by_op) for architecture, by_op in defaults.items()}
