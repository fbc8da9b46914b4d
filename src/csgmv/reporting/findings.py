"""What a page on raw results tells: each key's record with what follows from it, by GPU and Triton version."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from csgmv import checks, fallback, records, rules, schemas, show, workload
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect


class Bandwidth(NamedTuple):
    """Bytes per second that a floor is computed with, and where that number comes from."""

    bytes_per_s: float
    source: str


@dataclass(frozen=True)
class Finding:
    """One key: what is chosen from its record, and the record itself.

    Attributes:
        result: what the codegen reads of the record.
        record, run: the record and its run as configs/README.md describes them, of today's schema.
    """

    result: records.Result
    record: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def key(self) -> rules.Key:
        """What the record is stored under."""
        return self.result.key

    @functools.cached_property
    def winner(self) -> Mapping[str, Any] | None:
        """The finalist that won, with its percentiles and resources."""
        best = records.winner(self.result)
        return next((each for each in self.record["finalists"] if best and tuple(each["row"]) == best.row), None)

    @functools.cached_property
    def baked(self) -> rules.Row | None:
        """The row that the table gets, or None for the default."""
        return records.baked_row(self.result)

    @property
    def served_us(self) -> float:
        """Microseconds of a launch with what the table has."""
        if self.result.default is not None and self.baked is None:
            return self.result.default.p50_us
        best = records.winner(self.result)
        assert best is not None, "a record without a default has a finalist"
        return best.p50_us

    @property
    def speedup(self) -> float | None:
        """The default's time over the table's: 1 where the default is kept, None where it does not run."""
        return self.result.default and self.result.default.p50_us / self.served_us

    @property
    def noise(self) -> float | None:
        """Spread of the default's repeated medians as a share of its time; None where it does not run."""
        return self.result.default and self.result.noise_us / self.result.default.p50_us

    def moved_bytes(self, tokens: int, adapters: int) -> int:
        """Bytes that a launch on such a batch must move at least; all adapters have rows, and max_rank."""
        key = self.key
        widths = key.slice_widths or (0,) * key.num_slices  # a shrink's cost does not depend on them
        active = [(key.max_rank, tokens), *[(key.max_rank, 0)] * (adapters - 1)]  # who has which rows is all the same
        return workload.moved_bytes(key.op, key.input_dim, widths, active, rules.DTYPE_BYTES[key.dtype])

    def floor_us(self, bandwidth: Bandwidth) -> float:
        """Microseconds that the bytes take which must move: as times are, the geometric mean over what decided."""
        deciding = self.result.batches[: self.result.tuned_on]
        moved = [self.moved_bytes(batch.tokens, batch.adapters) for batch in deciding]
        return statistics.geometric_mean(moved) / bandwidth.bytes_per_s * 1e6

    def share(self, bandwidth: Bandwidth) -> float:
        """The floor as a share of what the table's launch takes: 1 is as fast as the memory."""
        return self.floor_us(bandwidth) / self.served_us

    def slower_batches(self) -> Iterator[tuple[records.BatchTimes, float]]:
        """Batches on which the baked row loses to the default by more than the noise, each with default ÷ winner."""
        for batch in self.result.batches if self.baked is not None else ():
            default_us, winner_us = batch.default_us, batch.winner_us
            if default_us is None or winner_us is None:
                continue
            if winner_us - default_us > records.told_apart_us(default_us, self.result.noise_us):
                yield batch, default_us / winner_us


@dataclass(frozen=True)
class Chapter:
    """All that counts of one GPU under one Triton version, in the order of keys."""

    gpu: str
    triton: str
    findings: Sequence[Finding]
    bandwidth: Bandwidth

    @property
    def ops(self) -> list[str]:
        """The operations that there are results of."""
        return [op for op in rules.OPS if any(finding.key.op == op for finding in self.findings)]

    def layers(self, op: str) -> dict[str, list[Finding]]:
        """An operation's findings by dimensions and rank, and by dtype where there are several."""
        several = len({finding.key.dtype for finding in self.findings}) > 1
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.key.op == op:
                name = dimensions(finding.key) + (f" {finding.key.dtype}" if several else "")
                found.setdefault(name, []).append(finding)
        return found


class Book(NamedTuple):
    """Everything read: what counts, chapter by chapter, and how the raw results relate to the installed table.

    `lost` counts measurements that lost to a better one of the same key; `digest` is of all files read.
    """

    path: Path
    chapters: list[Chapter]
    digest: str
    lost: int


def dimensions(key: rules.Key) -> str:
    """What a key's operation maps from and to."""
    return rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)


