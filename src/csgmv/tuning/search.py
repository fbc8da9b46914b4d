"""Finding a key's best config: generators that ask for compilations and time what comes back.

Shrink and expand: the default and the most promising tilings are screened, then the neighbours of the best ones, twice.
add_lora: the best parts of both, joined; then the best joint config with one part or the overlap exchanged.
Compiling is what takes long (about a second of a processor on an H200's host, against 6 ms to screen a config), and a
binary serves all segment buckets of a shape: so each key asks for few of its own, and also screens what was compiled
for the others.

A search yields the rows that it wants compiled and is sent what became of each; between a yield and the next it has the
GPU to itself. So one thread drives many searches, and the GPU measures for one while processes compile for others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Union

from csgmv import rules
from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig, from_row, to_row
from csgmv.tuning import space
from csgmv.tuning.compile import Binary
from csgmv.tuning.plan import Task, parts
from csgmv.tuning.race import Bench, race
from csgmv.tuning.ranking import Ranking
from csgmv.tuning.record import Record
from csgmv.tuning.worker import Failure

FIRST = {"shrink": 10, "expand": 9}  # tilings that a key has compiled
STEPS = (8, 6)  # neighbours that it has compiled, in each of two rounds
NEIGHBOURS_OF = 2  # the best so many configs
BORROWED = 24  # configs compiled for other segment buckets that it screens, at each stage
SPLITS = 3  # joint configs: the best shrink for each of so many values of split_k
EXCHANGES = 4  # joint configs of the second round
SHORT_US = 20.0  # below this the overlap of the two kernels mostly pays, so it is tried first
STOP_ABOVE = 1.2  # times the best so far: what a first sample may take

Outcomes = Mapping[rules.Row, Union[Binary, Failure]]
Search = Generator[Sequence[rules.Row], Outcomes, None]


@dataclass
class Shared:
    """What searches know of each other.

    Attributes:
        rankings: of the keys whose search has ended.
        asked: the rows that were compiled for a shape, that is a key with its segment bucket set to 1.
    """

    rankings: dict[rules.Key, Ranking] = field(default_factory=dict)
    asked: dict[rules.Key, dict[rules.Row, None]] = field(default_factory=dict)


def search(
    task: Task,
    device: space.Device,
    bench: Bench,
    shared: Shared,
    save: Callable[[Task, Record], None] | None,
) -> Search:
    """Search one key; its ranking is left in `shared`, its record is handed to `save`.

    With `save` None the race is left out: the key is searched for the sake of an add_lora key that it is part of.
    An add_lora search waits (it yields nothing to compile) until the rankings of its parts are there.
    """
    hunt = _Hunt(task, device, bench, shared)
    if task.key.op == "add_lora":
        while any(part not in shared.rankings for part in parts(task.key)):
            yield ()
        yield from hunt.join(*(shared.rankings[part] for part in parts(task.key)))
    else:
        yield from hunt.explore()
    shared.rankings[task.key] = hunt.ranking
    if save is not None and (record := race(task, bench, hunt.ranking)) is not None:
        save(task, record)


class _Hunt:
    """One key's search under way."""

    def __init__(self, task: Task, device: space.Device, bench: Bench, shared: Shared) -> None:
        self.ranking = Ranking(space.default_row(task.key, device.limits))
        self._task, self._device, self._bench = task, device, bench
        self._asked = shared.asked.setdefault(task.key._replace(segment_bucket=1), {})

    def explore(self) -> Search:
        """Search a key of one kernel."""
        first, self.ranking.pruned = space.shortlist(self._task, self._device, FIRST[self._task.key.op])
        yield from self._screen([*self._default(), *map(to_row, first)])
        for most in STEPS:
            near = [
                to_row(config)
                for row in self.ranking.best()[:NEIGHBOURS_OF]
                for config in space.neighbours(self._part(row), self._task, self._device)
            ]
            yield from self._screen([*self.ranking.unknown(near)[:most], *self._borrowed()])

    def join(self, shrinks: Ranking, expands: Ranking) -> Search:
        """Search an add_lora key.

        split_k is what couples the kernels: expand sums the partials that shrink leaves. Expand configs are taken from
        different tilings, since others hardly differ in time.
        """
        by_split: dict[int, list[ShrinkConfig]] = {}
        for row in shrinks.best():
            shrink = from_row("shrink", row)
            assert isinstance(shrink, ShrinkConfig)
            by_split.setdefault(shrink.split_k, []).append(shrink)
        by_tiling: dict[tuple[int, ...], ExpandConfig] = {}
        for row in expands.best():
            expand = from_row("expand", row)
            assert isinstance(expand, ExpandConfig)
            by_tiling.setdefault((expand.block_m, expand.block_n, expand.column_tiles), expand)
        leaders, expand_parts = [configs[0] for configs in by_split.values()], list(by_tiling.values())
        together = sum(part.screened[part.best()[0]].p50_us for part in (shrinks, expands) if part.screened)
        overlap = self._device.limits.programmatic_launch and together < SHORT_US
        joint = [AddLoraConfig(s, e, overlap) for e in expand_parts[:1] for s in leaders[:SPLITS]]
        joint += [AddLoraConfig(s, e, overlap) for e in expand_parts[1:2] for s in leaders[:1]]
        yield from self._screen([*self._default(), *self._possible(joint), *self._borrowed()])
        if not self.ranking.screened:
            return
        best = from_row("add_lora", self.ranking.best()[0])
        assert isinstance(best, AddLoraConfig)
        exchanged = [replace(best, overlap=not best.overlap)]
        exchanged += [replace(best, shrink=config) for config in by_split.get(best.shrink.split_k, [])[1:2]]
        exchanged += [replace(best, expand=config) for config in expand_parts[1:3]]
        exchanged += [replace(best, shrink=config) for config in leaders[SPLITS : SPLITS + 1]]
        fresh = self.ranking.unknown(self._possible(exchanged))
        yield from self._screen([*fresh[:EXCHANGES], *self._borrowed()])

    def _default(self) -> list[rules.Row]:
        return [] if self.ranking.default is None else [self.ranking.default]

    def _part(self, row: rules.Row) -> space.Part:
        config = from_row(self._task.key.op, row)
        assert not isinstance(config, AddLoraConfig)
        return config

    def _possible(self, configs: Iterable[AddLoraConfig]) -> list[rules.Row]:
        limits = self._device.limits
        return [row for row in map(to_row, configs) if rules.resource_fault(row, self._task.key, limits) is None]

    def _borrowed(self) -> list[rules.Row]:
        """What was compiled for other keys of this shape, the most promising first."""
        rows = self.ranking.unknown(self._asked)
        if self._task.key.op != "add_lora":
            rows.sort(key=lambda row: space.predicted_us(self._part(row), self._task, self._device))
        return rows[:BORROWED]

    def _screen(self, rows: Sequence[rules.Row]) -> Search:
        """Have the rows compiled, check each, and time those that are right."""
        ranking, task = self.ranking, self._task
        rows = ranking.unknown(rows)
        if not rows:
            return
        self._asked.update(dict.fromkeys(rows))
        outcomes = yield rows
        for row in rows:
            binary = outcomes[row]
            if isinstance(binary, Failure):
                ranking.refuse(row, binary)
                continue
            fastest = min((screening.p50_us for screening in ranking.screened.values()), default=math.inf)
            try:
                error = self._bench.check(task.key, row)
                ranking.screened[row] = self._bench.screen(task, row, STOP_ABOVE * fastest)
            except Failure as failure:
                ranking.refuse(row, failure)
                continue
            ranking.binaries[row] = binary
            ranking.max_error = max(ranking.max_error, error)
