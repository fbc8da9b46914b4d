"""A session finishes every key, keeps each as it goes, and goes on where an earlier one ended."""

from __future__ import annotations

import _thread
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from csgmv import checks, dispatch, fallback, footprint, raw_results, rules
from csgmv.config import ShrinkConfig, to_row
from csgmv.models import LayerShape
from csgmv.tuning import agenda as agendas
from csgmv.tuning import tuner
from csgmv.tuning.agenda import schedule
from csgmv.tuning.hunt import Lent
from csgmv.tuning.model import Device
from csgmv.tuning.plan import Plan, family, parts
from csgmv.tuning.rig import RemoteBench
from csgmv.tuning.session import Session, Step
from csgmv.tuning.space import VALUES
from csgmv.tuning.tuner import LENT, lent
from csgmv.tuning.worker import Failure
from rigs import HERE
from searching import Farm, HashBench, archive

DEVICE = Device(footprint.Limits(shared_memory=232448, programmatic_launch=True), sm_count=132)
PLAN = Plan((LayerShape("o", 96, (48,)), LayerShape("down", 176, (48,))), 12, chunk_sizes=(16, 32), tokens=(3, 77))


def session(
    folder: Path, bench: HashBench, plan: Plan = PLAN, report: Callable[[Step], None] = lambda _: None
) -> Session:
    there = archive(folder)
    return Session(schedule(plan.tasks(), there, DEVICE.limits), DEVICE, bench, Farm(), there, report, threads=2)


def keys_on_disk(folder: Path) -> list[rules.Key]:
    found = []
    for path in sorted(folder.rglob("*.json")):
        document = checks.parse(path.read_text())
        assert raw_results.faults(document) == []
        found += [result.key for result in raw_results.results(document)]
    assert not list(folder.rglob("*.tmp"))
    return found


def records_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = checks.parse(path.read_text())["records"]
    return found


def test_every_key_is_tuned_and_reported_once(tmp_path: Path) -> None:
    """All ops, layers and chunk sizes of a plan; progress counts up to the number of keys."""
    steps: list[Step] = []
    summary = session(tmp_path, HashBench(), report=steps.append).run()
    keys = [task.key for task in PLAN.tasks()]
    assert Counter(keys_on_disk(tmp_path)) == Counter(keys)
    assert summary[:4] == (len(keys), 0, 0, 0)
    assert summary.binaries > 0
    assert [step.done for step in steps] == list(range(1, len(keys) + 1))
    assert {step.task.key for step in steps} == set(keys)
    assert all(step.record is not None for step in steps)


def test_one_thread_decides_while_another_is_measuring(tmp_path: Path) -> None:
    """At most one is measured at a time; meanwhile other searches go on."""
    inside, most, overtaken = 0, 0, 0
    bench = HashBench()
    running = session(tmp_path, bench)

    def measured(_: int) -> None:
        nonlocal inside, most, overtaken
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        overtaken += running._turns.deciding.locked()
        inside -= 1

    bench.stop = measured
    running.run()
    assert most == 1
    assert overtaken > 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_waiting_is_when_all_threads_wait(tmp_path: Path, threads: int) -> None:
    """For compilations: once, however many threads do; not while one of them has something measured."""

    class Slow(Farm):
        """Compiles what is asked for together, and takes its time for it."""

        def submit(self, key: rules.Key, rows: Any) -> Any:
            found = super().submit(key, rows)
            waiting = [Future[Any]() for _ in rows]
            for (row, (done,)), future in zip([*found.items()], waiting):
                found[row] = [future]
                threading.Timer(0.05, future.set_result, [done.result()]).start()
            return found

    class Patient(HashBench):
        """Takes its time too."""

        slept = 0.0

        def screen(self, *given: Any) -> Any:
            time.sleep(0.01)
            self.slept += 0.01
            return super().screen(*given)

    plan = Plan((LayerShape("o", 96, (48,)),), 12, chunk_sizes=(16,), tokens=(3,), ops=("shrink",))
    there, bench, begun = archive(tmp_path), Patient(), time.monotonic()
    agenda = schedule(plan.tasks(), there, DEVICE.limits)
    summary = Session(agenda, DEVICE, bench, Slow(), there, lambda _: None, threads=threads).run()
    took = time.monotonic() - begun
    assert bench.slept > 0.05
    assert 0.05 < summary.waiting <= took - bench.slept


