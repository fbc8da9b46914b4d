"""Raw results: what a file of them must look like, and which of its rows deserves a place in the table.

Standard library only, like `rules`, and for the same reason. configs/README.md explains the fields one by one.

    faults      everything that is wrong with a parsed file
    upgraded    a file without faults, of an older schema → the same by today's
    results     a file without faults → one Result per key
    baked_row   a Result → what the table says about its key
    slowdowns   a Result → how much slower each row is than the winner
    batches     a Result → the batches that were timed with that row, and how long they take

Of the rows that were timed, `at_length` has those at full length alone, `in_screening` first impressions alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import checks, rules

SCHEMA = 4
SCHEMAS = (1, 2, 3, 4)  # that can be read; `upgraded` says what the older ones leave out
# A tuned row must save this share of the default's time, however quiet the measurement was.
LEAST_GAIN = 0.01
# Rows within this share of the fastest are as good as it, if the noise is no smaller.
MOST_TIED = 0.01


class Timing(NamedTuple):
    """One config at full length. Units: microseconds (median), launches timed."""

    row: rules.Row
    p50_us: float
    samples: int


class BatchTimes(NamedTuple):
    """The default's and the winner's time on one batch; None for what does not run. Units: microseconds (median)."""

    tokens: int
    adapters: int
    num_segments: int
    default_us: float | None
    winner_us: float | None


class Batch(NamedTuple):
    """A batch, and microseconds (median) of a launch on it with what the table has for its key."""

    tokens: int
    adapters: int
    num_segments: int
    p50_us: float


class Race(NamedTuple):
    """Rows timed in turn at full length, the winner's among them. Units: microseconds (median), launches of each row.

    Its times are to be compared with each other's only: it was not run when the rest of the record was made.
    """

    times: Mapping[rules.Row, float]
    samples: int


class Result(NamedTuple):
    """What was measured at one key: the default (None where the device cannot run it) and the rows against it.

    `batches` are those that look up this key; a row's time is the geometric mean of its times on the first `tuned_on`.
    `screened` has every candidate's first impression: microseconds (median), to be compared with each other's only.
    `races` have rows of other keys.
    `architecture` (the compute capability) and `sm_count` are the GPU's, `kernel_hash` is that of the kernels' source.
    """

    gpu: str
    triton: str
    key: rules.Key
    default: Timing | None
    finalists: tuple[Timing, ...]
    noise_us: float
    date: str
    batches: tuple[BatchTimes, ...] = ()
    tuned_on: int = 1
    screened: Mapping[rules.Row, float] = {}
    races: tuple[Race, ...] = ()
    architecture: str = ""
    sm_count: int = 0
    kernel_hash: str = ""


def winner(result: Result) -> Timing | None:
    """The fastest finalist; of those within the noise of it the first in a fixed order, so that reruns agree.

    The noise is that of the default, which may take several times as long: it ties no more than MOST_TIED.
    """
    return fastest(result.finalists, result.noise_us)


def fastest(finalists: Sequence[Timing], noise_us: float) -> Timing | None:
    """See `winner`; the tuner asks this before there is a result."""
    least = min((timing.p50_us for timing in finalists), default=0.0)
    tied = (timing for timing in finalists if timing.p50_us <= tied_us(least, noise_us))
    return min(tied, key=lambda timing: rules.row_order(timing.row), default=None)


def tied_us(least_us: float, noise_us: float) -> float:
    """Up to which time a launch is as good as the fastest."""
    return least_us + min(noise_us, MOST_TIED * least_us)


def told_apart_us(default_us: float, *noises_us: float) -> float:
    """How much a launch must take less, or more, than the default to be told apart from it."""
    return max(LEAST_GAIN * default_us, *noises_us)


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
    return best.row if saved > told_apart_us(result.default.p50_us, result.noise_us) else None


def slowdowns(result: Result) -> dict[rules.Row, float]:
    """How many times the winner's time each measured row takes, the default's among them: at full length if it can."""
    return in_screening(result) | at_length(result)


def at_length(result: Result) -> dict[rules.Row, float]:
    """The slowdown of each row that was timed at full length: finalists, the default, and what took part in races.

    A row that did several times has that of the last race, and a finalist its own record's.
    """
    own = {timing.row: timing.p50_us for timing in (*result.finalists, *filter(None, [result.default]))}
    found: dict[rules.Row, float] = {}
    for times in (*(race.times for race in result.races), own):
        found |= _relative(result, times)
    return found


def in_screening(result: Result) -> dict[rules.Row, float]:
    """The slowdown of each candidate by first impressions, the winner's too."""
    return _relative(result, result.screened)


