"""A run of heats: rows are compiled ahead, checked, launched in turn; each key's record gets its race at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import NamedTuple, Protocol

from csgmv import records, rules
from csgmv.tuning.compile import Binary, outcome
from csgmv.tuning.heats import Heat
from csgmv.tuning.race import Bench
from csgmv.tuning.record import Race
from csgmv.tuning.rig import Compiling
from csgmv.tuning.side_by_side import SideBySide, deciding, side_by_side
from csgmv.tuning.worker import Failure

AHEAD = 24  # heats whose rows are being compiled while one is timed


class Refused(NamedTuple):
    """A row that does not work at a key, and why."""

    key: rules.Key
    row: rules.Row
    reason: str


class Step(NamedTuple):
    """A heat that is over; of the timings, a row each, `done` of `total` are behind it."""

    heat: Heat
    done: int
    total: int


class Summary(NamedTuple):
    """What a run came to.

    Attributes:
        races, rows: added to records, and the rows in them beside winners and defaults.
        left: heats that there was no time for.
        refused: rows that did not compile, were wrong, or crashed.
        beaten: keys at which a row of another was faster than the winner by more than ties are given.
    """

    races: int
    rows: int
    left: int
    refused: Sequence[Refused]
    beaten: Sequence[rules.Key]


class Store(Protocol):
    """Where races go. See record.Archive."""

    def add_race(self, key: rules.Key, race: Race) -> None:
        """Give a key's record one race more."""


Report = Callable[[Step], None]
_Compiling = Mapping[rules.Row, Sequence[Future[Binary]]]


class Crossing:
    """Runs heats in their order, but that one whose rows are still being compiled lets others pass."""

    def __init__(self, bench: Bench, farm: Compiling, store: Store, report: Report = lambda _: None) -> None:
        """`farm` compiles what heats need, `store` takes their races."""
        self._bench, self._farm, self._store, self._report = bench, farm, store, report
        self._refused: list[Refused] = []
        self._beaten: dict[rules.Key, None] = {}
        self._races = self._rows = 0

    def run(self, heats: Sequence[Heat], deadline: float | None = None) -> Summary:
        """Run heats until all are over, or the monotonic clock has passed the deadline."""
        queue, ahead = deque(heats), list[tuple[Heat, _Compiling]]()
        done, total = 0, sum(len(heat.all_rows) for heat in heats)
        while queue or ahead:
            while queue and len(ahead) < AHEAD:
                heat = queue.popleft()
                ahead.append((heat, self._farm.submit(heat.result.key, heat.all_rows)))
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                break
            ready = next((one for one in ahead if not _pending(one[1])), None)
            if ready is None:
                wait({future for _, compiling in ahead for future in _pending(compiling)}, timeout, FIRST_COMPLETED)
                continue
            ahead.remove(ready)
            heat, compiling = ready
            self._time(heat, {row: outcome(futures) for row, futures in compiling.items()})
            done += len(heat.all_rows)
            self._report(Step(heat, done, total))
        return Summary(self._races, self._rows, len(queue) + len(ahead), self._refused, list(self._beaten))

    def _time(self, heat: Heat, compiled: Mapping[rules.Row, Binary | Failure]) -> None:
        right = [row for row in heat.all_rows if self._works(heat.result.key, row, compiled[row])]
        beside, rows = ([row for row in part if row in right] for part in (heat.beside, heat.rows))
        if heat.beside[:1] == tuple(beside[:1]):  # without the winner's time in it a race says nothing
            self._race(heat.result, beside, rows)

    def _works(self, key: rules.Key, row: rules.Row, compiled: Binary | Failure) -> bool:
        try:
            if isinstance(compiled, Failure):
                raise compiled
            self._bench.check(key, row)
        except Failure as failure:
            self._refused.append(Refused(key, row, str(failure)))
            return False
        return True

    def _race(self, result: records.Result, beside: Sequence[rules.Row], rows: Sequence[rules.Row]) -> None:
        """Time the rows; where a launch fails, halves of them, down to the one that it was."""
        every = [*beside, *rows]
        if not rows:
            return
        try:
            timed = side_by_side(result.key, deciding(result), every, self._bench)
        except Failure as failure:
            if len(rows) < 2:
                self._refused.append(Refused(result.key, rows[0], str(failure)))
                return
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                self._race(result, beside, half)
            return
        self._keep(result, every, len(beside), timed)

    def _keep(self, result: records.Result, rows: Sequence[rules.Row], beside: int, timed: SideBySide) -> None:
        medians = timed.medians()
        self._store.add_race(result.key, Race(timed.samples, list(zip(rows, medians))))
        self._races += 1
        self._rows += len(rows) - beside
        if min(medians) < medians[0] - max(result.noise_us, records.MOST_TIED * medians[0]):
            self._beaten[result.key] = None


def _pending(compiling: _Compiling) -> list[Future[Binary]]:
    return [future for futures in compiling.values() for future in futures if not future.done()]