@pytest.mark.parametrize("after", [1, 60, 200])
def test_ctrl_c_meets_no_thread_that_measures(tmp_path: Path, after: int) -> None:
    """It ends the run when what is being measured has come back; every measurement got the answer that was its own."""
    asked: list[object] = []

    def interrupt(screens: int) -> None:
        if screens == after:
            _thread.interrupt_main()
            time.sleep(0.5)
        asked.append(threading.current_thread())

    running = session(tmp_path, HashBench(stop=interrupt))
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert threading.main_thread() not in asked
    assert len(asked) <= after + 50  # the rest of a round on each thread
    assert not running._turns.deciding.locked()
    before = keys_on_disk(tmp_path)
    assert session(tmp_path, HashBench()).run().fresh == len(before) < len(PLAN.tasks())


def test_what_a_thread_raises_ends_the_run(tmp_path: Path) -> None:
    """Whichever of them it is; what was there is kept."""

    def fail(step: Step) -> None:
        if step.done == 5:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        session(tmp_path, HashBench(), report=fail).run()
    assert 0 < len(keys_on_disk(tmp_path)) < len(PLAN.tasks())


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    """Unless it is told to measure all again."""
    session(tmp_path, HashBench()).run()
    bench = HashBench()
    assert session(tmp_path, bench).run()[:4] == (0, len(PLAN.tasks()), 0, 0)
    assert bench.screens == 0
    forced = schedule(PLAN.tasks(), archive(tmp_path), DEVICE.limits, force=True)
    assert len(forced.tasks) == len(PLAN.tasks())


@pytest.mark.parametrize("after", [1, 50, 200])
def test_an_interrupted_run_is_continued(tmp_path: Path, after: int) -> None:
    """Ctrl-C at any moment leaves whole files; what they hold is not measured again, and the rest is."""

    def interrupt(screens: int) -> None:
        if screens == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, HashBench(stop=interrupt)).run()
    before = {path: records_of(path) for path in tmp_path.rglob("*.json")}
    summary = session(tmp_path, HashBench()).run()
    assert summary.fresh == sum(map(len, before.values()))
    assert summary.tuned == len(PLAN.tasks()) - summary.fresh
    assert Counter(keys_on_disk(tmp_path)) == Counter(task.key for task in PLAN.tasks())
    for path, kept in before.items():
        assert all(record in records_of(path) for record in kept)


def test_add_lora_alone_searches_its_parts_without_keeping_them(tmp_path: Path) -> None:
    """The parts are not asked for, so no record of them is written; they are not counted either."""
    plan = Plan(PLAN.layers, 12, chunk_sizes=(16,), tokens=(77,), adapters=(7,), ops=("add_lora",))
    summary = session(tmp_path, HashBench(), plan).run()
    assert summary[:4] == (2, 0, 0, 0)
    assert {key.op for key in keys_on_disk(tmp_path)} == {"add_lora"}


def test_add_lora_takes_its_parts_from_earlier_records(tmp_path: Path) -> None:
    """After a run for shrink and expand, only joint configs are timed."""
    only = {"layers": PLAN.layers, "max_rank": 12, "chunk_sizes": (16,), "tokens": (77,), "adapters": (7,)}
    session(tmp_path, HashBench(), Plan(**only, ops=("shrink", "expand"))).run()  # type: ignore[arg-type]
    joint = Plan(**only, ops=("add_lora",))  # type: ignore[arg-type]
    both = Plan(**only)  # type: ignore[arg-type]
    agenda = schedule(both.tasks(), archive(tmp_path), DEVICE.limits)
    assert [task.key.op for task in agenda.tasks] == ["add_lora"] * 2
    assert {part for task in joint.tasks() for part in parts(task.key)} == {task.key for task, _ in agenda.known}
    bench = HashBench()
    session(tmp_path, bench, both).run()
    assert bench.screens < 2 * 50


def test_a_key_without_a_working_config_is_told_and_left_out(tmp_path: Path) -> None:
    """The others are tuned; an add_lora key whose part has nothing falls back on its default."""
    steps: list[Step] = []
    bench = HashBench(broken=lambda key: key.op == "shrink" and key.input_dim == 96)
    summary = session(tmp_path, bench, report=steps.append).run()
    failed = {step.task.key for step in steps if step.record is None}
    assert failed == {task.key for task in PLAN.tasks() if task.key.op == "shrink" and task.key.input_dim == 96}
    assert summary.failed == len(failed)
    assert summary.tuned == len(PLAN.tasks()) - len(failed)


def test_the_time_budget_ends_a_run(tmp_path: Path) -> None:
    """What was done until then is kept, what is left is counted, and no further key is begun."""
    bench = HashBench(stop=lambda _: time.sleep(0.002))
    summary = session(tmp_path, bench).run(deadline=time.monotonic() + 0.5)
    assert summary.left > 0
    assert summary.tuned == len(keys_on_disk(tmp_path)) == len(PLAN.tasks()) - summary.left


