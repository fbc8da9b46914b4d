"""What a run of the tuner has to do: the keys of a plan whose records are not fresh, in a good order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from csgmv import footprint, rules
from csgmv.tuning.experience import far_apart
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Task, family, parts
from csgmv.tuning.ranking import Ranking
from csgmv.tuning.record import Record
from csgmv.tuning.space import default_row

FEW_KEYS, MOST_EFFORT = 100, 3  # a plan of so few keys or fewer has more compiled for each: there is time for it


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


def schedule(tasks: Sequence[Task], store: Store, limits: footprint.Limits, force: bool = False) -> Agenda:
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


def _ranking(key: rules.Key, record: Mapping[str, Any], limits: footprint.Limits) -> Ranking:
    """The ranking that a record was made of."""
    screened = {tuple(row): Screening(*times) for row, *times in record["candidates"]}
    return Ranking(default_row(key, limits), screened)