def _relative(result: Result, times: Mapping[rules.Row, float]) -> dict[rules.Row, float]:
    """Times as multiples of the winner's, or where there is none the default's; nothing where that is not among them.

    Only times of one occasion may be compared, so each has the winner's.
    """
    reference = winner(result) or result.default
    if reference is None or reference.row not in times:
        return {}
    return {row: p50_us / times[reference.row] for row, p50_us in times.items()}


def batches(result: Result) -> Iterator[Batch]:
    """Every batch timed at this key, and the time of what the table has for it: the baked row, or else the default."""
    baked = result.default is None or baked_row(result) is not None
    for tokens, adapters, num_segments, default_us, winner_us in result.batches:
        p50_us = winner_us if baked else default_us
        if p50_us is not None:
            yield Batch(tokens, adapters, num_segments, p50_us)


# Names end up in generated code: letters, digits and the few signs that GPU and version names have.
_NAME = checks.text(r"[A-Za-z0-9][A-Za-z0-9 ._+/()-]{0,79}", "a name of letters, digits, spaces and ._+/()-")
_VERSION = checks.text(r"[0-9]+(\.[0-9]+)+[A-Za-z0-9.+_-]{0,40}", "a version")
_SIZE = checks.integer(0)
_COUNT = checks.integer(1)
_MICROSECONDS = checks.number(1e-6)  # whose quotients, summed, stay far from what a float can hold
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
    schema=checks.one_of(*SCHEMAS),
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


def _row(op: str, schema: int) -> checks.Check:
    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield checks.expected("an array", value, path)
        elif fault := rules.config_fault(op, value, schema):
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
    rows = [finalist["row"] for finalist in value["finalists"]]
    for index, row in enumerate(rows):
        if row in rows[:index]:
            yield f"{path}.finalists[{index}].row: the same as that of finalists[{rows.index(row)}]"


def _race_faults(value: Any, path: str) -> Iterator[str]:
    own = fastest([_timing_of(finalist) for finalist in value["finalists"]], value["noise_us"])
    reference = list(own.row) if own else value["default"] and value["default"]["row"]
    for index, race in enumerate(value["races"]):
        rows, place = [row for row, _ in race["times"]], f"{path}.races[{index}].times"
        if reference not in rows:
            yield f"{place}: expected the time of {reference} too, which the record's own times can be compared by"
        for number, row in enumerate(rows):
            if row in rows[:number]:
                yield f"{place}[{number}]: the same row as that of times[{rows.index(row)}]"


def _batch_faults(value: Any, path: str) -> Iterator[str]:
    if value["tuned_on"] > len(value["batches"]):
        yield checks.expected(f"at most the {len(value['batches'])} of batches", value["tuned_on"], f"{path}.tuned_on")
    first = [value["tokens"], value["adapters"], value["num_segments"]]
    if value["batches"][0][:3] != first:
        yield checks.expected(f"{first} first, the batch that was tuned on", value["batches"][0], f"{path}.batches[0]")
    seen = []
    for index, (*batch, _, default_us, winner_us) in enumerate(value["batches"]):
        if batch in seen:
            yield f"{path}.batches[{index}]: {batch[0]} tokens and {batch[1]} adapters stand there already"
        seen.append(batch)
        for name, time, runs in (
            ("default", default_us, value["default"] is not None),
            ("winner", winner_us, bool(value["finalists"])),
        ):
            if runs != (time is not None):
                wanted = f"a time of the {name}" if runs else f"null, since there is no {name}"
                yield checks.expected(wanted, time, f"{path}.batches[{index}]")


