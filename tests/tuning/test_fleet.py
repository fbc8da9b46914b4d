"""A cluster's files are those of one machine, whatever becomes of its workers. The cluster here is one of CPUs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csgmv import checks, raw_results, rules
from csgmv.models import LayerShape
from csgmv.tuning import fleet
from csgmv.tuning.agenda import schedule
from csgmv.tuning.fleet import Node, split
from csgmv.tuning.plan import Plan, Task, parts
from csgmv.tuning.record import Archive
from csgmv.tuning.session import Session, Step
from csgmv.tuning.tuner import lent
from rigs import HERE, HashRig
from searching import Farm, HashBench

# As many kinds of keys as two workers get units: nothing that searches share is cut, so that every time is the same.
LAYERS = tuple(LayerShape(f"of {slices}", 96, (48,) * slices) for slices in (1, 2, 3, 4))
PLAN = Plan(LAYERS, 12, chunk_sizes=(16,), tokens=(3, 77))
EFFORT = 2
KEYS = [task.key for task in PLAN.tasks()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers on this machine; its address."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # workers find csgmv and the rig
        small = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        started = ray.init("local", **small, log_to_driver=False, logging_level="ERROR")
        yield started.address_info["gcs_address"]
    ray.shutdown()


def documents(folder: Path) -> dict[str, Any]:
    """Every file in the folder, all of them whole."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix == ".json"):
        found[path.name] = checks.parse(path.read_text())
        assert raw_results.faults(found[path.name]) == []
    return found


def keys_in(folder: Path) -> list[rules.Key]:
    return [result.key for document in documents(folder).values() for result in raw_results.results(document)]


def on_one_machine(folder: Path, fatal: tuple[int, int]) -> dict[str, Any]:
    """The files of a run that is interrupted at the same moment of the same keys, and of the one that goes on."""
    slices, screens = fatal

    def interrupt(count: int) -> None:
        if count == screens:
            raise KeyboardInterrupt

    def run(tasks: list[Task], bench: HashBench) -> None:
        store = Archive(folder, HERE.gpu, HERE.triton, HERE.run)
        agenda = schedule(tasks, store, HERE.device.limits)
        Session(agenda, HERE.device, bench, Farm(), store, lambda _: None, effort=EFFORT, lent=lent(HERE)).run()

    unit = [task for task in PLAN.tasks() if task.key.num_slices == slices]
    with pytest.raises(KeyboardInterrupt):
        run(unit, HashBench(stop=interrupt))
    assert bool(documents(folder)) == (screens > 1)
    run(unit, HashBench())  # by itself, as a worker does it: rows that are lent to several layers share binaries
    run(PLAN.tasks(), HashBench())
    return documents(folder)


def pids(traces: Path) -> set[int]:
    """The processes that worked."""
    return {int(path.name) for path in traces.iterdir() if path.name.isdigit()}


