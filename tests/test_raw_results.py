"""What raw results must look like, and what is read from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from csgmv import checks, raw_results, records, rules
from fabricated import BETTER, DEFAULT, REMOVED, bent, document, faults, finalist, record, the_result

OTHER = [16, 64, 128, 1, 2, 8, 3, 96, True]
OWN = [101, 5, 7, 30.0, 20.0]  # the batch that the record says of itself
RACE = {"run": 0, "samples": 96, "times": [[BETTER, 10.0], [DEFAULT, 15.0], [OTHER, 11.0]]}


def test_a_valid_file_has_no_fault() -> None:
    """Nor has one whose default cannot run, or whose every candidate failed."""
    assert faults(document()) == []
    assert faults(document(record(default_us=None), record(chunk_size=32, finalists=[]))) == []


def test_results_hold_the_key_of_each_record() -> None:
    """Shape and dtype from the head of the file, chunk size and bucket from the record."""
    found = list(raw_results.results(document(record(), record(chunk_size=64, segment_bucket=1, num_segments=1))))
    assert [result.key for result in found] == [
        rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8),
        rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 64, 1),
    ]
    assert found[0].default == (tuple(DEFAULT), 30.0, 48)
    assert found[0].finalists == ((tuple(BETTER), 20.0, 48),)
    assert (found[0].gpu, found[0].triton, found[0].date) == ("NVIDIA H200", "3.6.0", "2026-11-23")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 5),
        ("schema", 1.0),
        ("schema", True),
        ("gpu", "NVIDIA\nH200"),
        ("gpu", '"): __import__("os"),'),
        ("gpu", ""),
        ("triton", "3"),
        ("triton", "3.6.0'"),
        ("op", "matmul"),
        ("op", ["shrink"]),
        ("input_dim", 1024.0),
        ("input_dim", 0),
        ("slice_widths", [64]),
        ("slice_widths", None),
        ("max_rank", 300),
        ("num_slices", 5),
        ("dtype", "int8"),
        ("fields", ["block_n", "block_m"]),
        ("runs", []),
        ("runs[0].date", "2026-13-01"),
        ("runs[0].date", "20261123"),
        ("runs[0].kernel_hash", "sha256:12"),
        ("runs[0].l2", "a\tb"),
        ("runs[0].l2", "\ud800"),
        ("runs[0].sm_count", 0),
        ("records", []),
        ("records[0].run", 1),
        ("records[0].run", -1),
        ("records[0].chunk_size", True),
        ("records[0].segment_bucket", 4),
        ("records[0].default", [30.0]),
        ("records[0].default.p50_us", 0),
        ("records[0].default.p50_us", "30"),
        ("records[0].default.samples", 2.5),
        ("records[0].default.row", [64]),
        ("records[0].default.row", [64, 16, 256, 1, 1, 4, 3, "None", False]),
        ("records[0].candidates[1]", [BETTER, 20.0, 12]),
        ("records[0].candidates[1][2]", 0),
        ("records[0].candidates[1][3]", 0),
        ("records[0].finalists[0].row", [48, *BETTER[1:]]),
        ("records[0].finalists[0].spills", None),
        ("records[0].pruned", []),
        ("records[0].pruned.why", 0),
        ("records[0].failed.why", "often"),
        ("records[0].accuracy.max_error", 0.02),
        ("records[0].noise_us", -0.1),
        ("records[0].batches[1]", [8, 8, 8, 9.5]),
        ("records[0].batches[1][1]", 0),
        ("records[0].batches[0]", [102, 5, 7, 30.0, 20.0]),
        ("records[0].batches[1]", [8, 8, 8, 9.5, None]),
        ("records[0].tuned_on", 3),
        ("records[0].tuned_on", 0),
        ("records[0].noise_us", 10**400),
    ],
)
def test_a_wrong_value_is_told_with_its_path(path: str, value: Any) -> None:
    """One fault, with the JSON path, what was expected and what came."""
    (fault, *more) = faults(bent(path, value))
    assert fault.startswith(f"$.{path}: ")
    assert "expected " in fault
    assert not more


@pytest.mark.parametrize("path", ["triton", "runs", "runs[0].seed", "records[0].noise_us", "records[0].default.p20_us"])
def test_a_missing_field_is_told(path: str) -> None:
    """By its path."""
    assert faults(bent(path, REMOVED)) == [f"$.{path}: missing"]


def test_results_hold_the_batches_that_were_timed() -> None:
    """Both times of each, and how many decided."""
    result = the_result(others=[[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]], tuned_on=2)
    assert result.batches == ((101, 5, 7, 30.0, 20.0), (9, 6, 6, 15.0, 12.5), (80, 1, 5, 12.0, 13.0))
    assert result.batches[1].winner_us == 12.5
    assert result.tuned_on == 2


@pytest.mark.parametrize(
    ("batches", "fault"),
    [
        (None, ": expected an array of 1 or more, got None"),
        ([], ": expected an array of 1 or more, got []"),
        ([OWN, [9, 6, 7, 12.5]], "[1]: expected an array of 5, got [9, 6, 7, 12.5]"),
        ([OWN, [0, 6, 7, 15.0, 12.5]], "[1][0]: expected an integer from 1"),
        ([OWN, [9, 6, 7, 0, 12.5]], "[1][3]: expected a number above 1e-06"),
        ([OWN, [9, 6, 7, 15.0, 0]], "[1][4]: expected a number above 1e-06"),
        ([OWN, [9, 6, 7, None, 12.5]], "[1]: expected a time of the default, got None"),
        ([OWN, [9, 6, 7, 15.0, None]], "[1]: expected a time of the winner, got None"),
        ([[101, 5, 8, 30.0, 20.0]], "[0]: expected [101, 5, 7] first, the batch that was tuned on"),
        ([[9, 6, 7, 15.0, 12.5], OWN], "[0]: expected [101, 5, 7] first, the batch that was tuned on"),
        ([OWN, OWN], "[1]: 101 tokens and 5 adapters stand there already"),
        (
            [OWN, [9, 6, 7, 15.0, 12.5], [8, 6, 7, 15.0, 12.5], [9, 6, 8, 15.0, 12.5]],
            "[3]: 9 tokens and 6 adapters stand there already",
        ),
    ],
)
def test_the_batches_of_a_key_are_checked(batches: Any, fault: str) -> None:
    """The record's own comes first, each is there once, and each has a time of all that runs."""
    (found,) = faults(document(record(batches=batches)))
    assert found.startswith(f"$.records[0].batches{fault}")