def key_text(key: rules.Key) -> str:
    """A key for people."""
    segments = "1 segment" if key.segment_bucket == 1 else f"{show.bucket_text(key.segment_bucket)} segments"
    return f"{key.op} {dimensions(key)}, {key.dtype}, chunk {key.chunk_size}, {segments}"


def bench_bandwidth(path: Path, gpu: str) -> Bandwidth:
    """What a device-to-device copy moved in a run of `csgmv bench --json` on this GPU.

    Raises:
        ValueError: the file is none of these, or of another GPU.
        OSError: it cannot be read.
    """
    try:
        measured = checks.parse(path.read_text(encoding="utf-8"))
        there, bandwidth = measured["gpu"], measured["copy_bandwidth"]
        valid = not any(checks.number(most=1e15)(bandwidth, "$.copy_bandwidth"))
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(f"--bench: expected what `csgmv bench --json` wrote, with gpu and copy_bandwidth, got {path}")
    if there != gpu:
        raise ValueError(f"--bench: expected figures of {gpu}, got those of {there!r} in {path}; --gpu chooses one")
    return Bandwidth(float(bandwidth), f"of a device-to-device copy, measured by csgmv bench ({path.name})")


def fastest_rate(findings: Iterable[Finding]) -> Bandwidth:
    """The most bytes per second that any launch in the results moved: what the memory is known to do at least."""
    rates = [
        (finding.moved_bytes(batch.tokens, batch.adapters) / time * 1e6, finding.key, batch.tokens)
        for finding in findings
        for batch in finding.result.batches
        if (time := batch.winner_us or batch.default_us) is not None
    ]
    rate, key, tokens = max(rates)
    launch = f"{key_text(key)}, {tokens:,} tokens"
    return Bandwidth(rate, f"that of the fastest launch in these results ({launch}); --bench takes that of a copy")


def _findings(
    documents: Mapping[str, Mapping[str, Any]], pairs: Iterable[tuple[str, records.Result]]
) -> Iterator[Finding]:
    """Each result with its record."""
    current = {file: schemas.upgraded(document) for file, document in documents.items()}
    there = {
        (file, record["chunk_size"], record["segment_bucket"]): record
        for file, document in current.items()
        for record in document["records"]
    }
    for file, result in pairs:
        record = there[file, result.key.chunk_size, result.key.segment_bucket]
        yield Finding(result, record, current[file]["runs"][record["run"]])


def read(path: Path, gpu: str | None = None, *, bandwidth: float | None = None, bench: Path | None = None) -> Book:
    """Read a file or folder of raw results; of two records of a key the one that a build takes counts.

    Args:
        path: as `collect` takes it.
        gpu: only GPUs whose name contains this, in any case; None is all.
        bandwidth: bytes per second of the GPU's memory.
        bench: a file that `csgmv bench --json` wrote, which has it. Without either the fastest launch's rate is taken.

    Raises:
        ValueError: with every fault of every file; there is no result, or none of such a GPU; `bandwidth` is given for
            several GPUs; `bench` is malformed or of another GPU.
    """
    collected = collect(path)
    choice = choose(collected.found)
    counted = {id(result) for result in choice.results}
    pairs = [(found.file, found.result) for found in collected.found if id(found.result) in counted]
    by_head: dict[fallback.Head, list[Finding]] = {head: [] for head in choice.table}
    for finding in _findings(collected.documents, pairs):
        by_head[finding.result.gpu, finding.result.triton].append(finding)
    wanted = {head: found for head, found in by_head.items() if gpu is None or gpu.lower() in head[0].lower()}
    gpus = sorted({name for name, _ in wanted or by_head})
    if not wanted:
        raise ValueError(f"--gpu: expected part of the name of one of {', '.join(gpus)}, got {gpu!r}")
    if bandwidth is not None and len(gpus) > 1:
        raise ValueError(f"--bandwidth: expected results of one GPU, got those of {', '.join(gpus)}; --gpu chooses one")

    def rate(name: str, findings: Sequence[Finding]) -> Bandwidth:
        if bandwidth is not None:
            return Bandwidth(bandwidth, "as given by --bandwidth")
        return fastest_rate(findings) if bench is None else bench_bandwidth(bench, name)

    chapters = [
        Chapter(name, triton, sorted(found, key=lambda finding: finding.key), rate(name, found))
        for (name, triton), found in wanted.items()
    ]
    return Book(path, chapters, collected.digest, sum(len(duplicate.dropped) for duplicate in choice.duplicates))