def wait_until_gone(gone: set[int], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while running := [pid for pid in gone if alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {running}"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("screens", [1, 150])
def test_a_lost_workers_unit_is_run_again(tmp_path: Path, traces: Path, screens: int) -> None:
    """A worker is killed at its start or in the middle; the files are those of one machine, to the last digit.

    What the lost worker had handed in is not measured again: every key is reported once.
    """
    steps: list[Step] = []
    fatal = (3, screens)
    summary = fleet.tune(PLAN, tmp_path / "fleet", report=steps.append, rig=HashRig(traces, fatal=fatal))
    victim = int((traces / "killed").read_text())
    assert victim in pids(traces)
    assert not alive(victim)
    assert summary[:4] == (len(KEYS), 0, 0, 0)
    assert summary.binaries > 0
    assert Counter(step.task.key for step in steps) == Counter(KEYS)
    assert [step.done for step in steps] == list(range(1, len(KEYS) + 1))
    assert {step.total for step in steps} == {len(KEYS)}
    assert documents(tmp_path / "fleet") == on_one_machine(tmp_path / "alone", fatal)


@pytest.mark.usefixtures("cluster")
def test_an_interrupt_ends_the_remote_work(tmp_path: Path, traces: Path) -> None:
    """Ctrl-C at this end: workers go, files are whole, and the same command goes on with the rest."""
    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.tune(PLAN, tmp_path / "fleet", report=report, rig=HashRig(traces, pause=0.003))
    at_work = pids(traces)
    assert at_work
    wait_until_gone(at_work)
    kept = keys_in(tmp_path / "fleet")
    assert len(kept) == 4
    summary = fleet.tune(PLAN, tmp_path / "fleet", rig=HashRig(traces))
    assert summary[:4] == (len(KEYS) - 4, 4, 0, 0)
    assert Counter(keys_in(tmp_path / "fleet")) == Counter(KEYS)
    assert fleet.tune(PLAN, tmp_path / "fleet", rig=HashRig(traces))[:4] == (0, len(KEYS), 0, 0)


@pytest.mark.usefixtures("cluster")
def test_the_time_budget_ends_the_remote_work(tmp_path: Path, traces: Path) -> None:
    """What was handed in until then is kept, and what is left is counted."""
    rig = HashRig(traces, pause=0.05)
    summary = fleet.tune(PLAN, tmp_path / "fleet", time_budget=6.0, rig=rig)
    assert summary.left > 0
    assert summary.tuned == len(keys_in(tmp_path / "fleet")) == len(KEYS) - summary.left
    wait_until_gone(pids(traces))


DRIVER = """
import sys
from pathlib import Path
from csgmv.models import LayerShape
from csgmv.tuning import fleet
from csgmv.tuning.plan import Plan
from rigs import HashRig

address, folder, traces = sys.argv[1:]
layers = tuple(LayerShape(f"of {slices}", 96, (48,) * slices) for slices in (1, 2, 3, 4))
plan = Plan(layers, 12, chunk_sizes=(16,), tokens=(3, 77))
rig = HashRig(Path(traces), pause=0.005)
fleet.tune(plan, Path(folder), address=address, rig=rig, report=lambda step: print(step.done, flush=True))
"""


def test_a_killed_driver_leaves_whole_files(tmp_path: Path, traces: Path, cluster: str) -> None:
    """The process that writes is killed: Ray ends its workers, and a new one goes on with the files."""
    folder = tmp_path / "fleet"
    command = [sys.executable, "-c", DRIVER, cluster, str(folder), str(traces)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        lines = [driver.stdout.readline() for _ in range(3)]
        driver.kill()
    assert lines == ["1\n", "2\n", "3\n"]
    wait_until_gone(pids(traces))
    kept = keys_in(folder)
    assert 3 <= len(kept) < len(KEYS)
    summary = fleet.tune(PLAN, folder, rig=HashRig(traces))
    assert summary[:4] == (len(KEYS) - len(kept), len(kept), 0, 0)
    assert Counter(keys_in(folder)) == Counter(KEYS)


@pytest.mark.usefixtures("cluster")
def test_a_unit_that_is_lost_for_good_is_told(tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are tuned, its keys are left, and what it had handed in is kept."""
    monkeypatch.setattr(fleet, "RETRIES", 0)
    with pytest.warns(RuntimeWarning, match="a unit of keys was lost: "):
        summary = fleet.tune(PLAN, tmp_path / "fleet", rig=HashRig(traces, fatal=(3, 150)))
    found = Counter(key.num_slices for key in keys_in(tmp_path / "fleet"))
    wanted = Counter(key.num_slices for key in KEYS)
    assert 0 < found[3] < wanted[3]
    assert found == {**wanted, 3: found[3]}
    assert (summary.tuned, summary.failed, summary.left) == (found.total(), 0, wanted[3] - found[3])


KINDS = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from csgmv.models import LayerShape
from csgmv.tuning import fleet
from csgmv.tuning.plan import Plan
from rigs import HashRig

folder, traces = map(Path, sys.argv[1:])
node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
head = {**node, "resources": {"accelerator_type:A": 1}, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(**node, resources={"accelerator_type:B": 1})
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
plan = Plan((LayerShape("o", 96, (48,)),), 12, chunk_sizes=(16,), tokens=(3, 77))
for _ in range(2):
    print(*fleet.tune(plan, folder, rig=HashRig(traces))[:4])
ray.shutdown()
cluster.shutdown()
"""


def test_each_gpu_model_has_files_of_its_own(tmp_path: Path, traces: Path) -> None:
    """Two nodes that differ: every key is measured on both, is kept under both names, and is fresh for both."""
    pytest.importorskip("ray")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KINDS, str(tmp_path / "fleet"), str(traces)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert (first[1:], second[0], second[2:]) == ((0, 0, 0), 0, (0, 0))
    assert first[0] == second[1] == 2 * len(set(keys_in(tmp_path / "fleet" / "a")))
    assert Counter(keys_in(tmp_path / "fleet" / "a")) == Counter(keys_in(tmp_path / "fleet" / "b"))
    for name in ("a", "b"):
        assert {document["gpu"] for document in documents(tmp_path / "fleet" / name).values()} == {name.upper()}


@pytest.mark.usefixtures("cluster")
def test_nodes_that_cannot_take_part_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are nodes with other kernels than ours; no file is touched."""
    with pytest.raises(ValueError, match="cluster: expected nodes with a GPU, got none among 1 nodes"):
        fleet.tune(PLAN, tmp_path / "fleet")
    monkeypatch.setattr(fleet, "kernel_hash", lambda: "sha256:" + "0" * 64)
    with pytest.raises(ValueError, match=r"expected the kernels of this csgmv, sha256:00000000…, on every node, got"):
        fleet.tune(PLAN, tmp_path / "fleet", rig=HashRig(tmp_path))
    assert not (tmp_path / "fleet").exists()


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is imported for a cluster only."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs ray: pip install 'csgmv\[fleet\]'"):
        fleet.tune(PLAN, tmp_path)


def test_units_keep_together_what_shares() -> None:
    """Kinds first; then the largest are cut between chunk sizes and buckets, an add_lora and its parts never."""
    layers = (*LAYERS, LayerShape("o", 176, (48,)))
    tasks = Plan(layers, 12, chunk_sizes=(16, 32, 64), tokens=(1, 8, 77, 900)).tasks()
    whole = split(tasks, 1)
    assert [{task.key.num_slices for task in unit} for unit in whole] == [{1}, {2}, {3}, {4}]
    for number in (5, 13, 10_000):
        units = split(tasks, number)
        assert len(units) >= min(number, 13)
        assert [len(unit) for unit in units] == sorted(map(len, units), reverse=True)
        assert Counter(task for unit in units for task in unit) == Counter(tasks)
        for unit in units:
            keys = {task.key for task in unit}
            assert len({key.num_slices for key in keys}) == 1
            assert all({*parts(key)} <= keys for key in keys if key.op == "add_lora")
        if number == 13:
            assert max(map(len, units)) <= len(tasks) / 6
    assert split([], 4) == []


def node(gpu: str, workers: int, *kinds: str, triton: str = "3.6.0", **run: str) -> Node:
    site = HERE._replace(gpu=gpu, triton=triton, run=dataclasses.replace(HERE.run, **run))
    return Node({"CPU": workers, **{f"accelerator_type:{kind}": 1.0 for kind in kinds}}, site)


def test_gpu_models_get_the_plan_each(traces: Path) -> None:
    """Nodes of one model make one post, which is named to Ray only where there are others."""
    rig = HashRig(traces)
    (alone,) = fleet._posts([node("A", 2), node("A", 3, "X", driver="2")], rig)
    assert (alone.workers, alone.resources, len(alone.sites)) == (5, {}, 2)
    first, second = fleet._posts([node("A", 2, "X"), node("B", 1, "Y"), node("A", 1, "X", "Z")], rig)
    assert (first.workers, first.resources) == (3, {"accelerator_type:X": 0.001})
    assert (second.workers, second.resources) == (1, {"accelerator_type:Y": 0.001})
    for other in (node("B", 1), node("B", 1, "X"), node("A", 1, "X", triton="3.7.0")):
        with pytest.raises(ValueError, match=r"expected an accelerator type of their own on the nodes with [AB] and"):
            fleet._posts([node("A", 2, "X"), other], rig)


@pytest.mark.gpu
def test_a_gpu_of_a_cluster_is_tuned(tmp_path: Path) -> None:
    """The command, a cluster of this machine's own, the real rig in Ray's worker: records, each with its resources."""
    pytest.importorskip("ray")
    shape = ("--layer", "o:192:64", "--rank", "24", "--chunk-sizes", "16", "--tokens", "40", "--adapters", "8")
    command = [sys.executable, "-m", "csgmv", "tune", *shape, "--ray", "local", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 keys tuned" in done.stdout
    assert len(keys_in(tmp_path)) == 3
    for document in documents(tmp_path).values():
        assert all(finalist["registers"] > 0 for record in document["records"] for finalist in record["finalists"])