@pytest.mark.parametrize(
    ("record_", "other", "fault"),
    [
        ({"default_us": None}, [9, 6, 7, 15.0, 12.5], "expected null, since there is no default, got 15.0"),
        ({"finalists": []}, [9, 6, 7, 15.0, 12.5], "expected null, since there is no winner, got 12.5"),
    ],
)
def test_what_does_not_run_has_no_time(record_: dict[str, Any], other: list[Any], fault: str) -> None:
    """On any batch."""
    assert faults(document(record(others=[other], **record_))) == [f"$.records[0].batches[1]: {fault}"]


def test_an_unknown_field_is_told() -> None:
    """At any depth, in quotes where the name is no plain word."""
    assert faults(bent("records[0].accuracy.worst", 1)) == ["$.records[0].accuracy.worst: unknown field"]
    assert faults({**document(), "a b": 1}) == ["$['a b']: unknown field"]


def test_every_fault_is_told() -> None:
    """Not only the first: faults in the head, in runs and in two records come together."""
    broken = document(record(noise_us=None), record(chunk_size=32, run=3, pruned="many"), gpu=7, dtype="int8")
    broken["runs"][0]["seed"] = -1
    paths = {fault.partition(": ")[0] for fault in faults(broken)}
    assert paths == {
        "$.gpu",
        "$.dtype",
        "$.runs[0].seed",
        "$.records[0].noise_us",
        "$.records[1].run",
        "$.records[1].pruned",
    }


def test_quantiles_are_in_order() -> None:
    """A 20th percentile above the median is a mistake of the tuner's."""
    (fault,) = faults(bent("records[0].finalists[0].p20_us", 20.25))
    assert fault.startswith("$.records[0].finalists[0]: expected p20_us <= p50_us <= p80_us")


