"""A bench whose times are made up, and a search driven to its end on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from csgmv import footprint, rules
from csgmv.tuning import model
from csgmv.tuning.compile import Binary
from csgmv.tuning.experience import Experience
from csgmv.tuning.hunt import Shared
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Batch, Task, family
from csgmv.tuning.record import Archive, Record, Run
from csgmv.tuning.search import search
from csgmv.tuning.worker import Failure

H200 = model.Device(footprint.Limits(shared_memory=232448, programmatic_launch=True), sm_count=132)
LAUNCHES = 10
RUN = Run("9.0", 132, "580.10", "13.0", "2.11.0+cu130", "0.1.0", "sha256:" + "a" * 64, 0, "2026-11-23", "cold")


class FakeBench:
    """Times configs by a formula; `fails` maps a row to a reason; `of_batch` is a factor."""

    def __init__(self, cost: Callable[[rules.Row], float], fails: Callable[[rules.Row], str | None] = lambda _: None):
        self.cost, self.fails = cost, fails
        self.of_batch: Callable[[Batch], float] = lambda _: 1.0
        self.screened: list[rules.Row] = []
        self.raced: list[list[rules.Row]] = []

    def check(self, _: rules.Key, row: rules.Row) -> float:
        """Whatever `fails` says."""
        assert row not in self.screened
        if reason := self.fails(row):
            raise Failure(reason)
        return 0.001

    def screen(self, _: Task, row: rules.Row, stop_above: float) -> Screening:
        """By the formula."""
        self.screened.append(row)
        cost = self.cost(row)
        return Screening(cost, LAUNCHES * (1 if cost > stop_above else 3), cost > stop_above)

    def race(self, _: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int) -> tuple[list[list[float]], int]:
        """By the formula, with a jitter that repeats every three rounds."""
        self.raced.append(list(rows))
        factor = self.of_batch(batch)
        return [[factor * (self.cost(row) + 0.01 * (i % 3)) for i in range(rounds)] for row in rows], LAUNCHES


def drive(
    task: Task,
    bench: FakeBench,
    shared: Shared | None = None,
    broken: Callable[[rules.Row], str | None] = lambda _: None,
    device: model.Device = H200,
    compiled: set[rules.Row] | None = None,
) -> Record | None:
    """Run a search to its end; `broken` says why a row does not compile, `compiled` holds those that need not be."""
    found: list[Record] = []
    known = set[rules.Row]() if compiled is None else compiled

    def missing(_: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, int]:
        return {row: int(row not in known) for row in rows}

    generator = search(
        task, device, bench, shared or Shared(Experience(device)), missing, lambda _, record: found.append(record)
    )
    rows = next(generator)
    try:
        while True:
            known.update(rows)
            outcomes = {}
            for row in rows:
                reason = broken(row)
                outcomes[row] = Failure(reason) if reason else Binary(4096, 64, 0)
            rows = generator.send(outcomes)
    except StopIteration:
        return found[0] if found else None


class HashBench:
    """A config's time is a hash of it; `broken` says which keys' configs crash, `stop` is called at each screening."""

    def __init__(
        self, broken: Callable[[rules.Key], bool] = lambda _: False, stop: Callable[[int], None] = lambda _: None
    ):
        self.broken, self.stop, self.screens = broken, stop, 0

    def check(self, key: rules.Key, _: rules.Row) -> float:
        """Right, unless the key is a broken one."""
        if self.broken(key):
            raise Failure("crashed with exit status -11")
        return 0.0

    def screen(self, _task: Task, row: rules.Row, _stop_above: float) -> Screening:
        """The hash; `stop` may interrupt here."""
        self.screens += 1
        self.stop(self.screens)
        return Screening(self._us(row), 3, False)

    def race(
        self, _: rules.Key, _batch: Batch, rows: Sequence[rules.Row], rounds: int
    ) -> tuple[list[list[float]], int]:
        """The hash, without noise."""
        return [[self._us(row)] * rounds for row in rows], 8

    @staticmethod
    def _us(row: rules.Row) -> float:
        return 5.0 + sum((value or 0) * (i + 7) % 13 for i, value in enumerate(row)) / 10


class Farm:
    """Compiles at once; a row is one binary, shared by the keys of a family."""

    def __init__(self) -> None:
        self.known = set[tuple[rules.Key, rules.Row]]()

    @property
    def binaries(self) -> int:
        """How many were asked for."""
        return len(self.known)

    def missing(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, int]:
        """Whether a row is new."""
        return {row: int((family(key), row) not in self.known) for row in rows}

    def submit(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, list[Future[Binary]]]:
        """All done."""
        self.known.update((family(key), row) for row in rows)
        found: dict[rules.Row, list[Future[Binary]]] = {row: [Future()] for row in rows}
        for futures in found.values():
            futures[0].set_result(Binary(1024, 32, 0))
        return found


def archive(folder: Path) -> Archive:
    """Raw results of a made-up run."""
    return Archive(folder, "NVIDIA H200", "3.6.0", RUN)
