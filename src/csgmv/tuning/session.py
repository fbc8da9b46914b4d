"""A run's searches under way: processes compile for many keys ahead of the one that measures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

from csgmv import rules
from csgmv.tuning.agenda import Agenda, Store
from csgmv.tuning.compile import Binary, outcome
from csgmv.tuning.experience import Experience
from csgmv.tuning.hunt import Lent, Search, Shared
from csgmv.tuning.model import Device
from csgmv.tuning.plan import Task
from csgmv.tuning.race import Bench
from csgmv.tuning.record import Record
from csgmv.tuning.rig import Compiling
from csgmv.tuning.search import search
from csgmv.tuning.turns import Turns

AT_ONCE = 40  # searches under way: while one is measured, the others' configs are compiled
_POLL_SECONDS = 0.02
_INTERRUPTED_SECONDS = 0.1  # in which Ctrl-C is noticed, whichever thread the signal comes to


class Step(NamedTuple):
    """A key that is done.

    Attributes:
        task: the key, and what it was timed on.
        record: what was measured; None where no config could be.
        done, total: keys.
    """

    task: Task
    record: Record | None
    done: int
    total: int


Report = Callable[[Step], None]


class Summary(NamedTuple):
    """What a run came to.

    Attributes:
        tuned, fresh, failed, left: keys.
        binaries: compiled for them.
        measuring: seconds for which the GPU was measuring.
        waiting: seconds for which it had to wait for compilations.
    """

    tuned: int
    fresh: int
    failed: int
    left: int
    binaries: int = 0
    measuring: float = 0.0
    waiting: float = 0.0


def _lends_nothing(_: rules.Key) -> Sequence[rules.Row]:
    return ()


@dataclass(eq=False)
class _Running:
    task: Task
    search: Search
    compiling: Mapping[rules.Row, Sequence[Future[Binary]]] = field(default_factory=dict)
    begun: bool = False
    busy: bool = False  # a thread is at it
    idle: bool = False  # it waits for other searches, not for compilations

    def pending(self) -> set[Future[Binary]]:
        return {future for futures in self.compiling.values() for future in futures if not future.done()}

    def ready(self) -> bool:
        return not self.busy and not self.idle and not self.pending()

    def has_begun(self) -> bool:
        return self.begun


class Session:
    """Drives the searches of an agenda: many are under way at once, of which one at a time measures."""

    def __init__(
        self,
        agenda: Agenda,
        device: Device,
        bench: Bench,
        farm: Compiling,
        store: Store,
        report: Report,
        effort: int | None = None,
        lent: Lent = _lends_nothing,
        threads: int = 1,
    ) -> None:
        """`farm` compiles what searches ask for. `effort` None is that of a run of this agenda alone.

        `lent` has rows for a key that are measured whatever else is. With more than one of the `threads`, which decide
        while another has something measured, the order of the searches is not the same each time.
        """
        self._agenda, self._device, self._bench, self._turns = agenda, device, bench, Turns()
        self._farm, self._store, self._report = farm, store, report
        self._shared = Shared(
            Experience(device),
            {task.key: ranking for task, ranking in agenda.known},
            effort=agenda.effort() if effort is None else effort,
            lent=lent,
            measuring=self._turns.measuring,
        )
        for task, ranking in agenda.known:
            if task.key.op != "add_lora":
                self._shared.experience.learn(task, ranking.screened)
        self._queue = deque(map(self._make, agenda.tasks))
        self._running: list[_Running] = []
        self._records: dict[rules.Key, Record] = {}
        self._done = 0
        self._waiting, self._waiters = 0.0, 0
        self._starved_since = 0.0  # when the last of the threads began to wait
        self._threads, self._over = threads, False

    def run(self, deadline: float | None = None) -> Summary:
        """Search until every key is done, or the monotonic clock has passed the deadline.

        The thread that calls this only waits: it is the one that Ctrl-C interrupts, wherever it may be, and none that
        holds a lock or has asked for a measurement may be.
        """
        with self._turns.quick_switches(), ThreadPoolExecutor(self._threads) as pool:
            drives = [pool.submit(self._drive, deadline) for _ in range(self._threads)]
            try:
                while wait(drives, _INTERRUPTED_SECONDS).not_done:
                    pass
            finally:
                self._over = True
        for drive in drives:
            drive.result()  # what it raised
        for one in (*self._running, *self._queue):
            one.search.close()
        tuned = len(self._records)
        return Summary(
            tuned,
            self._agenda.fresh,
            self._done - tuned,
            len(self._agenda.wanted) - self._done,
            self._farm.binaries,
            getattr(self._bench, "seconds", 0.0),
            self._waiting,
        )

    def _drive(self, deadline: float | None) -> None:
        """One thread's share of the searches. Whatever it raises ends the others' too."""
        with self._turns.deciding:
            try:
                while not self._over and (self._queue or self._running):
                    while self._queue and len(self._running) < AT_ONCE:
                        self._running.append(self._queue.popleft())
                    if deadline is not None and time.monotonic() >= deadline:
                        break
                    ready = min(filter(_Running.ready, self._running), key=_Running.has_begun, default=None)
                    if ready is None:
                        self._wait(deadline)
                    else:
                        self._advance(ready)
            except BaseException:
                self._over = True
                raise

    def _wait(self, deadline: float | None) -> None:
        assert not all(one.idle for one in self._running), "searches wait for each other"
        pending = {future for one in self._running for future in one.pending()}
        left = _POLL_SECONDS if deadline is None else max(0.0, min(_POLL_SECONDS, deadline - time.monotonic()))
        self._waiters += 1
        if self._waiters == self._threads:
            self._starved_since = time.monotonic()
        with self._turns.others_decide():
            if pending:
                wait(pending, timeout=left, return_when=FIRST_COMPLETED)
            elif any(one.busy for one in self._running):
                time.sleep(left)
        if self._waiters == self._threads:  # until now nobody had anything measured
            self._waiting += time.monotonic() - self._starved_since
        self._waiters -= 1

    def _make(self, task: Task) -> _Running:
        save = self._save if task.key in self._agenda.wanted else None
        return _Running(task, search(task, self._device, self._bench, self._shared, self._farm.missing, save))

    def _advance(self, one: _Running) -> None:
        """Let a search measure what was compiled for it, and ask for what it wants next."""
        outcomes = {row: outcome(futures) for row, futures in one.compiling.items()} if one.begun else None
        one.begun = one.busy = True
        try:
            rows = one.search.send(outcomes)  # type: ignore[arg-type]
            one.compiling, one.idle = self._farm.submit(one.task.key, rows), not rows
        except StopIteration:
            self._running.remove(one)
            for other in self._running:
                other.idle = False
            if one.task.key in self._agenda.wanted:
                self._done += 1
                record = self._records.get(one.task.key)
                self._report(Step(one.task, record, self._done, len(self._agenda.wanted)))
        finally:
            one.busy = False

    def _save(self, task: Task, record: Record) -> None:
        self._store.add(task.key, record)
        self._records[task.key] = record