def test_keys_that_are_far_apart_come_first() -> None:
    """In each family the corners lead; families take turns; no add_lora comes before its parts."""
    plan = Plan((LayerShape("o", 96, (48,)), LayerShape("gate_up", 96, (64, 64))), 12, tokens=(1, 64, 300, 4000))
    found = {task.key: task for task in plan.tasks()}
    ordered = agendas._in_order(found)
    assert {task.key for task in ordered} == set(found)
    for index, task in enumerate(ordered):
        if task.key.op == "add_lora":
            assert {*parts(task.key)} <= {other.key for other in ordered[:index]}
    kinds = [family(task.key) for task in ordered if task.key.op != "add_lora"]
    assert len(set(kinds[:4])) == 4
    leaders = [task.key for task in ordered if task.key.op == "expand" and len(task.key.slice_widths) == 1][:2]
    assert {key.segment_bucket for key in leaders if key.segment_bucket == 1} == {1}
    assert {key.chunk_size for key in leaders} == {16, 128}


def test_a_config_is_checked_once_for_all_buckets() -> None:
    """Right or wrong: the result does not depend on the number of segments."""
    calls: list[str] = []

    class Remote:
        def call(self, method: str, _: rules.Key, row: rules.Row, **_limit: float) -> float:
            """Answer for a worker."""
            calls.append(method)
            if row[0] == 32:
                raise Failure("WrongResult: wrong result")
            return 0.001

    bench = RemoteBench(Remote())  # type: ignore[arg-type]
    key = PLAN.tasks()[0].key
    good, bad = (16, 16, 64, 1, 1, 4, 2, None, False), (32, 16, 64, 1, 1, 4, 2, None, False)
    for bucket in (1, 8, 512):
        assert bench.check(key._replace(segment_bucket=bucket), good) == 0.001
        with pytest.raises(Failure, match="wrong result"):
            bench.check(key._replace(segment_bucket=bucket), bad)
    assert calls == ["check"] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tune_says_so(tmp_path: Path) -> None:
    """And touches no file."""
    with pytest.raises(RuntimeError, match="needs a GPU"):
        tuner.tune(PLAN, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_small_layer_is_tuned_from_end_to_end(tmp_path: Path) -> None:
    """On the GPU: compiled in other processes, checked, timed, and recorded with resources; nothing fails."""
    plan = Plan((LayerShape("o", 192, (64, 32)),), 24, chunk_sizes=(16,), tokens=(40,), adapters=(8,))
    summary = tuner.tune(plan, tmp_path, processes=4)
    assert summary[:4] == (3, 0, 0, 0)
    assert summary.measuring > 0
    for path in tmp_path.rglob("*.json"):
        document = checks.parse(path.read_text())
        assert raw_results.faults(document) == []
        (record,) = document["records"]
        assert record["default"] is not None
        assert record["accuracy"]["max_error"] > 0
        assert all(finalist["registers"] > 0 for finalist in record["finalists"])
    assert tuner.tune(plan, tmp_path)[:4] == (0, 3, 0, 0)


def test_a_search_measures_what_the_table_lends(tmp_path: Path) -> None:
    """Although it would never propose it: here 32 columns a step."""
    row = to_row(ShrinkConfig(16, 16, 32, num_stages=2))
    assert row[2] not in VALUES["shrink"]["block_k"]
    agenda = schedule(PLAN.tasks(), archive(tmp_path), DEVICE.limits)
    lends: Lent = lambda key: [row] if key.op == "shrink" else []  # noqa: E731
    Session(agenda, DEVICE, HashBench(), Farm(), archive(tmp_path), lambda _: None, lent=lends).run()
    found = [one for path in tmp_path.rglob("shrink*.json") for one in records_of(path)]
    assert len(found) == sum(task.key.op == "shrink" for task in PLAN.tasks())
    assert all(list(row) in [candidate for candidate, *_ in one["candidates"]] for one in found)


def test_the_table_lends_the_nearest_rows_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key's own comes first; nothing is lent to layers that are too far from all."""
    key = rules.Key("shrink", 1024, (), 16, 1, "bfloat16", 16, 8)
    rows = [to_row(ShrinkConfig(16, 16, 64 << step, num_stages=2)) for step in range(4)]
    buckets = {8: rows[0], 16: rows[1], 32: rows[0], 64: rows[2], 128: rows[3]}
    table = fallback.by_layer({key._replace(segment_bucket=bucket): row for bucket, row in buckets.items()})
    monkeypatch.setattr(dispatch, "tables", lambda: fallback.Tables({(HERE.gpu, HERE.triton): table}))
    lends = lent(HERE)
    assert list(lends(key)) == rows[:LENT]
    assert list(lends(key._replace(segment_bucket=128))) == [rows[3], rows[2], rows[0]]
    assert list(lends(key._replace(input_dim=2**24))) == []
