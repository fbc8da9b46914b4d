"""Two choices → what changed between them: rows, chunk sizes and defaults, in numbers and then in words.

Both tables are made by the present code, so that what is told comes from the results alone. A generated table would not
do for the one before: it has no times, and says nothing of slower rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from codegen.regret import said
from codegen.source import choose, fallback, records, rules

MOST = 10  # lines of a kind, unless all are asked for
Place = tuple[fallback.Head, rules.Key]


class Kept(NamedTuple):
    """What the table has a launch do at one key, and how it was measured. Units: microseconds (median)."""

    row: rules.Row | None  # None: the built-in default
    p50_us: float
    noise_us: float
    result: records.Result


class Change(NamedTuple):
    """A key that both tables have."""

    before: Kept
    after: Kept

    @property
    def noise_us(self) -> float:
        """What two times of one launch may differ by: as much as a tuned row must save to be baked."""
        return records.told_apart_us(self.before.p50_us, self.before.noise_us, self.after.noise_us)

    @property
    def slower_us(self) -> float:
        """How much longer a launch takes, by each run's own times; 0.0 within the noise."""
        by = self.after.p50_us - self.before.p50_us
        return by if abs(by) > self.noise_us else 0.0


def kept(choice: choose.Chosen) -> dict[Place, Kept]:
    """Every key of a table."""
    found = {}
    for result in choice.results:
        row = records.baked_row(result)
        timing = records.winner(result) if row is not None else result.default
        assert timing is not None, "a result has a winner or a default"
        place = (result.gpu, result.triton), result.key
        found[place] = Kept(row, timing.p50_us, result.noise_us, result)
    return found


def _cells(choice: choose.Chosen) -> dict[str, str]:
    """Each cell of the chunk-size table, in words."""
    return {
        f"{gpu}, Triton {triton}, {rows} rows, {adapters} adapters": str(chunk_size)
        for (gpu, triton), cells in choice.chunk_sizes.items()
        for (rows, adapters), chunk_size in cells.items()
    }


def _defaults(choice: choose.Chosen) -> dict[str, str]:
    """Each architecture's defaults, in words."""
    return {
        f"architecture {architecture}, {op}, {rows} rows": _row(op, row)
        for architecture, by_op in choice.defaults.items()
        for op, by_rows in by_op.items()
        for rows, row in by_rows.items()
    }


def _fields(op: str, before: rules.Row | None, after: rules.Row | None) -> str:
    """The fields that differ: 'num_warps 4 → 8'; between a row and the default all that is to be said."""
    if before is None or after is None:
        return " → ".join("default" if row is None else _row(op, row) for row in (before, after))
    named = zip(rules.FIELD_NAMES[op], before, after)
    return ", ".join(f"{name} {old} → {new}" for name, old, new in named if (old, type(old)) != (new, type(new)))


def _row(op: str, row: rules.Row | None) -> str:
    return "default" if row is None else " ".join(f"{name}={v}" for name, v in zip(rules.FIELD_NAMES[op], row))


def _name(place: Place) -> str:
    (gpu, triton), key = place
    return f"{gpu}, Triton {triton}, {said(key)}"


def _timed(change: Change) -> str:
    before, after = change.before.p50_us, change.after.p50_us
    return f"{before:.2f} → {after:.2f} µs ({100 * (after / before - 1):+.1f} %, noise {change.noise_us:.2f})"


def _listed(kind: str, lines: Sequence[str], most: int | None) -> Iterator[str]:
    yield from (f"{kind}: {line}" for line in lines[:most])
    if most is not None and len(lines) > most:
        yield f"{kind}: … and {len(lines) - most} more, which --all lists"


def _counts(what: str, before: Mapping[Any, Any], after: Mapping[Any, Any], more: str = "") -> str:
    added, removed = len(after.keys() - before.keys()), len(before.keys() - after.keys())
    changed = sum(after[name] != value for name, value in before.items() if name in after)
    numbers = f"{added} added, {removed} removed, {changed} changed{more}"
    return f"{what}: {len(before)} → {len(after)}: {numbers}"


def _others(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What is different in one of the smaller tables."""
    pairs = ((name, before.get(name, "none"), after.get(name, "none")) for name in {**before, **after})
    return [f"{name}: {old} → {new}" for name, old, new in pairs if old != new]


def report(before: choose.Chosen, after: choose.Chosen, most: int | None = MOST) -> Iterator[str]:
    """Lines for people: counts first, then the entries themselves, of each kind at most `most`; None for all."""
    old, new = kept(before), kept(after)
    both = {place: Change(old[place], new[place]) for place in new if place in old}
    changed = {place: change for place, change in both.items() if change.before.row != change.after.row}
    slower = sorted(
        (place for place in both if both[place].slower_us > 0),
        key=lambda place: -both[place].slower_us / both[place].before.p50_us,
    )
    faster = sum(change.slower_us < 0 for change in both.values())
    results = [(change.before.result, change.after.result) for place, change in both.items() if place not in changed]
    again = sum(one._replace(races=()) != other._replace(races=()) for one, other in results)
    raced = sum(one != other for one, other in results) - again
    cells, cells_now = _cells(before), _cells(after)
    defaults, defaults_now = _defaults(before), _defaults(after)
    rows, rows_now = ({place: one.row for place, one in table.items()} for table in (old, new))
    times = f", {len(slower)} slower, {faster} faster, {again} measured again with the same row"
    times += f", {raced} with other races" if raced else ""
    yield _counts("keys", rows, rows_now, times)
    yield _counts("chunk sizes", cells, cells_now)
    yield _counts("defaults of architectures", defaults, defaults_now)

    def described(place: Place, one: Kept) -> str:
        return f"{_name(place)}: {_row(place[1].op, one.row)}, {one.p50_us:.2f} µs"

    yield from _listed("added", [described(place, one) for place, one in new.items() if place not in old], most)
    yield from _listed("removed", [described(place, one) for place, one in old.items() if place not in new], most)
    words = [
        f"{_name(place)}: {_fields(place[1].op, one.before.row, one.after.row)}; {_timed(one)}"
        for place, one in changed.items()
    ]
    yield from _listed("changed", words, most)
    yield from _listed("slower", [f"{_name(place)}: {_timed(both[place])}" for place in slower], most)
    yield from _listed("chunk size", _others(cells, cells_now), most)
    yield from _listed("default", _others(defaults, defaults_now), most)
