"""A run of the tuner: processes compile for many keys ahead of the one that measures; results are kept key by key."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from csgmv import dispatch, fallback, rules
from csgmv.tuning.compile import Binary, outcome
from csgmv.tuning.experience import Experience, far_apart
from csgmv.tuning.hunt import Search, Shared
from csgmv.tuning.lab import Screening
from csgmv.tuning.model import Device
from csgmv.tuning.plan import Keys, Plan, Task, family, parts
from csgmv.tuning.race import Bench
from csgmv.tuning.ranking import Ranking
from csgmv.tuning.record import Archive, Record
from csgmv.tuning.rig import Compiling, Gpu, Rig, Site, spare_processes
from csgmv.tuning.search import search
from csgmv.tuning.space import default_row

FEW_KEYS, MOST_EFFORT = 100, 3  # a plan of so few keys or fewer has more compiled for each: there is time for it
LENT = 3  # rows of the table that a search begins with: what it leaves to chance, an earlier one may have found
AT_ONCE = 40  # searches under way: while one is measured, the others' configs are compiled


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
Lent = Callable[[rules.Key], Sequence[rules.Row]]


def _say_nothing(_: Step) -> None:
    pass


def _lends_nothing(_: rules.Key) -> Sequence[rules.Row]:
    return ()


class Summary(NamedTuple):
    """What a run came to.

    Attributes:
        tuned, fresh, failed, left: keys.
        binaries: compiled for them.
        measuring: seconds for which the GPU was measuring.
        waiting: seconds for which it had to wait for compilations; the rest went into deciding what to try.
    """

    tuned: int
    fresh: int
    failed: int
    left: int
    binaries: int = 0
    measuring: float = 0.0
    waiting: float = 0.0


def tune(
    plan: Plan | Keys,
    folder: Path,
    *,
    device: torch.device | None = None,
    force: bool = False,
    time_budget: float | None = None,
    processes: int | None = None,
    seed: int = 0,
    report: Report = _say_nothing,
    rig: Rig | None = None,
) -> Summary:
    """Find the best config of every key in the plan on one GPU, and put what was measured into `folder`.

    A key whose record was measured with these kernels in this environment is left as it is. The files are whole
    at any moment, so a run may be killed and started again.

    Args:
        plan: the keys.
        folder: of the raw results ("configs"); see record.Archive.
        device: a GPU; None is the current one.
        force: measure also what is there already.
        time_budget: seconds after which no further key is finished; None for as long as it takes.
        processes: that compile; None for all the machine's processors but two.
        seed: of the random tensors.
        report: called after each key.
        rig: what tunes; None is the device.

    Raises:
        ValueError: the plan is empty or impossible, or a file in the folder is broken.
        RuntimeError: there is no GPU.
    """
    started = time.monotonic()
    rig = Gpu(device) if rig is None else rig
    site = rig.survey(seed)
    archive = Archive(folder, site.gpu, site.triton, site.run)
    agenda = schedule(plan.tasks(), archive, site.device.limits, force)
    with rig.opened(seed, processes or spare_processes()) as (bench, farm):
        session = Session(agenda, site.device, bench, farm, archive, report, lent=lent(site))
        return session.run(None if time_budget is None else started + time_budget)


class Store(Protocol):
    """Where records come from and go to. See record.Archive."""

    def fresh(self, task: Task) -> Mapping[str, Any] | None:
        """The record of a task that need not be measured again."""

    def add(self, key: rules.Key, record: Record) -> None:
        """Keep a record."""


@dataclass
class Agenda:
    """What there is to do: tasks in order, those whose records are wanted, and what is known from earlier runs."""

    tasks: list[Task]
    wanted: set[rules.Key]
    known: list[tuple[Task, Ranking]]
    fresh: int

    def effort(self) -> int:
        """How many times over the allowances of its searches may be granted."""
        return max(1, min(MOST_EFFORT, FEW_KEYS // max(1, len(self.tasks))))


def schedule(tasks: Sequence[Task], store: Store, limits: rules.Limits, force: bool = False) -> Agenda:
    """Drop the tasks whose records are fresh, and add the parts of add_lora tasks where nobody asked for them."""
    wanted, known = [], list[tuple[Task, Ranking]]()
    for task in tasks:
        record = None if force else store.fresh(task)
        if record is None:
            wanted.append(task)
        else:
            known.append((task, _ranking(task.key, record, limits)))
    planned = {task.key: task for task in wanted}
    there = {task.key for task, _ in known}
    for task in wanted:
        for part in parts(task.key) if task.key.op == "add_lora" else ():
            if part not in there:
                planned.setdefault(part, task._replace(key=part))
    return Agenda(_in_order(planned), {task.key for task in wanted}, known, len(known))


def lent(site: Site) -> Lent:
    """What the table of this process, with what is laid over it, has for keys that are launched at a site."""
    where = fallback.Target(
        site.gpu, site.triton, site.device.limits, site.run.compute_capability, site.device.sm_count
    )
    known = dispatch.tables()

    def rows(key: rules.Key) -> Sequence[rules.Row]:
        found = dict[rules.Row, None]()
        for served in fallback.offers(key, where, known):
            if len(found) == LENT:
                break
            if served.row is not None:
                found[served.row] = None
        return list(found)

    return rows


def _in_order(tasks: Mapping[rules.Key, Task]) -> list[Task]:
    """In each family keys that are far apart come first, families take turns, an add_lora follows on its parts."""
    families: dict[rules.Key, list[Task]] = {}
    for task in tasks.values():
        if task.key.op != "add_lora":
            families.setdefault(family(task.key), []).append(task)
    turns = itertools.zip_longest(*(far_apart(list(members)) for members in families.values()))
    waiting = [task for task in tasks.values() if task.key.op == "add_lora"]
    ordered, done = list[Task](), set[rules.Key]()
    for task in filter(None, itertools.chain.from_iterable(turns)):
        ordered.append(task)
        done.add(task.key)
        ready = [joint for joint in waiting if not {*parts(joint.key)} & (tasks.keys() - done)]
        ordered += ready
        waiting = [joint for joint in waiting if joint not in ready]
    return ordered + waiting  # of those that are left, all parts are known already


def _ranking(key: rules.Key, record: Mapping[str, Any], limits: rules.Limits) -> Ranking:
    """The ranking that a record was made of."""
    screened = {tuple(row): Screening(*times) for row, *times in record["candidates"]}
    return Ranking(default_row(key, limits), screened)


@dataclass
class _Running:
    task: Task
    search: Search
    compiling: Mapping[rules.Row, Sequence[Future[Binary]]] = field(default_factory=dict)
    idle: bool = False  # it waits for other searches, not for compilations

    def pending(self) -> set[Future[Binary]]:
        return {future for futures in self.compiling.values() for future in futures if not future.done()}

    def ready(self) -> bool:
        return not self.idle and not self.pending()


class Session:
    """Drives the searches of an agenda: several are under way at once, of which one at a time measures."""

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
    ) -> None:
        """`farm` compiles what searches ask for. `effort` None is that of a run of this agenda alone.

        `lent` has rows for a key that are measured whatever else is.
        """
        self._agenda, self._device, self._bench = agenda, device, bench
        self._farm, self._store, self._report = farm, store, report
        self._shared = Shared(
            Experience(device),
            {task.key: ranking for task, ranking in agenda.known},
            effort=agenda.effort() if effort is None else effort,
            lent=lent,
        )
        for task, ranking in agenda.known:
            if task.key.op != "add_lora":
                self._shared.experience.learn(task, ranking.screened)
        self._records: dict[rules.Key, Record] = {}
        self._done = 0
        self._waiting = 0.0

    def run(self, deadline: float | None = None) -> Summary:
        """Search until every key is done, or the monotonic clock has passed the deadline."""
        queue, running = deque(self._agenda.tasks), list[_Running]()
        while queue or running:
            while queue and len(running) < AT_ONCE:
                running.append(self._start(queue.popleft()))
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                break
            ready = next(filter(_Running.ready, running), None)
            if ready is None:
                self._wait(running, timeout)
            elif not self._advance(ready):
                running.remove(ready)
                for other in running:
                    other.idle = False
        for one in running:
            one.search.close()
        wanted, tuned = len(self._agenda.wanted), len(self._records)
        return Summary(
            tuned,
            self._agenda.fresh,
            self._done - tuned,
            wanted - self._done,
            self._farm.binaries,
            getattr(self._bench, "seconds", 0.0),
            self._waiting,
        )

    def _wait(self, running: Sequence[_Running], timeout: float | None) -> None:
        pending = {future for one in running for future in one.pending()}
        assert pending, "searches wait for each other"
        begun = time.monotonic()
        wait(pending, timeout=timeout, return_when=FIRST_COMPLETED)
        self._waiting += time.monotonic() - begun

    def _start(self, task: Task) -> _Running:
        save = self._save if task.key in self._agenda.wanted else None
        one = _Running(task, search(task, self._device, self._bench, self._shared, self._farm.missing, save))
        self._ask(one, next(one.search))
        return one

    def _ask(self, one: _Running, rows: Sequence[rules.Row]) -> None:
        one.compiling, one.idle = self._farm.submit(one.task.key, rows), not rows

    def _advance(self, one: _Running) -> bool:
        """Let a search measure what was compiled for it; whether it goes on."""
        try:
            rows = one.search.send({row: outcome(futures) for row, futures in one.compiling.items()})
        except StopIteration:
            if one.task.key in self._agenda.wanted:
                self._done += 1
                self._report(Step(one.task, self._records.get(one.task.key), self._done, len(self._agenda.wanted)))
            return False
        self._ask(one, rows)
        return True

    def _save(self, task: Task, record: Record) -> None:
        self._store.add(task.key, record)
        self._records[task.key] = record
