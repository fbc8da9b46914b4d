"""Raw results: what a file of them must look like, and which of its rows deserves a place in the table.

Standard library only, like `rules`, and for the same reason. configs/README.md explains the fields one by one.

    faults      everything that is wrong with a parsed file
    results     a file without faults → one Result per key
    baked_row   a Result → what the table says about its key
    batches     a Result → the batches that were timed with that row, and how long they take
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from . import checks, rules

SCHEMA = 1
# A tuned row must save this share of the default's time, however quiet the measurement was.
LEAST_GAIN = 0.01
# Rows within this share of the fastest are as good as it, if the noise is no smaller.
MOST_TIED = 0.01


class Timing(NamedTuple):
    """One config at full length. Units: microseconds (median), launches timed."""

    row: rules.Row
    p50_us: float
    samples: int


class Batch(NamedTuple):
    """A batch, and microseconds (median) of a launch on it with what the table has for its key."""

    tokens: int
    adapters: int
    num_segments: int
    p50_us: float


class Result(NamedTuple):
    """What was measured at one key: the default (None where the device cannot run it) and the rows against it.

    Tokens, adapters and segments are those of the batch that they were timed on; `also` are others that share the key.
    """

    gpu: str
    triton: str
    key: rules.Key
    tokens: int
    adapters: int
    num_segments: int
    default: Timing | None
    finalists: tuple[Timing, ...]
    noise_us: float
    date: str
    also: tuple[Batch, ...] = ()


def winner(result: Result) -> Timing | None:
    """The fastest finalist; of those within the noise of it the first in a fixed order, so that reruns agree.

    The noise is that of the default, which may take several times as long: it ties no more than MOST_TIED.
    """
    least = min((timing.p50_us for timing in result.finalists), default=0.0)
    bound = least + min(result.noise_us, MOST_TIED * least)
    tied = (timing for timing in result.finalists if timing.p50_us <= bound)
    return min(tied, key=lambda timing: rules.row_order(timing.row), default=None)


def gain(result: Result) -> float:
    """The share of the default's time that the winner saves; infinite where only the winner runs."""
    best = winner(result)
    if best is None or result.default is None:
        return 0.0 if best is None else math.inf
    return 1 - best.p50_us / result.default.p50_us


def baked_row(result: Result) -> rules.Row | None:
    """The row that the table gets: the winner's, or None where it does not beat the default beyond the noise."""
    best = winner(result)
    if best is None or result.default is None:
        return None if best is None else best.row
    saved = result.default.p50_us - best.p50_us
    return best.row if saved > max(result.noise_us, LEAST_GAIN * result.default.p50_us) else None


def batches(result: Result) -> Iterator[Batch]:
    """Every batch timed at this key, and the time of what the table has for it: the baked row, or else the default."""
    kept = winner(result) if result.default is None or baked_row(result) is not None else result.default
    assert kept is not None, "a record without finalists has a default"
    yield Batch(result.tokens, result.adapters, result.num_segments, kept.p50_us)
    yield from result.also


# Names end up in generated code: letters, digits and the few signs that GPU and version names have.
_NAME = checks.text(r"[A-Za-z0-9][A-Za-z0-9 ._+/()-]{0,79}", "a name of letters, digits, spaces and ._+/()-")
_VERSION = checks.text(r"[0-9]+(\.[0-9]+)+[A-Za-z0-9.+_-]{0,40}", "a version")
_SIZE = checks.integer(0)
_COUNT = checks.integer(1)
_MICROSECONDS = checks.number()
_NON_NEGATIVE = checks.number(or_equal=True)

_RUNS = checks.array(
    checks.record(
        compute_capability=checks.text(r"[0-9]+\.[0-9]+", "major.minor"),
        sm_count=_COUNT,
        driver=checks.phrase,
        cuda=checks.phrase,
        torch=_VERSION,
        csgmv=_VERSION,
        kernel_hash=checks.text("sha256:[0-9a-f]{64}", "sha256: and 64 hexadecimal digits"),
        seed=checks.integer(0, 2**63 - 1),
        date=checks.date,
        l2=checks.phrase,
    ),
    least=1,
)


def _key(value: Mapping[str, Any], chunk_size: int, segment_bucket: int) -> rules.Key:
    widths = tuple(value["slice_widths"])
    shape = (value["op"], value["input_dim"], widths, value["max_rank"], value["num_slices"], value["dtype"])
    return rules.Key(*shape, chunk_size, segment_bucket)


_SHAPE: Mapping[str, checks.Check] = {
    "op": checks.phrase,
    "input_dim": _SIZE,
    "slice_widths": checks.array(_SIZE),
    "max_rank": _COUNT,
    "num_slices": _COUNT,
    "dtype": checks.phrase,
}
_HEADER = checks.record(
    schema=checks.exactly(SCHEMA),
    gpu=_NAME,
    triton=_VERSION,
    **_SHAPE,
    fields=checks.array(checks.anything),
    runs=checks.anything,
    records=checks.anything,
)


def _key_faults(document: Mapping[str, Any]) -> Iterator[str]:
    if all(name in document and not any(check(document[name], "$")) for name, check in _SHAPE.items()):
        for fault in rules.key_faults(_key(document, chunk_size=1, segment_bucket=1)):
            yield f"$.{fault}"


def _row(op: str) -> checks.Check:
    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield checks.expected("an array", value, path)
        elif fault := rules.config_fault(op, value):
            yield f"{path}: {fault}"

    return check