def _record(op: str, num_runs: int, schema: int) -> checks.Check:
    row = _row(op, schema) if op in rules.OPS else checks.anything
    members: dict[str, checks.Check] = {
        "run": checks.integer(0, num_runs - 1),
        "chunk_size": _COUNT,
        "segment_bucket": _COUNT,
        "tokens": _COUNT,
        "adapters": _COUNT,
        "num_segments": _COUNT,
        "default": checks.or_null(_timing(row)),
        "candidates": checks.array(checks.entries(row, _MICROSECONDS, _COUNT, checks.boolean)),
        "finalists": checks.array(_timing(row, shared_bytes=_SIZE, registers=_SIZE, spills=_SIZE)),
        "pruned": checks.mapping(checks.phrase, _COUNT),
        "failed": checks.mapping(checks.phrase, _COUNT),
        "accuracy": checks.then(
            checks.record(cases=_COUNT, max_error=_NON_NEGATIVE, tolerance=_NON_NEGATIVE), _accuracy_faults
        ),
        "noise_us": _NON_NEGATIVE,
    }
    if schema == 1:
        return checks.then(checks.record(**members), _record_faults)
    time = checks.or_null(_MICROSECONDS)
    members["batches"] = checks.array(checks.entries(_COUNT, _COUNT, _COUNT, time, time), least=1)
    members["tuned_on"] = _COUNT
    if schema < 4:
        return checks.then(checks.record(**members), _record_faults, _batch_faults)
    times = checks.array(checks.entries(row, _MICROSECONDS), least=2)
    members["races"] = checks.array(checks.record(run=members["run"], samples=_COUNT, times=times))
    return checks.then(checks.record(**members), _record_faults, _batch_faults, _race_faults)


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
    op, runs, schema = document.get("op"), document.get("runs"), document.get("schema")
    op = op if isinstance(op, str) else ""
    schema = schema if type(schema) is int and schema in SCHEMAS else SCHEMA
    if op in rules.OPS and "fields" in document:
        found += checks.exactly(list(rules.field_names(op, schema)))(document["fields"], "$.fields")
    if "runs" in document:
        found += _RUNS(runs, "$.runs")
    if "records" in document:
        num_runs = len(runs) if isinstance(runs, list) and runs else 2**31  # unknown: any may be meant
        found += checks.array(_record(op, num_runs, schema), least=1)(document["records"], "$.records")
        found += _repeated_keys(document["records"], "$.records")
    return found


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document that has no faults as today's schema would write it: what it left out is made explicit."""
    if document["schema"] == SCHEMA:
        return dict(document)
    op, schema = document["op"], document["schema"]
    new = {**document, "schema": SCHEMA, "fields": list(rules.FIELD_NAMES[op])}
    new["records"] = [_upgraded_record(op, schema, record, document["max_rank"]) for record in document["records"]]
    return new


def _upgraded_record(op: str, schema: int, record: Mapping[str, Any], max_rank: int) -> dict[str, Any]:
    def current(row: list[rules.ConfigValue]) -> rules.Row:
        return rules.current_row(op, schema, row, record["chunk_size"], max_rank)

    # Rows that are one and the same today: the faster time stays.
    candidates: dict[rules.Row, list[Any]] = {}
    for row, *times in sorted(record["candidates"], key=lambda candidate: candidate[1]):
        candidates.setdefault(current(row), times)
    finalists: dict[rules.Row, Any] = {}
    for finalist in sorted(record["finalists"], key=lambda finalist: finalist["p50_us"]):
        finalists.setdefault(current(finalist["row"]), finalist)
    default = record["default"]
    new = {
        **record,
        "default": default and {**default, "row": list(current(default["row"]))},
        "candidates": [[list(row), *times] for row, times in candidates.items()],
        "finalists": [{**finalist, "row": list(row)} for row, finalist in finalists.items()],
        "races": [],
    }
    if schema > 1:
        return new
    best = fastest([_timing_of(finalist) for finalist in new["finalists"]], record["noise_us"])
    batch = [record["tokens"], record["adapters"], record["num_segments"]]
    return new | {"batches": [[*batch, default and default["p50_us"], best and best.p50_us]], "tuned_on": 1}


def results(document: Mapping[str, Any]) -> Iterator[Result]:
    """The results in a document that has no faults, of whichever schema."""
    document = upgraded(document)
    for record in document["records"]:
        run = document["runs"][record["run"]]
        yield Result(
            gpu=document["gpu"],
            triton=document["triton"],
            key=_key(document, record["chunk_size"], record["segment_bucket"]),
            default=record["default"] and _timing_of(record["default"]),
            finalists=tuple(map(_timing_of, record["finalists"])),
            noise_us=record["noise_us"],
            date=run["date"],
            batches=tuple(BatchTimes(*times) for times in record["batches"]),
            tuned_on=record["tuned_on"],
            screened={tuple(row): p50_us for row, p50_us, *_ in record["candidates"]},
            races=tuple(map(_race_of, record["races"])),
            architecture=run["compute_capability"],
            sm_count=run["sm_count"],
            kernel_hash=run["kernel_hash"],
        )


def _timing_of(value: Mapping[str, Any]) -> Timing:
    return Timing(tuple(value["row"]), value["p50_us"], value["samples"])


def _race_of(value: Mapping[str, Any]) -> Race:
    return Race({tuple(row): p50_us for row, p50_us in value["times"]}, value["samples"])