def test_a_key_stands_once_in_a_file() -> None:
    """Else the last would win silently, as in tables with a key column dropped."""
    (fault,) = faults(document(record(), record(chunk_size=32), record(tuned_us=5.0)))
    assert fault.startswith("$.records[2]: chunk_size 16 and segment_bucket 8 stand at $.records[0] too")


def test_a_row_is_a_finalist_once() -> None:
    """Two times for one row leave open which counts."""
    (fault,) = faults(document(record(finalists=[finalist(BETTER, 20.0), finalist(BETTER, 10.0)])))
    assert fault.startswith("$.records[0].finalists[1].row: ")


def test_a_record_without_any_time_is_a_fault() -> None:
    """Neither default nor finalist: there is nothing to say about its key."""
    (fault,) = faults(document(record(default_us=None, finalists=[])))
    assert fault.startswith("$.records[0].finalists: expected one or more")


@pytest.mark.parametrize("text", ["NaN", "[1, -Infinity]", "{", '{"a": 1,}', "", "\ufeff{}"])
def test_what_is_not_json_is_refused(text: str) -> None:
    """NaN and Infinity too, which Python's parser would let pass."""
    with pytest.raises(ValueError, match=r"JSON|Expecting|BOM|trailing comma"):
        checks.parse(text)


def test_an_infinity_by_overflow_is_refused() -> None:
    """1e999 is JSON, and parses to infinity."""
    text = json.dumps(document()).replace('"noise_us": 0.12', '"noise_us": 1e999')
    assert raw_results.faults(checks.parse(text)) == [
        "$.records[0].noise_us: expected a number from 0 up to 1e+09, got inf"
    ]


def test_a_name_given_twice_is_told() -> None:
    """Parsers keep the last one silently."""
    text = json.dumps(document()).replace('"noise_us": 0.12', '"noise_us": 0.1, "noise_us": 9.9')
    assert raw_results.faults(checks.parse(text)) == ["$.records[0].noise_us: given more than once"]


@pytest.mark.parametrize("value", [None, [], 7, "text"])
def test_a_file_that_holds_no_object_is_told(value: Any) -> None:
    """With what it holds."""
    assert raw_results.faults(value) == [f"$: expected an object, got {value!r}"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"run": 1}, ".run: expected an integer from 0 to 0"),
        ({"samples": 0}, ".samples: expected an integer from 1"),
        ({"times": [[BETTER, 10.0]]}, ".times: expected an array of 2 or more"),
        ({"times": [[BETTER, 10.0], [OTHER, 0]]}, ".times[1][1]: expected a number above 1e-06"),
        ({"times": [[BETTER, 10.0], [OTHER[:-1], 9.0]]}, ".times[1][0]: expected 9 values"),
        ({"times": [[DEFAULT, 10.0], [OTHER, 9.0]]}, f".times: expected the time of {BETTER} too"),
        ({"times": [[BETTER, 10.0], [OTHER, 9.0], [OTHER, 9.1]]}, ".times[2]: the same row as that of times[1]"),
        ({"date": "2026-11-23"}, ".date: unknown field"),
    ],
)
def test_races_are_checked(change: dict[str, Any], fault: str) -> None:
    """The winner takes part in each, or its times could be compared with nothing; a row does so once."""
    assert faults(document(record(races=[RACE]))) == []
    (found,) = faults(document(record(races=[RACE, {**RACE, **change}])))
    assert found.startswith(f"$.records[0].races[1]{fault}")


def test_where_only_the_default_ran_it_is_what_races_are_run_against() -> None:
    """There is no winner then."""
    race = {**RACE, "times": [[DEFAULT, 10.0], [OTHER, 11.0]]}
    assert faults(document(record(finalists=[], races=[race]))) == []
    assert records.at_length(the_result(finalists=[], races=[race])) == {tuple(DEFAULT): 1.0, tuple(OTHER): 1.1}


def test_results_tell_what_gpu_they_are_of() -> None:
    """By architecture and number of SMs, for other GPUs to borrow by; and what every candidate took."""
    result = the_result()
    assert (result.architecture, result.sm_count) == ("9.0", 132)
    assert result.screened == {tuple(BETTER): 20.0, (16, 16, 64, 1, 1, 4, 2, 96, True): 31.5}
