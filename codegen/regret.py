"""Chosen rows → what keys would lose without their own: the fallback, judged without a GPU by what was measured."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from codegen.source import choose, columns, defaults, fallback, records, rules


class Regret(NamedTuple):
    """One key without its own row.

    Attributes:
        left_out: what the tables were made without: one of WAYS.
        result: what was measured at the key.
        served: what the fallback found instead.
        loss: the share of its own row's time that a launch takes longer; None where what it got was not measured here.
    """

    left_out: str
    result: records.Result
    served: fallback.Served
    loss: float | None

    @property
    def step(self) -> str:
        """The step of the fallback by itself: "nearest rank" without the rank that was nearest."""
        return fallback.kind(self.served, self.result.key, self.result.gpu, self.result.triton)


def _place(result: records.Result) -> tuple[choose.Target, rules.Key]:
    return (result.gpu, result.triton), result.key


def _dimensions(result: records.Result) -> Hashable:
    return result.key._replace(max_rank=0, dtype="", chunk_size=0, segment_bucket=0)


# With a key everything goes that has this in common with it. So dimensions go with all their ranks and batches, on
# every GPU; a rank with all dimensions that have it. An architecture's defaults are made without what is left out.
MARKER = "regret"  # of the block in the README that `markdown` is for
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


class _Left:
    """What the codegen would make of the results that are left."""

    def __init__(
        self,
        choice: choose.Choice,
        averages: defaults.Averages,
        rest: Sequence[records.Result],
        *,
        with_rows: bool,
    ) -> None:
        rows: dict[choose.Target, dict[rules.Key, rules.Row | None]] = defaultdict(dict)
        for target, key in map(_place, rest if with_rows else ()):
            rows[target][key] = choice.table[target][key]
        self._averages, self._rest = averages, rest
        self._tables = fallback.Tables({target: fallback.by_layer(of) for target, of in rows.items()}, choice.gpus)

    def serve(self, key: rules.Key, where: fallback.Target) -> fallback.Served:
        """As `fallback.serve` would. Defaults take long to make: they are made if no row serves."""
        served = fallback.serve(key, where, self._tables)
        if served.source is None and not self._tables.defaults:
            self._tables = self._tables._replace(defaults=self._averages.defaults(self._rest))
            served = fallback.serve(key, where, self._tables)
        return served


def _target(choice: choose.Choice, result: records.Result) -> fallback.Target:
    limits = rules.LIMITS.get(result.architecture, rules.UNLIMITED)
    return fallback.Target(result.gpu, result.triton, limits, *choice.gpus[result.gpu])


def _loss(choice: choose.Choice, result: records.Result, borrowed: rules.Row | None) -> float | None:
    """See Regret."""
    target, key = _place(result)
    slowdowns = records.slowdowns(result)
    default = result.default and result.default.row
    slowdown, own = (slowdowns.get(row or default or ()) for row in (borrowed, choice.table[target][key]))
    return None if slowdown is None or own is None else slowdown / own - 1


def regrets(choice: choose.Choice) -> Iterator[Regret]:
    """Every key's regret for every way of leaving out.

    A Triton version or a GPU is left out where another one of the same architecture remains.
    """
    averages = defaults.Averages(choice.results)
    for way, in_common in WAYS.items():
        groups: dict[Hashable, list[records.Result]] = defaultdict(list)
        for result in choice.results:
            groups[in_common(result)].append(result)
        for common, group in groups.items():
            rest = [result for result in choice.results if in_common(result) != common]
            if way in ("Triton version", "GPU") and group[0].architecture not in {other.architecture for other in rest}:
                continue
            left = _Left(choice, averages, rest, with_rows=way != "all rows")
            for result in group:
                served = left.serve(result.key, _target(choice, result))
                yield Regret(way, result, served, _loss(choice, result, served.row))


def _percent(loss: float) -> str:
    return f"{100 * loss:.1f} %"


def known(found: Iterable[Regret]) -> list[float]:
    """The losses that were measured, sorted."""
    return sorted(regret.loss for regret in found if regret.loss is not None)


def percentile_95(losses: Sequence[float]) -> float:
    """Of sorted ones."""
    return losses[-(-95 * len(losses) // 100) - 1]


def losses(found: Iterable[Regret]) -> dict[str, dict[str, tuple[int, int, int]]]:
    """What a key is to expect of each step, by operation: how many were measured, median and 95th percentile in ‰.

    Over all ways of leaving out. What a key got in several of them counts once.
    """
    distinct = {
        (_place(regret.result), regret.step, (regret.served.gpu, regret.served.triton), regret.served.row): regret
        for regret in found
    }
    steps: dict[tuple[str, str], list[Regret]] = defaultdict(list)
    for regret in distinct.values():
        steps[regret.result.key.op, regret.step].append(regret)
    summed: dict[str, dict[str, tuple[int, int, int]]] = {}
    for (op, step), of_step in sorted(steps.items()):
        if measured := known(of_step):
            median, percentile = (round(1000 * loss) for loss in (statistics.median(measured), percentile_95(measured)))
            summed.setdefault(op, {})[step] = len(measured), median, percentile
    return summed


def _summary(name: Sequence[str], found: Sequence[Regret]) -> list[str]:
    measured, figures = known(found), ["-"] * 3
    if measured:
        figures = [_percent(loss) for loss in (statistics.median(measured), percentile_95(measured), measured[-1])]
    return [*name, str(len(found)), str(len(found) - len(measured)), *figures]


def said(key: rules.Key) -> str:
    """A key in words."""
    sizes = rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)
    return f"{key.op} {sizes}, {key.dtype}, chunk size {key.chunk_size}, {key.segment_bucket} segments"


def _story(regret: Regret) -> Iterator[str]:
    source, loss = regret.served.source, regret.loss
    assert source is not None
    assert loss is not None
    yield f"{_percent(loss):>8}  {said(regret.result.key)} (left out: {regret.left_out})"
    yield f"{'':10}{regret.step}, from {said(source)}: {regret.served.row}"


HEADER = ("left out", "operation", "step", "keys", "unmeasured", "median", "95 %", "worst")


def _summaries(found: Iterable[Regret]) -> list[list[str]]:
    """Cells under HEADER: losses by what was left out, operation and step."""
    rows: list[list[str]] = []
    for way, of_way in itertools.groupby(found, key=lambda regret: regret.left_out):
        steps: dict[tuple[str, str], list[Regret]] = defaultdict(list)
        for regret in of_way:
            steps[regret.result.key.op, regret.step].append(regret)
            steps["all", ""].append(regret)
        rows += [
            _summary([way, *step], steps[step]) for step in sorted(steps, key=lambda step: (step[0] == "all", step))
        ]
    return rows


def markdown(found: Iterable[Regret]) -> str:
    """For the README: the table of the report, what it is of, and the command that writes it."""
    return (
        f"{columns.markdown(HEADER, _summaries(found))}\n\n"
        "Each key of the shipped results without its own row, and without all else that has in common with it what the "
        "first column says: the time of what the fallback finds instead, over the time of its own row, less 1. "
        "unmeasured: keys at which that was not timed. 95 %: the 95th percentile. "
        "Printed by `python -m codegen --regret --into README.md`."
    )


def report(found: Iterable[Regret], worst: int = 10) -> Iterator[str]:
    """Lines for people: losses by what was left out, operation and step; and of borrowed rows those that lose most."""
    found = list(found)
    yield columns.aligned(HEADER, _summaries(found))
    borrowed = [regret for regret in found if regret.loss is not None and regret.served.source is not None]
    yield f"\nThe {worst} borrowed rows that lose most:"
    for regret in sorted(borrowed, key=lambda regret: -(regret.loss or 0.0))[:worst]:
        yield from _story(regret)
