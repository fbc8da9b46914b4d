"""Chosen rows → what keys would lose without their own: the fallback, judged without a GPU by what was measured."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from codegen.source import choose, columns, fallback, left_out, records, rules, shares

MARKER = "regret"  # of the block in configs/README.md that `markdown` is for
AT_LENGTH, SCREENED = "at length", "screened"  # what a loss is judged by


class Regret(NamedTuple):
    """One key without its own row.

    Attributes:
        left_out: what the tables were made without: one of left_out.WAYS.
        result: what was measured at the key.
        served: what the fallback found instead.
        loss: the share of its own row's time that a launch takes longer; None where what it got was not measured here.
        judged: by which times: AT_LENGTH, or SCREENED where they are first impressions; None without a loss.
    """

    left_out: str
    result: records.Result
    served: fallback.Served
    loss: float | None
    judged: str | None

    @property
    def step(self) -> str:
        """The step of the fallback by itself: "nearest rank" without the rank that was nearest."""
        return fallback.kind(self.served, self.result.key, self.result.gpu, self.result.triton)


def regrets(choice: choose.Chosen) -> Iterator[Regret]:
    """Every key's regret for every way of leaving out, see left_out.cases."""
    times: dict[int, dict[str, dict[rules.Row, float]]] = {
        id(result): {AT_LENGTH: records.at_length(result), SCREENED: records.in_screening(result)}
        for result in choice.results
    }
    for way, result, served in left_out.cases(choice):
        own = choice.table[result.gpu, result.triton][result.key]
        loss, judged = _loss(times[id(result)], *(_launched(result, row) for row in (served.row, own)))
        yield Regret(way, result, served, loss, judged)


def _launched(result: records.Result, row: rules.Row | None) -> rules.Row | None:
    """What None, the built-in default, is at a key."""
    return row or (result.default and result.default.row)


def _loss(
    times: dict[str, dict[rules.Row, float]], borrowed: rules.Row | None, own: rules.Row | None
) -> tuple[float | None, str | None]:
    """What a row loses to a key's own, and by which times: full-length ones if there are; never one kind by another."""
    for judged, slowdowns in times.items():
        if borrowed in slowdowns and own in slowdowns:
            return slowdowns[borrowed] / slowdowns[own] - 1, judged
    return None, None


def known(found: Iterable[Regret]) -> list[float]:
    """The losses that were measured."""
    return [regret.loss for regret in found if regret.loss is not None]


def losses(found: Iterable[Regret]) -> dict[str, dict[str, tuple[int, int, int]]]:
    """What a key is to expect of each step, by operation: how many were measured, median and 95th percentile in ‰.

    Over all ways of leaving out. What a key got in several of them counts once.
    """
    distinct = {
        (
            (regret.result.gpu, regret.result.triton, regret.result.key),
            regret.step,
            (regret.served.gpu, regret.served.triton),
            regret.served.row,
        ): regret
        for regret in found
    }
    steps: dict[tuple[str, str], list[Regret]] = defaultdict(list)
    for regret in distinct.values():
        steps[regret.result.key.op, regret.step].append(regret)
    summed: dict[str, dict[str, tuple[int, int, int]]] = {}
    for (op, step), of_step in sorted(steps.items()):
        if told := shares.summed(known(of_step)):
            summed.setdefault(op, {})[step] = told.keys, round(1000 * told.median), round(1000 * told.percentile_95)
    return summed


def _summary(name: Sequence[str], found: Sequence[Regret]) -> list[str]:
    told, figures = shares.summed(known(found)), ["-"] * 3
    if told:
        figures = [shares.percent(loss) for loss in (told.median, told.percentile_95, told.worst)]
    judged = Counter(regret.judged for regret in found)
    return [*name, str(len(found)), *(str(judged[by]) for by in (AT_LENGTH, SCREENED, None)), *figures]


def said(key: rules.Key) -> str:
    """A key in words."""
    sizes = rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)
    return f"{key.op} {sizes}, {key.dtype}, chunk size {key.chunk_size}, {key.segment_bucket} segments"


def _story(regret: Regret) -> Iterator[str]:
    source, loss = regret.served.source, regret.loss
    assert source is not None
    assert loss is not None
    yield f"{shares.percent(loss):>8}  {said(regret.result.key)} (left out: {regret.left_out})"
    yield f"{'':10}{regret.step}, from {said(source)}: {regret.served.row}"


HEADER = ("left out", "operation", "step", "keys", AT_LENGTH, SCREENED, "unmeasured", "median", "95 %", "worst")
_ALL = "all"


def _summaries(found: Iterable[Regret], each_operation: bool) -> list[list[str]]:
    """Cells under HEADER: losses by what was left out and step, of each operation or of all together; then whatever it
    was.
    """
    rows: list[list[str]] = []
    for way, of_way in itertools.groupby(found, key=lambda regret: regret.left_out):
        steps: dict[tuple[str, str], list[Regret]] = defaultdict(list)
        every: list[Regret] = []
        for regret in of_way:
            steps[regret.result.key.op if each_operation else _ALL, regret.step].append(regret)
            every.append(regret)
        rows += [_summary([way, *step], steps[step]) for step in sorted(steps)]
        rows.append(_summary([way, _ALL, ""], every))
    return rows


def markdown(found: Iterable[Regret]) -> str:
    """For configs/README.md: losses over all operations, what they are of, and the command that writes them."""
    header, *rows = ([row[0], *row[2:]] for row in (HEADER, *_summaries(found, each_operation=False)))
    return (
        f"{columns.markdown(header, rows)}\n\n"
        "Each key of the shipped results without its own row, and without all else that has in common with it what the "
        "first column says: the time of what the fallback finds instead, over the time of its own row, less 1. "
        "at length: keys at which both were timed at full length; screened: keys judged by the first impressions of a "
        "search, until `csgmv cross` has timed them; unmeasured: keys at which what they get was not timed. "
        "95 %: the 95th percentile. "
        "Printed by `python -m codegen --regret --into configs/README.md`; without `--into` operations have lines of "
        "their own."
    )


def report(found: Iterable[Regret], worst: int = 10) -> Iterator[str]:
    """Lines for people: losses by what was left out, operation and step; and of borrowed rows those that lose most."""
    found = list(found)
    yield columns.aligned(HEADER, _summaries(found, each_operation=True))
    borrowed = [regret for regret in found if regret.loss is not None and regret.served.source is not None]
    yield f"\nThe {worst} borrowed rows that lose most:"
    for regret in sorted(borrowed, key=lambda regret: -(regret.loss or 0.0))[:worst]:
        yield from _story(regret)
