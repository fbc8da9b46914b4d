"""A run of the tuner on every GPU of a Ray cluster: units of keys are Ray tasks, and this process writes the files.

Ray gives a unit to whichever GPU is free, and runs it again when its process or node is lost. What a unit has measured
is handed in key by key and written here, so that the files are those of a run on one machine, and whole at any moment.
A unit that is run again goes on after what it handed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from csgmv import rules
from csgmv.kernel_hash import kernel_hash
from csgmv.tuning.agenda import Agenda, schedule
from csgmv.tuning.plan import Keys, Plan, Task, family
from csgmv.tuning.record import Archive, Record
from csgmv.tuning.rig import Gpu, Rig, Site, spare_processes
from csgmv.tuning.session import Report, Session, Step, Summary
from csgmv.tuning.tuner import lent

UNITS_A_WORKER = 2  # at least, where there are keys for so many: who is done early takes another
RETRIES = 3  # of a unit whose worker is lost
_POLL_SECONDS = 0.5
_ACCELERATOR = "accelerator_type:"  # what Ray's resources call a node's GPU model


def tune(
    plan: Plan | Keys,
    folder: Path,
    *,
    address: str | None = None,
    force: bool = False,
    time_budget: float | None = None,
    processes: int | None = None,
    seed: int = 0,
    report: Report = lambda _: None,
    rig: Rig | None = None,
) -> Summary:
    """Find the best config of every key in the plan, on each GPU model of a Ray cluster, and put it into `folder`.

    Every node needs csgmv with these kernels. Where GPU models or Triton versions differ among the nodes, the plan is
    tuned on each; a record is always kept under the name and the environment of the GPU that measured it.

    Args:
        plan, folder, force, time_budget, seed, report: see tuner.tune. What is under way when the time is up is ended.
        address: of the cluster, as `ray.init` takes it; None is the cluster that this process or machine belongs to,
            or else a new one of this machine alone.
        processes: that compile for each GPU; None for the node's processors, shared among its GPUs, but two each.
        rig: what tunes on a worker; None is its GPU.

    Returns:
        As tuner.tune; seconds are summed over the units that ended. Keys of units that were lost for good are left.

    Raises:
        ValueError: the plan is empty or impossible, a file in the folder is broken, no node has a GPU, a node has
            other kernels, or Ray cannot tell GPU models apart.
        ImportError: ray is missing (the extra `fleet` has it).
        ConnectionError: there is no cluster at the address.
    """
    ray, started = _ray(), time.monotonic()
    rig = Gpu() if rig is None else rig
    with _connected(ray, address):
        posts = _posts(_nodes(ray, rig, seed), rig)
        run = _Run(ray, rig, Options(force, seed, processes), report)
        run.submit([_Ledger(folder, post, plan.tasks(), force) for post in posts])
        return run.finish(None if time_budget is None else started + time_budget)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("tuning on a Ray cluster needs ray: pip install 'csgmv[fleet]'") from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


class Node(NamedTuple):
    """A node of the cluster: its resources by Ray's names, and what a rig found there."""

    resources: Mapping[str, float]
    site: Site


class Post(NamedTuple):
    """Nodes that measure the same: the sites of each, workers on them, and the resources that lead a unit to them."""

    sites: tuple[Site, ...]
    workers: int
    resources: Mapping[str, float]


class Options(NamedTuple):
    """What of a run's options concerns every unit."""

    force: bool
    seed: int
    processes: int | None


def _nodes(ray: Any, rig: Rig, seed: int) -> list[Node]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(rig.resource, 0) >= 1]
    if not there:
        raise ValueError(f"cluster: expected nodes with a {rig.resource}, got none among {len(ray.nodes())} nodes")
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in there]
    surveys = [ray.remote(**_takes(rig), scheduling_strategy=place)(_survey).remote(rig, seed) for place in pinned]
    try:
        sites, ours = ray.get(surveys), kernel_hash()
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"cluster: expected csgmv and a GPU that works on every node, got: {_last_line(error)}"
        ) from error
    for node, site in zip(there, sites):
        if site.run.kernel_hash != ours:
            raise ValueError(
                f"cluster: expected the kernels of this csgmv, {ours[:15]}…, on every node, got "
                f"{site.run.kernel_hash[:15]}… (csgmv {site.run.csgmv}) on {node['NodeManagerAddress']}"
            )
    return [Node(node["Resources"], site) for node, site in zip(there, sites)]


def _takes(rig: Rig) -> dict[str, int]:
    """The option of a Ray task that takes what a rig needs."""
    return {f"num_{rig.resource.lower()}s": 1}


