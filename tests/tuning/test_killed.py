"""A run that is killed at any moment leaves whole files, and the next one goes on with them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csgmv import checks, files, raw_results
from csgmv.models import LayerShape
from csgmv.tuning.agenda import schedule
from csgmv.tuning.plan import Plan
from csgmv.tuning.session import Session, Summary
from searching import H200, Farm, HashBench, archive

LAYERS = (LayerShape("o", 96, (48,)), LayerShape("down", 176, (48,)), LayerShape("gate_up", 96, (64, 64)))
TASKS = Plan(LAYERS, 12, chunk_sizes=(16, 32), tokens=(3, 77, 900)).tasks()
Kept = dict[tuple[Path, int, int], Any]


def run(folder: Path, pause: float = 0.0) -> Summary:
    """`pause`: seconds of each screening."""
    there, bench = archive(folder), HashBench(stop=lambda _: time.sleep(pause))
    return Session(schedule(TASKS, there, H200.limits), H200, bench, Farm(), there, lambda _: None, effort=1).run()


def on_disk(folder: Path) -> Kept:
    """Every record in the folder, whose files are all without a fault; of unfinished ones no name ends in .json."""
    found: Kept = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        if path.suffix == ".json":
            document = checks.parse(path.read_text())
            assert raw_results.faults(document) == []
            for record in document["records"]:
                found[path, record["chunk_size"], record["segment_bucket"]] = record
        else:
            assert path.name.startswith(".")
            assert path.suffix == ".tmp"
    return found


def killed(folder: Path, after: float = 60.0, prepare: Callable[[], None] = lambda: None) -> bool:
    """Run in a process of its own, which is killed after so many seconds or kills itself; whether it was."""

    def work() -> None:
        prepare()
        run(folder, pause=0.001)  # so that there is time to kill it

    process = multiprocessing.get_context("fork").Process(target=work)  # nothing to import again, and nothing of torch
    process.start()
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_again_and_again_at_any_moment(tmp_path: Path) -> None:
    """No record that was there is lost or changed; runs that are killed each a little later come to the end at last."""
    chance, kills, before = random.Random(5), 0, Kept()
    seen = set[int]()
    while killed(tmp_path, after=chance.uniform(0.02, 0.4 + 0.1 * kills)):
        kills += 1
        after = on_disk(tmp_path)
        assert before.items() <= after.items()
        before = after
        seen.add(len(after))
    assert len(seen) >= 3
    assert len(on_disk(tmp_path)) == len(TASKS)
    assert run(tmp_path)[:2] == (0, len(TASKS))


class _Death:
    """Kills its process at the n-th replacement of a file, at one of three moments."""

    def __init__(self, moment: str, nth: int) -> None:
        self._moment, self._left = moment, nth
        self._replace, self._fdopen = os.replace, os.fdopen

    def __call__(self) -> None:
        files.os.replace, files.os.fdopen = self._replaced, self._opened

    def _opened(self, *args: Any, **options: Any) -> Any:
        file = self._fdopen(*args, **options)
        self._left -= 1
        if self._left == 0 and self._moment == "half written":
            write = file.write
            file.write = lambda text: (write(text[: len(text) // 2]), file.flush(), _die())
        return file

    def _replaced(self, source: str, target: Path) -> None:
        if self._left == 0 and self._moment == "written":
            _die()
        self._replace(source, target)
        if self._left == 0:
            _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["half written", "written", "in place"])
def test_killed_while_a_file_is_replaced(tmp_path: Path, moment: str) -> None:
    """At the first replacement of a run, of the next at the second: at most the record that was to come is missing."""
    before = Kept()
    for nth in (1, 2, 3):
        assert killed(tmp_path, prepare=_Death(moment, nth))
        after = on_disk(tmp_path)
        assert before.items() <= after.items()
        assert len(after) - len(before) == (nth if moment == "in place" else nth - 1)
        before = after
    summary = run(tmp_path)
    assert (summary.fresh, summary.tuned) == (len(before), len(TASKS) - len(before))
