"""Threads of which one decides what to try next while another one's configs are measured.

Deciding takes a third as long as measuring, and is Python in this process; measuring is waiting for another process. A
thread holds the one lock whenever it decides, and gives it away for as long as it has something measured, which one
thread at a time has. So nothing that searches share changes under a thread's hands but while it is measuring.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from csgmv import rules
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Batch, Task
from csgmv.tuning.race import Bench
from csgmv.tuning.side_by_side import Samples

T = TypeVar("T")


class Turns:
    """A bench for several threads, each of which decides while it holds `deciding`."""

    def __init__(self, bench: Bench) -> None:
        """`bench` need not know of threads."""
        self.deciding = threading.Lock()
        self._measuring = threading.Lock()
        self._bench = bench

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """See Bench."""
        return self._measure(lambda: self._bench.check(key, row))

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """See Bench."""
        return self._measure(lambda: self._bench.screen(task, row, stop_above))

    def race(self, key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int) -> tuple[Samples, int]:
        """See Bench."""
        return self._measure(lambda: self._bench.race(key, batch, rows, rounds))

    @contextlib.contextmanager
    def others_decide(self) -> Iterator[None]:
        """Around what a thread does without deciding anything."""
        self.deciding.release()
        try:
            yield
        finally:
            self.deciding.acquire()

    def _measure(self, call: Callable[[], T]) -> T:
        with self.others_decide(), self._measuring:
            return call()