def _survey(rig: Rig, seed: int) -> Site:
    return rig.survey(seed)


def _posts(nodes: Sequence[Node], rig: Rig) -> list[Post]:
    """The nodes, grouped by GPU and Triton version.

    Raises:
        ValueError: there are several groups, and Ray's accelerator types do not tell them apart.
    """
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        groups.setdefault((node.site.gpu, node.site.triton), []).append(node)
    kinds = {
        name: [frozenset(kind for kind in node.resources if kind.startswith(_ACCELERATOR)) for node in members]
        for name, members in groups.items()
    }
    posts = []
    for name, members in groups.items():
        common = frozenset.intersection(*kinds[name])
        elsewhere = frozenset[str]().union(*(kind for other in kinds if other != name for kind in kinds[other]))
        own = sorted(common - elsewhere)
        if len(groups) > 1 and not own:
            raise ValueError(
                f"cluster: expected an accelerator type of their own on the nodes with {name[0]} and Triton {name[1]}, "
                f"since others differ, got {sorted(common) or 'none'}; start these nodes with --resources "
                f"""'{{"{_ACCELERATOR}NAME": 1}}', or tune on a cluster of one kind at a time"""
            )
        sites = dict.fromkeys(node.site for node in members)
        workers = sum(int(node.resources[rig.resource]) for node in members)
        posts.append(Post(tuple(sites), workers, {own[0]: 0.001} if len(groups) > 1 else {}))
    return posts


