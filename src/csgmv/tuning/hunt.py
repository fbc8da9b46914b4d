"""One key's search under way: what may be compiled and screened for it, and what came of that."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from csgmv import rules
from csgmv.config import AddLoraConfig, from_row
from csgmv.tuning import model, space
from csgmv.tuning.compile import Binary
from csgmv.tuning.experience import Experience
from csgmv.tuning.plan import Task, family
from csgmv.tuning.race import Bench, race
from csgmv.tuning.ranking import Ranking
from csgmv.tuning.record import Record
from csgmv.tuning.worker import Failure

LEADERS = 4  # keys of a family that have more compiled for them
STOP_ABOVE = 1.2  # times the best so far: what the first samples may take
PROMISING = 1.0  # times the best estimate: what a config that has to be compiled may be expected to take
ENOUGH = 0.01  # the share of its time that a round must save for another to follow

Outcomes = Mapping[rules.Row, Union[Binary, Failure]]
Search = Generator[Sequence[rules.Row], Outcomes, None]
Missing = Callable[[rules.Key, Sequence[rules.Row]], Mapping[rules.Row, int]]
Lent = Callable[[rules.Key], Sequence[rules.Row]]


class Allowance(NamedTuple):
    """What one round of a search may ask for."""

    binaries: int  # that have to be compiled
    ready: int  # configs that have not


@dataclass
class Shared:
    """What searches know of each other.

    Attributes:
        experience: of the keys of one kernel whose search has ended.
        rankings: of all keys whose search has ended.
        begun: how many searches have begun, by family.
        pool: the rows that were asked for, by family.
        effort: how many times over each allowance is granted.
        lent: a key → what launches may have got for it so far, which the search has to beat.
        measuring: around what a search has measured; others may go on meanwhile.
    """

    experience: Experience
    rankings: dict[rules.Key, Ranking] = field(default_factory=dict)
    begun: Counter[rules.Key] = field(default_factory=Counter)
    pool: dict[rules.Key, dict[rules.Row, None]] = field(default_factory=dict)
    effort: int = 1
    lent: Lent = lambda _: ()
    measuring: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


class Hunt:
    """One key's search under way."""

    def __init__(self, task: Task, device: model.Device, bench: Bench, shared: Shared, missing: Missing) -> None:
        """`missing` tells how many binaries of a row would have to be compiled."""
        self.ranking = Ranking(space.default_row(task.key, device.limits))
        self.task, self.device, self.shared = task, device, shared
        self._bench, self._missing = bench, missing
        kind = family(task.key)
        self.leads = shared.begun[kind] < LEADERS
        shared.begun[kind] += 1
        self.pool = shared.pool.setdefault(kind, {})

    def first(self) -> list[rules.Row]:
        """What is measured whatever it may be expected to take: the default's row, if there is one, and those lent."""
        default = [] if self.ranking.default is None else [self.ranking.default]
        return [*default, *self.shared.lent(self.task.key)]

    def choose(self, guesses: Mapping[rules.Row, float], allowance: Allowance) -> list[rules.Row]:
        """The first of the rows that the allowance allows, of rows and what they may be expected to take.

        For any but the first keys of a family, what has to be compiled must also be as promising as the best of them.
        """
        unknown = self.ranking.unknown(guesses)
        missing, chosen = self._missing(self.task.key, unknown), []
        bound = math.inf if self.leads else PROMISING * min(guesses.values(), default=0.0)
        binaries, ready = (number * self.shared.effort for number in allowance)
        for row in unknown:
            if missing[row] == 0 and ready > 0:
                ready -= 1
            elif 0 < missing[row] <= binaries and guesses[row] <= bound:
                binaries -= missing[row]
            else:
                continue
            chosen.append(row)
        return chosen

    def screen(self, rows: Iterable[rules.Row]) -> Search:
        """Have the rows compiled, check each, and time those that are right."""
        rows = self.ranking.unknown(rows)
        if not rows:
            return
        self.pool.update(dict.fromkeys(rows))
        outcomes = yield rows
        with self.shared.measuring():
            for row in rows:
                self._try(row, outcomes[row])

    def race(self) -> Record | None:
        """The record of what was screened; None where no config works at all."""
        with self.shared.measuring():
            return race(self.task, self._bench, self.ranking)

    def _try(self, row: rules.Row, binary: Binary | Failure) -> None:
        ranking, task = self.ranking, self.task
        if isinstance(binary, Failure):
            ranking.refuse(row, binary)
            return
        try:
            error = self._bench.check(task.key, row)
            ranking.screened[row] = self._bench.screen(task, row, STOP_ABOVE * ranking.least())
        except Failure as failure:
            ranking.refuse(row, failure)
            return
        ranking.binaries[row] = binary
        ranking.max_error = max(ranking.max_error, error)


def part_of(op: str, row: rules.Row) -> model.Part:
    """The config of one kernel that a row stands for."""
    config = from_row(op, row)
    assert not isinstance(config, AddLoraConfig)
    return config


def in_turns(guesses: Mapping[rules.Row, tuple[str, float]]) -> dict[rules.Row, float]:
    """Rows with their guesses, given the field that each varies too: the best of each field, then the next of each.

    What the model thinks of warps or stages is not worth much: each field is to have its turn.
    """
    by_field: dict[str, list[tuple[float, rules.Row]]] = {}
    for row, (name, guess) in sorted(guesses.items(), key=lambda item: (item[1][1], rules.row_order(item[0]))):
        by_field.setdefault(name, []).append((guess, row))
    ordered = itertools.chain.from_iterable(itertools.zip_longest(*by_field.values()))
    return {row: guess for guess, row in filter(None, ordered)}
