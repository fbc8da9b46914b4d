"""A file of raw results: everything that may be wrong with it, and the results that it holds.

Standard library only, like `rules`, and for the same reason. configs/README.md explains the fields one by one.

    faults      everything that is wrong with a parsed file
    results     a file without faults → one records.Result per key
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import checks, records, rules, schemas

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
    schema=checks.one_of(*schemas.SCHEMAS),
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
    own = records.fastest([records.timing_of(finalist) for finalist in value["finalists"]], value["noise_us"])
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


def _repeated_keys(every: Any, path: str) -> Iterator[str]:
    first: dict[str, int] = {}
    for index, record in enumerate(every if isinstance(every, list) else ()):
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
    schema = schema if type(schema) is int and schema in schemas.SCHEMAS else schemas.SCHEMA
    if op in rules.OPS and "fields" in document:
        found += checks.exactly(list(schemas.field_names(op, schema)))(document["fields"], "$.fields")
    if "runs" in document:
        found += _RUNS(runs, "$.runs")
    if "records" in document:
        num_runs = len(runs) if isinstance(runs, list) and runs else 2**31  # unknown: any may be meant
        found += checks.array(_record(op, num_runs, schema), least=1)(document["records"], "$.records")
        found += _repeated_keys(document["records"], "$.records")
    return found


def results(document: Mapping[str, Any]) -> Iterator[records.Result]:
    """The results in a document that has no faults, of whichever schema."""
    document = schemas.upgraded(document)
    for record in document["records"]:
        run = document["runs"][record["run"]]
        yield records.Result(
            gpu=document["gpu"],
            triton=document["triton"],
            key=_key(document, record["chunk_size"], record["segment_bucket"]),
            default=record["default"] and records.timing_of(record["default"]),
            finalists=tuple(map(records.timing_of, record["finalists"])),
            noise_us=record["noise_us"],
            date=run["date"],
            batches=tuple(records.BatchTimes(*times) for times in record["batches"]),
            tuned_on=record["tuned_on"],
            screened={tuple(row): p50_us for row, p50_us, *_ in record["candidates"]},
            races=tuple(map(_race_of, record["races"])),
            architecture=run["compute_capability"],
            sm_count=run["sm_count"],
            kernel_hash=run["kernel_hash"],
        )


def _race_of(value: Mapping[str, Any]) -> records.Race:
    return records.Race({tuple(row): p50_us for row, p50_us in value["times"]}, value["samples"])
