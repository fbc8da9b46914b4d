"""Raw results on disk: one file for a GPU, a Triton version, an operation and its dimensions; one record a key.

A file is read, given one record more and replaced as a whole, so that it is complete whenever the tuner is killed.
configs/README.md explains the fields.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csgmv import checks, fallback, files, raw_results, rules, schemas
from csgmv.baking.collect import Collected
from csgmv.kernel_hash import same_kernels
from csgmv.tuning.plan import Task


@dataclass(frozen=True)
class Timing:
    """A config timed at length: microseconds, and launches timed."""

    row: rules.Row
    p20_us: float
    p50_us: float
    p80_us: float
    samples: int


@dataclass(frozen=True)
class Finalist(Timing):
    """One of the fastest few, with what its kernels take: bytes, registers a thread, words spilled."""

    shared_bytes: int
    registers: int
    spills: int


@dataclass(frozen=True)
class Accuracy:
    """The check that every candidate passed: batches, and the largest error as a share of the largest value."""

    cases: int
    max_error: float
    tolerance: float


@dataclass(frozen=True)
class Record:
    """All that was measured at one key.

    A candidate is (row, median microseconds, launches timed, stopped early). A batch is (tokens, adapters,
    num_segments, the default's microseconds, the winner's): those that look up this key, of which the first `tuned_on`
    decided. `tokens`, `adapters` and `num_segments` are the first one's.
    """

    chunk_size: int
    segment_bucket: int
    tokens: int
    adapters: int
    num_segments: int
    default: Timing | None
    candidates: Sequence[tuple[rules.Row, float, int, bool]]
    finalists: Sequence[Finalist]
    pruned: Mapping[str, int]
    failed: Mapping[str, int]
    accuracy: Accuracy
    noise_us: float
    batches: Sequence[tuple[int, int, int, float | None, float | None]]
    tuned_on: int = 1


@dataclass(frozen=True)
class Race:
    """Rows timed in turn at full length after the record was made, each with its median microseconds.

    The record's winner is one of them; `samples` are the launches timed of each.
    """

    samples: int
    times: Sequence[tuple[rules.Row, float]]


@dataclass(frozen=True)
class Run:
    """Where and with what a record was measured."""

    compute_capability: str
    sm_count: int
    driver: str
    cuda: str
    torch: str
    csgmv: str
    kernel_hash: str
    seed: int
    date: str
    l2: str


def name(gpu: str, triton: str, key: rules.Key) -> Path:
    """The file of a key, in a folder of raw results. It is for people; programs read the facts inside."""
    widths = "+".join(map(str, key.slice_widths))
    dims = {
        "shrink": f"k{key.input_dim}-s{key.num_slices}",
        "expand": f"n{widths}",
        "add_lora": f"k{key.input_dim}-n{widths}",
    }[key.op]
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return Path(slug, f"triton-{triton}", f"{key.op}-{dims}-r{key.max_rank}-{key.dtype}.json")


def check_places(folder: Path, collected: Collected, where: fallback.Head) -> None:
    """Whether each result of one GPU and Triton version is in the file that the tuner writes its key's record to.

    What is added to a record, or takes its place, goes to that file.

    Raises:
        ValueError: one is in another.
    """
    for file, result in collected.found:
        if (result.gpu, result.triton) == where and Path(file) != name(*where, result.key):
            raise ValueError(
                f"{folder / file}: expected the name {name(*where, result.key)}, as the tuner gives it; "
                f"`csgmv merge {folder} --out {folder}` does"
            )


def empty(gpu: str, triton: str, key: rules.Key) -> dict[str, Any]:
    """A file of this key's shape, yet without runs and records."""
    return {
        "schema": schemas.SCHEMA,
        "gpu": gpu,
        "triton": triton,
        "op": key.op,
        "input_dim": key.input_dim,
        "slice_widths": list(key.slice_widths),
        "max_rank": key.max_rank,
        "num_slices": key.num_slices,
        "dtype": key.dtype,
        "fields": list(rules.FIELD_NAMES[key.op]),
        "runs": [],
        "records": [],
    }


_FREE = ("csgmv", "date", "seed", "kernel_hash")  # what of a run may differ, or is compared otherwise, in fresh records