def _timing(row: checks.Check, **more: checks.Check) -> checks.Check:
    def in_order(value: Any, path: str) -> Iterator[str]:
        times = [value[name] for name in ("p20_us", "p50_us", "p80_us")]
        if times != sorted(times):
            yield f"{path}: expected p20_us <= p50_us <= p80_us, got {times}"

    times = dict.fromkeys(("p20_us", "p50_us", "p80_us"), _MICROSECONDS)
    return checks.then(checks.record(row=row, **times, samples=_COUNT, **more), in_order)


def _accuracy_faults(value: Any, path: str) -> Iterator[str]:
    if value["max_error"] > value["tolerance"]:
        yield f"{path}.max_error: expected at most the tolerance {value['tolerance']}, got {value['max_error']}"


def _record_faults(value: Any, path: str) -> Iterator[str]:
    bucket = rules.segment_bucket(value["num_segments"])
    if value["segment_bucket"] != bucket:
        wanted = f"{bucket}, the bucket of {value['num_segments']} segments"
        yield checks.expected(wanted, value["segment_bucket"], f"{path}.segment_bucket")
    if value["default"] is None and not value["finalists"]:
        yield f"{path}.finalists: expected one or more where default is null, got none"
    seen = [[value["tokens"], value["adapters"]]]
    for index, (*batch, num_segments, _) in enumerate(value.get("also", ())):
        if rules.segment_bucket(num_segments) != value["segment_bucket"]:
            wanted = f"a number of segments with bucket {value['segment_bucket']}"
            yield checks.expected(wanted, num_segments, f"{path}.also[{index}][2]")
        if batch in seen:
            yield f"{path}.also[{index}]: the batch of {batch[0]} tokens and {batch[1]} adapters stands there already"
        seen.append(batch)
    rows = [finalist["row"] for finalist in value["finalists"]]
    for index, row in enumerate(rows):
        if row in rows[:index]:
            yield f"{path}.finalists[{index}].row: the same as that of finalists[{rows.index(row)}]"


def _record(op: str, num_runs: int) -> checks.Check:
    row = _row(op) if op in rules.OPS else checks.anything
    return checks.then(
        checks.record(
            {"also": checks.array(checks.entries(_COUNT, _COUNT, _COUNT, _MICROSECONDS))},
            run=checks.integer(0, num_runs - 1),
            chunk_size=_COUNT,
            segment_bucket=_COUNT,
            tokens=_COUNT,
            adapters=_COUNT,
            num_segments=_COUNT,
            default=checks.or_null(_timing(row)),
            candidates=checks.array(checks.entries(row, _MICROSECONDS, _COUNT, checks.boolean)),
            finalists=checks.array(_timing(row, shared_bytes=_SIZE, registers=_SIZE, spills=_SIZE)),
            pruned=checks.mapping(checks.phrase, _COUNT),
            failed=checks.mapping(checks.phrase, _COUNT),
            accuracy=checks.then(
                checks.record(cases=_COUNT, max_error=_NON_NEGATIVE, tolerance=_NON_NEGATIVE), _accuracy_faults
            ),
            noise_us=_NON_NEGATIVE,
        ),
        _record_faults,
    )


def _repeated_keys(records: Any, path: str) -> Iterator[str]:
    first: dict[str, int] = {}
    for index, record in enumerate(records if isinstance(records, list) else ()):
        if isinstance(record, dict) and {"chunk_size", "segment_bucket"} <= record.keys():
            key = f"chunk_size {record['chunk_size']!r} and segment_bucket {record['segment_bucket']!r}"
            if first.setdefault(key, index) != index:
                yield f"{path}[{index}]: {key} stand at {path}[{first[key]}] too"


def faults(document: Any) -> list[str]:
    """Everything that is wrong with a file of raw results, as parsed by `checks.parse`: 'JSON path: fault' each."""
    found = list(_HEADER(document, "$"))
    if not isinstance(document, dict):
        return found
    found += _key_faults(document)
    op, runs = document.get("op"), document.get("runs")
    op = op if isinstance(op, str) else ""
    if op in rules.OPS and "fields" in document:
        found += checks.exactly(list(rules.FIELD_NAMES[op]))(document["fields"], "$.fields")
    if "runs" in document:
        found += _RUNS(runs, "$.runs")
    if "records" in document:
        num_runs = len(runs) if isinstance(runs, list) and runs else 2**31  # unknown: any may be meant
        found += checks.array(_record(op, num_runs), least=1)(document["records"], "$.records")
        found += _repeated_keys(document["records"], "$.records")
    return found


def results(document: Mapping[str, Any]) -> Iterator[Result]:
    """The results in a document that has no faults."""

    def timing(value: Mapping[str, Any]) -> Timing:
        return Timing(tuple(value["row"]), value["p50_us"], value["samples"])

    for record in document["records"]:
        yield Result(
            gpu=document["gpu"],
            triton=document["triton"],
            key=_key(document, record["chunk_size"], record["segment_bucket"]),
            tokens=record["tokens"],
            adapters=record["adapters"],
            num_segments=record["num_segments"],
            default=record["default"] and timing(record["default"]),
            finalists=tuple(timing(finalist) for finalist in record["finalists"]),
            noise_us=record["noise_us"],
            date=document["runs"][record["run"]]["date"],
            also=tuple(Batch(*batch) for batch in record.get("also", ())),
        )