def split(tasks: Sequence[Task], number: int) -> list[list[Task]]:
    """Cut tasks into units: as few as can be, but `number` of them if there are keys for so many; the largest first.

    Operations, layers and batches of one number of slices share binaries, experience and rankings, and stay together;
    the largest units are cut in two until there are enough, between chunk sizes and segment buckets. An add_lora and
    its parts always stay together.
    """
    units: dict[rules.Key, dict[rules.Key, list[Task]]] = {}
    for task in tasks:
        batch = task.key._replace(op="", input_dim=0, slice_widths=())
        units.setdefault(_kind(task.key), {}).setdefault(batch, []).append(task)
    pieces = [[of_kind[batch] for batch in sorted(of_kind)] for of_kind in units.values()]
    while len(pieces) < number and (whole := max(pieces, key=len, default=[]))[1:]:
        pieces.remove(whole)
        pieces += whole[: len(whole) // 2], whole[len(whole) // 2 :]
    found = [{task.key for part in piece for task in part} for piece in pieces]
    return sorted(([task for task in tasks if task.key in keys] for keys in found), key=len, reverse=True)


def _kind(key: rules.Key) -> rules.Key:
    """What keys have in common whose searches learn from each other, directly or by way of an add_lora's parts."""
    return family(key)._replace(op="")


class _Ledger:
    """The files of one post, and what there is to do for them."""

    def __init__(self, folder: Path, post: Post, tasks: Sequence[Task], force: bool) -> None:
        first, *others = post.sites
        self.post, self._folder = post, folder
        self._archives: dict[tuple[str, str], Archive] = {}
        archive = self._archive(first, *others)
        self.agenda: Agenda = schedule(tasks, archive, first.device.limits, force)
        self.wanted = [task for task in tasks if task.key in self.agenda.wanted]
        self.known = [(task, record) for task, _ in self.agenda.known if (record := archive.fresh(task)) is not None]

    def add(self, site: Site, key: rules.Key, record: Record) -> None:
        """Keep a record under the name and the environment of where it was measured."""
        self._archive(site).add(key, record, site.run)

    def _archive(self, site: Site, *others: Site) -> Archive:
        name = site.gpu, site.triton
        if name not in self._archives:
            self._archives[name] = Archive(self._folder, *name, site.run, *(other.run for other in others))
        return self._archives[name]


class _Unit(NamedTuple):
    """Keys that one worker tunes: their tasks, and the records of earlier runs that its searches can learn from."""

    number: int
    tasks: Sequence[Task]
    known: Sequence[tuple[Task, Mapping[str, Any]]]
    effort: int


class _Result(NamedTuple):
    """A key that is done."""

    unit: int
    task: Task
    record: Record | None
    site: Site


class _Desk:
    """A Ray actor: where units hand in what they have measured."""

    def __init__(self) -> None:
        self._results: list[_Result] = []

    def hand_in(self, result: _Result) -> None:
        self._results.append(result)

    def since(self, index: int) -> list[_Result]:
        return self._results[index:]

    def of(self, unit: int) -> list[_Result]:
        return [result for result in self._results if result.unit == unit]


class _Known:
    """The records that a unit knows. See agenda.Store."""

    def __init__(self, records: Mapping[rules.Key, Mapping[str, Any]]) -> None:
        self._records = dict(records)

    def fresh(self, task: Task) -> Mapping[str, Any] | None:
        return self._records.get(task.key)

    def add(self, key: rules.Key, record: Record) -> None:
        self._records[key] = dataclasses.asdict(record)


def _work(rig: Rig, unit: _Unit, options: Options, desk: Any) -> Summary:
    """Tune a unit, in a process of Ray's; what an earlier one that was lost has handed in is not measured again."""
    ray = _ray()
    site = rig.survey(options.seed)
    store = _Known({task.key: record for task, record in unit.known})
    for result in ray.get(desk.of.remote(unit.number)):
        if result.record is not None:
            store.add(result.task.key, result.record)
    agenda = schedule([*(task for task, _ in unit.known), *unit.tasks], store, site.device.limits)

    def report(step: Step) -> None:
        ray.get(desk.hand_in.remote(_Result(unit.number, step.task, step.record, site)))

    own = ray.get_runtime_context().get_node_id()
    (rigs,) = (int(node["Resources"][rig.resource]) for node in ray.nodes() if node["NodeID"] == own)
    with rig.opened(options.seed, options.processes or spare_processes(rigs)) as (bench, farm):
        lends, threads = lent(site), rig.threads
        return Session(agenda, site.device, bench, farm, store, report, unit.effort, lends, threads).run()


class _Run:
    """The driver's side: submits units, and writes down what they hand in."""

    def __init__(self, ray: Any, rig: Rig, options: Options, report: Report) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._rig, self._options, self._report = ray, rig, options, report
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()
        self._units: list[tuple[_Ledger, _Unit]] = []
        self._pending: list[Any] = []
        self._ended: list[Summary] = []
        self._done: set[tuple[int, rules.Key]] = set()
        self._seen = self._failed = self._fresh = 0

    def submit(self, ledgers: Sequence[_Ledger]) -> None:
        """Make the units of every ledger, and hand them to Ray."""
        for ledger in ledgers:
            self._fresh += ledger.agenda.fresh
            work = self._ray.remote(**_takes(self._rig), resources=ledger.post.resources, max_retries=RETRIES)(_work)
            for tasks in split(ledger.wanted, UNITS_A_WORKER * ledger.post.workers):
                shared = [(task, record) for task, record in ledger.known if _kind(task.key) == _kind(tasks[0].key)]
                unit = _Unit(len(self._units), tasks, shared, ledger.agenda.effort())
                self._units.append((ledger, unit))
                self._pending.append(work.remote(self._rig, unit, self._options, self._desk))

    def finish(self, deadline: float | None) -> Summary:
        """Wait until every unit has ended or the monotonic clock has passed the deadline; then end all remote work."""
        try:
            while self._pending and (deadline is None or time.monotonic() < deadline):
                ended, self._pending = self._ray.wait(self._pending, timeout=_POLL_SECONDS)
                self._collect()
                for unit in ended:
                    self._close(unit)
            self._collect()
        finally:
            for unit in self._pending:
                self._ray.cancel(unit, force=True)
            self._ray.kill(self._desk)
        total, done = self._total(), len(self._done)
        return Summary(
            done - self._failed,
            self._fresh,
            self._failed,
            total - done,
            sum(summary.binaries for summary in self._ended),
            sum(summary.measuring for summary in self._ended),
            sum(summary.waiting for summary in self._ended),
        )

    def _total(self) -> int:
        return sum(len(unit.tasks) for _, unit in self._units)

    def _collect(self) -> None:
        results = self._ray.get(self._desk.since.remote(self._seen))
        self._seen += len(results)
        for result in results:
            place = result.unit, result.task.key
            if place in self._done:  # handed in without a record, and again by the unit's second run
                continue
            self._done.add(place)
            if result.record is None:
                self._failed += 1
            else:
                self._units[result.unit][0].add(result.site, result.task.key, result.record)
            self._report(Step(result.task, result.record, len(self._done), self._total()))

    def _close(self, unit: Any) -> None:
        """Take a unit's summary; one that was lost for good leaves its keys to the next run."""
        try:
            self._ended.append(self._ray.get(unit))
        except self._ray.exceptions.RayError as error:
            warnings.warn(f"a unit of keys was lost: {_last_line(error)}", RuntimeWarning, stacklevel=4)


def _last_line(error: Exception) -> str:
    """Where Ray's messages, which begin with a traceback, say what happened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