class Archive:
    """The raw results of one GPU and Triton version in a folder, as far as they are read and written by one run."""

    def __init__(self, folder: Path, gpu: str, triton: str, run: Run, *others: Run) -> None:
        """`folder` is the configs folder; files appear in it as records come in.

        Records of the `others` count as fresh, too: of further machines that take part.
        """
        self._folder, self._gpu, self._triton, self._run = folder, gpu, triton, run
        self._current = [run, *others]
        self._documents: dict[rules.Key, dict[str, Any]] = {}

    def path(self, key: rules.Key) -> Path:
        """The file of a key."""
        return self._folder / name(self._gpu, self._triton, key)

    def fresh(self, task: Task) -> dict[str, Any] | None:
        """The key's record as it is in the file, if it was measured on these batches in this environment; else None."""
        record = self._record(task.key)
        if record is None:
            return None
        measured = {(tokens, adapters) for tokens, adapters, *_ in record["batches"]}
        wanted = {(batch.tokens, batch.adapters) for batch in task.batches}
        same = wanted <= measured and self._is_current(self._document(task.key)["runs"][record["run"]])
        return record if same else None

    def add(self, key: rules.Key, record: Record, run: Run | None = None) -> None:
        """Put a record in its file, in place of an older one of the same key; `run` None is the archive's own."""
        document = self._document(key)
        runs: list[dict[str, Any]] = document["runs"]
        ours = dataclasses.asdict(run or self._run)
        if ours not in runs:
            runs.append(ours)
        bucket = (record.chunk_size, record.segment_bucket)
        kept = [old for old in document["records"] if (old["chunk_size"], old["segment_bucket"]) != bucket]
        new = {"run": runs.index(ours), **_plain(dataclasses.asdict(record)), "races": []}
        document["records"] = sorted([*kept, new], key=lambda old: (old["chunk_size"], old["segment_bucket"]))
        self._write(key, document, new)

    def add_race(self, key: rules.Key, race: Race) -> None:
        """Give a key's record one race more; all else of it stays as it is, and so do the races that it has.

        Raises:
            ValueError: the key's file has no record of it.
        """
        document, record = self._document(key), self._record(key)
        if record is None:
            raise ValueError(f"{self.path(key)}: expected a record of {key}, got none")
        runs: list[dict[str, Any]] = document["runs"]
        ours = dataclasses.asdict(self._run)
        if ours not in runs:
            runs.append(ours)
        record["races"].append({"run": runs.index(ours), **_plain(dataclasses.asdict(race))})
        record["races"].sort(key=lambda one: race_order(one, runs[one["run"]]))
        self._write(key, document, record)

    def raced(self, key: rules.Key) -> set[rules.Row]:
        """The rows that took part in races of the key's record in this environment."""
        runs = self._document(key)["runs"]
        current = [
            race for race in (self._record(key) or {"races": ()})["races"] if self._is_current(runs[race["run"]])
        ]
        return {tuple(row) for race in current for row, _ in race["times"]}

    def _record(self, key: rules.Key) -> dict[str, Any] | None:
        """The key's record as it is in the file."""
        bucket = (key.chunk_size, key.segment_bucket)
        there: list[dict[str, Any]] = self._document(key)["records"]
        return next((one for one in there if (one["chunk_size"], one["segment_bucket"]) == bucket), None)

    def _write(self, key: rules.Key, document: dict[str, Any], new: dict[str, Any]) -> None:
        """Replace the key's file; of its records all but the new one have been checked when they were read or added."""
        _drop_unused_runs(document)
        path = self.path(key)
        faults = raw_results.faults(checks.parse(text({**document, "records": [new]})))
        assert not faults, f"{path}: a record of the tuner's own breaks the schema: {faults}"
        files.replace(path, text(document))

    def _document(self, key: rules.Key) -> dict[str, Any]:
        """The parsed file of a key, or a new one.

        Raises:
            ValueError: there is a file, and it is broken.
        """
        shape = key._replace(chunk_size=1, segment_bucket=1)
        if shape not in self._documents:
            path = self.path(key)
            self._documents[shape] = _read(path) if path.exists() else empty(self._gpu, self._triton, key)
        return self._documents[shape]

    def _is_current(self, run: Mapping[str, Any]) -> bool:
        return any(
            same_kernels(run["kernel_hash"], ours.kernel_hash)
            and all(run[name] == value for name, value in dataclasses.asdict(ours).items() if name not in _FREE)
            for ours in self._current
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = checks.parse(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; move it away to tune afresh") from None
    if faults := raw_results.faults(document):
        raise ValueError("\n".join(f"{path}: {fault}" for fault in faults) + "\nmove it away to tune afresh")
    return schemas.upgraded(document)


def race_order(race: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, str]:
    """What a record's races are sorted by: their day, then their content, so that every way to a file is the same."""
    return run["date"], json.dumps([{**race, "run": 0}, run], sort_keys=True)


def _drop_unused_runs(document: dict[str, Any]) -> None:
    timed = [one for record in document["records"] for one in (record, *record["races"])]
    used = sorted({one["run"] for one in timed})
    document["runs"] = [document["runs"][index] for index in used]
    for one in timed:
        one["run"] = used.index(one["run"])


def rounded(value: float) -> float:
    """To a hundredth or to four digits, whichever is finer: what lies beyond is noise."""
    return round(value, 2) if value >= 1 else float(f"{value:.4g}")


def _plain(value: Any) -> Any:
    """What JSON holds, with numbers rounded."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


# How many levels of a field are broken into lines.
_DEPTH = {"records": 2, "runs": 1, "candidates": 1, "finalists": 1, "races": 2, "times": 1}  # batches are short


def text(document: Mapping[str, Any]) -> str:
    """JSON with one candidate, one finalist or one other field a line."""

    def lines(value: Any, indent: str, depth: int) -> str:
        if depth == 0 or not isinstance(value, (dict, list)) or not value:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":") if depth == 0 else None)
        inner = indent + " "
        if isinstance(value, dict):
            body = [
                f"{inner}{json.dumps(name)}: {lines(item, inner, _DEPTH.get(name, 0))}" for name, item in value.items()
            ]
        else:
            body = [inner + lines(item, inner, depth - 1) for item in value]
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        return f"{opening}\n" + ",\n".join(body) + f"\n{indent}{closing}"

    return lines(document, "", 1) + "\n"
