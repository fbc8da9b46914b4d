"""Chosen results → which rows of other keys are to be timed at each key, and beside what: the most telling first.

A row that another key lends says what borrowing costs only where it was timed at full length against the key's own
winner. Those that the fallback would lend come first, then the winners of all other keys of the operation, rank and
dtype, the nearest first, each cut to the key.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from csgmv import fallback, footprint, records, refit, rules
from csgmv.baking import left_out
from csgmv.baking.choose import Chosen

MOST_ROWS = 32  # beside the winner and the default: of graphs that are there at once, and of what a crash may cost
TIMING_SECONDS = 0.05  # a row at a key on an H200: capturing it, and what race.race takes of each finalist

Raced = Callable[[records.Result], Collection[rules.Row]]
Lent = Mapping[rules.Key, Sequence[rules.Row]]


class Heat(NamedTuple):
    """Rows to be launched in turn at one key.

    Attributes:
        result: the key's own, whose batches decide.
        beside: what the rest is to be compared with, the key's winner first; mostly that and the default.
        rows: the rest, mostly of other keys, cut to this one.
    """

    result: records.Result
    beside: tuple[rules.Row, ...]
    rows: tuple[rules.Row, ...]

    @property
    def all_rows(self) -> tuple[rules.Row, ...]:
        """In the order in which they are launched."""
        return self.beside + self.rows


class Heats(NamedTuple):
    """In the order in which they are to be run: with the rows that the fallback would lend, and with all the others."""

    lent: Sequence[Heat]
    others: Sequence[Heat]


def seconds(heats: Iterable[Heat]) -> float:
    """What heats are expected to take on an H200, if compiling does not hold them up."""
    return TIMING_SECONDS * sum(len(heat.all_rows) for heat in heats)


def heat(result: records.Result, rows: Iterable[rules.Row]) -> Heat:
    """Rows beside the winner and the default of a key; those two are not run twice."""
    own = (records.winner(result), result.default)
    beside = dict.fromkeys(timing.row for timing in own if timing is not None)
    return Heat(result, tuple(beside), tuple(row for row in dict.fromkeys(rows) if row not in beside))


def raced(result: records.Result) -> set[rules.Row]:
    """The rows that took part in a key's races, whenever that was."""
    return {row for race in result.races for row in race.times}


def heats(
    choice: Chosen, where: fallback.Head, done: Raced = raced, report: Callable[[int, int], object] = lambda *_: None
) -> Heats:
    """All that remains to be timed at the keys of one GPU and Triton version; of thousands it takes minutes to tell.

    Args:
        choice: the results; rows are borrowed from all that may lend them there.
        where: the GPU's name, the Triton version.
        done: which rows need not be timed at a key; finalists and the default never are.
        report: is told before each key how many have been looked at, and how many there are.
    """
    here = [result for result in choice.results if (result.gpu, result.triton) == where]
    report(0, len(here))
    lent: dict[rules.Key, list[rules.Row]] = defaultdict(list)
    for _, result, served in left_out.cases(choice):
        if (result.gpu, result.triton) == where and served.row is not None:
            lent[result.key].append(served.row)
    winners = _winners(choice, where)
    first: dict[rules.Key, list[Heat]] = {}
    rest: dict[rules.Key, list[Heat]] = {}
    for number, result in enumerate(here):
        report(number, len(here))
        known = {timing.row for timing in (*result.finalists, *filter(None, [result.default]))} | {*done(result)}
        wanted = [row for row in dict.fromkeys(lent[result.key]) if row not in known]
        known.update(wanted)
        limits = left_out.target(choice, result).limits
        others = [row for row in _cut(winners[_kind(result.key)], result.key, limits) if row not in known]
        first[result.key] = [heat(result, part) for part in _parts(wanted)]
        rest[result.key] = [heat(result, part) for part in _parts(others)]
    return Heats(_in_turns(first), _in_turns(rest))


def _kind(key: rules.Key) -> tuple[str, int, str]:
    return key.op, key.max_rank, key.dtype


def _winners(choice: Chosen, where: fallback.Head) -> Mapping[tuple[str, int, str], Mapping[rules.Key, rules.Row]]:
    """The tuned rows of a table by operation, rank and dtype."""
    found: dict[tuple[str, int, str], dict[rules.Key, rules.Row]] = defaultdict(dict)
    for key, row in choice.table[where].items():
        if row is not None:
            found[_kind(key)][key] = row
    return found


def _cut(winners: Mapping[rules.Key, rules.Row], key: rules.Key, limits: footprint.Limits) -> Iterator[rules.Row]:
    """Each row as a key can use it; the nearest key's first, those from beyond the fallback's reach last."""
    near = fallback.lenders(key, fallback.by_layer(winners))
    for source in dict.fromkeys([*near, *winners]):
        if row := refit.adapted(winners[source], source, key, limits):
            yield row


def _parts(rows: Iterable[rules.Row]) -> Iterator[list[rules.Row]]:
    left = iter(dict.fromkeys(rows))
    while part := list(itertools.islice(left, MOST_ROWS)):
        yield part


def _in_turns(by_key: Mapping[rules.Key, Sequence[Heat]]) -> list[Heat]:
    """Each key's first heat before any's second; layers take turns, so that a run that is stopped has of all."""
    layers: dict[rules.Key, list[Sequence[Heat]]] = defaultdict(list)
    for key, of_key in by_key.items():
        layers[key._replace(chunk_size=1, segment_bucket=1)].append(of_key)
    keys = filter(None, itertools.chain.from_iterable(itertools.zip_longest(*layers.values())))
    return [one for one in itertools.chain.from_iterable(itertools.zip_longest(*keys)) if one is not None]
