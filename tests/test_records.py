"""What raw results must look like, and which of their rows is baked."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from csgmv import checks, records, rules
from fabricated import BETTER, DEFAULT, document, finalist, older, record

OTHER = [16, 64, 128, 1, 2, 8, 3, 96, True]
REMOVED = object()


def faults(content: dict[str, Any]) -> list[str]:
    return records.faults(checks.parse(json.dumps(content)))


def bent(path: str, value: Any) -> dict[str, Any]:
    """A valid file with one value changed; the path is written as in the faults, without the leading dollar."""
    content = copy.deepcopy(document())
    *way, last = [int(step) if step.isdigit() else step for step in path.replace("[", ".").replace("]", "").split(".")]
    holder: Any = content
    for step in way:
        holder = holder[step]
    if value is REMOVED:
        del holder[last]
    else:
        holder[last] = value
    return content


def the_result(**more: Any) -> records.Result:
    content = document(record(**more))
    assert not faults(content)
    (result,) = records.results(content)
    return result


def test_a_valid_file_has_no_fault() -> None:
    """Nor has one whose default cannot run, or whose every candidate failed."""
    assert faults(document()) == []
    assert faults(document(record(default_us=None), record(chunk_size=32, finalists=[]))) == []


def test_results_hold_the_key_of_each_record() -> None:
    """Shape and dtype from the head of the file, chunk size and bucket from the record."""
    found = list(records.results(document(record(), record(chunk_size=64, segment_bucket=1, num_segments=1))))
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


@pytest.mark.parametrize(
    ("record_", "others", "times"),
    [
        ({}, [[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]], [20.0, 12.5, 13.0]),
        ({"tuned_us": 29.95}, [[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]], [30.0, 15.0, 12.0]),
        ({"default_us": None}, [[9, 6, 6, None, 12.5], [80, 1, 5, None, 13.0]], [20.0, 12.5, 13.0]),
        ({"finalists": []}, [[9, 6, 6, 15.0, None], [80, 1, 5, 12.0, None]], [30.0, 15.0, 12.0]),
    ],
)
def test_each_batch_takes_the_time_of_what_the_table_has(
    record_: dict[str, Any], others: list[Any], times: list[float]
) -> None:
    """The winner's where its row is baked, else the default's; also where a batch's segments are of another bucket."""
    found = list(records.batches(the_result(others=others, **record_)))
    assert found == [(101, 5, 7, times[0]), (9, 6, 6, times[1]), (80, 1, 5, times[2])]


def test_a_batch_that_the_row_does_not_run_on_is_left_out() -> None:
    """There is no time to tell; whether the other config runs on it does not matter."""
    tuned, kept = the_result(others=[]), the_result(tuned_us=29.95, others=[])
    more = records.BatchTimes(9, 6, 6, 15.0, None), records.BatchTimes(80, 1, 5, None, 13.0)
    found = [[batch.tokens for batch in records.batches(one._replace(batches=more))] for one in (tuned, kept)]
    assert found == [[80], [9]]


def test_results_hold_the_batches_that_were_timed() -> None:
    """Both times of each, and how many decided."""
    result = the_result(others=[[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]], tuned_on=2)
    assert result.batches == ((101, 5, 7, 30.0, 20.0), (9, 6, 6, 15.0, 12.5), (80, 1, 5, 12.0, 13.0))
    assert result.batches[1].winner_us == 12.5
    assert result.tuned_on == 2


OWN = [101, 5, 7, 30.0, 20.0]  # the batch that the record says of itself


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


@pytest.mark.parametrize("field", ["batches", "tuned_on"])
def test_batches_came_with_schema_2(field: str) -> None:
    """Since then they must be told; a file of schema 1 that has them says something else than it means."""
    assert faults(bent(f"records[0].{field}", REMOVED)) == [f"$.records[0].{field}: missing"]
    assert f"$.records[0].{field}: unknown field" in faults(document(schema=1))


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
    assert records.faults(checks.parse(text)) == [
        "$.records[0].noise_us: expected a number from 0 up to 1e+09, got inf"
    ]


def test_a_name_given_twice_is_told() -> None:
    """Parsers keep the last one silently."""
    text = json.dumps(document()).replace('"noise_us": 0.12', '"noise_us": 0.1, "noise_us": 9.9')
    assert records.faults(checks.parse(text)) == ["$.records[0].noise_us: given more than once"]


@pytest.mark.parametrize("value", [None, [], 7, "text"])
def test_a_file_that_holds_no_object_is_told(value: Any) -> None:
    """With what it holds."""
    assert records.faults(value) == [f"$: expected an object, got {value!r}"]


def test_the_fastest_finalist_wins() -> None:
    """Wherever it stands."""
    result = the_result(finalists=[finalist(OTHER, 22.0), finalist(BETTER, 20.0)])
    assert records.baked_row(result) == tuple(BETTER)


def test_an_older_schema_is_read_as_what_it_meant() -> None:
    """One batch, that of the record; a tile of more rows than a segment was one of the segment's rows then."""
    assert faults(older(document())) == []
    (result,) = records.results(older(document()))
    assert result.batches == ((101, 5, 7, 30.0, 20.0),)
    assert result.tuned_on == 1
    assert result.default.row == (16, *DEFAULT[1:])  # type: ignore[union-attr]
    assert records.baked_row(result) == (16, *BETTER[1:])
    assert [result.default.row for result in records.results(document())] == [tuple(DEFAULT)]  # type: ignore[union-attr]


def test_schema_2_is_read_as_having_shared_no_steps() -> None:
    """Everything else stays as it was measured: larger tiles, every batch with its times, and how many decided."""
    batches = [[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]]
    content = older(document(record(finalists=[finalist(OTHER, 20.0)], others=batches, tuned_on=2)), 2)
    assert faults(content) == []
    (result,) = records.results(content)
    assert result.default == (tuple(DEFAULT), 30.0, 48)
    assert records.baked_row(result) == (*OTHER[:-1], False)
    assert {row[-1] for row in result.screened} == {False}
    assert result.batches == ((101, 5, 7, 30.0, 20.0), (9, 6, 6, 15.0, 12.5), (80, 1, 5, 12.0, 13.0))
    assert result.tuned_on == 2
    upgraded = records.upgraded(content)
    assert faults(upgraded) == []
    assert upgraded["schema"] == records.SCHEMA
    assert list(records.results(upgraded)) == [result]


def test_sliced_k_came_with_schema_3() -> None:
    """Since then it must be told; an older file that has it says something else than it means."""
    assert any("expected 9 values" in fault for fault in faults({**older(document(), 2), "schema": 3}))
    found = faults({**older(document(), 3), "schema": 2})
    assert found[0].startswith("$.fields: ")
    assert all("expected 8 values" in fault for fault in found[1:])
    assert len(found) == 1 + 4  # the default, two candidates and a finalist


def test_races_came_with_schema_4() -> None:
    """Since then they must be told; an older file is read as having had none, and all else stays."""
    assert faults(bent("records[0].races", REMOVED)) == ["$.records[0].races: missing"]
    assert faults(document(schema=3)) == ["$.records[0].races: unknown field"]
    content = older(document(), 3)
    assert faults(content) == []
    assert list(records.results(content)) == list(records.results(document()))
    assert records.upgraded(content) == document()


RACE = {"run": 0, "samples": 96, "times": [[BETTER, 10.0], [DEFAULT, 15.0], [OTHER, 11.0]]}


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


def test_an_upgraded_file_is_valid_and_says_the_same() -> None:
    """Rows that were two ways to write one are merged: the faster time stays. Nothing changes a second time."""
    same = [16, *BETTER[1:]]
    finalists = [finalist(BETTER, 21.0), finalist(same, 20.0), finalist(OTHER, 22.0)]
    content = older(document(record(finalists=finalists, segment_bucket=8)))
    upgraded = records.upgraded(content)
    assert faults(upgraded) == []
    assert [one["row"] for one in upgraded["records"][0]["finalists"]] == [same, [*OTHER[:-1], False]]
    assert upgraded["records"][0]["finalists"][0]["p50_us"] == 20.0
    assert list(records.results(upgraded)) == list(records.results(content))
    assert records.upgraded(upgraded) == upgraded


def test_a_field_that_came_later_has_its_neutral_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older files need not have it, newer ones must; the rows that come out are of one length."""
    late = rules.Field("persistent", 0, 1, boolean=True, since=2, neutral=False)
    monkeypatch.setitem(rules.FIELDS, "shrink", (*rules.FIELDS["shrink"], late))  # type: ignore[arg-type]
    monkeypatch.setitem(rules.FIELD_NAMES, "shrink", (*rules.FIELD_NAMES["shrink"], "persistent"))  # type: ignore[arg-type]
    assert faults(older(document())) == []
    (result,) = records.results(older(document()))
    assert result.finalists[0].row == (16, *BETTER[1:], False)
    assert any("expected 10 values" in fault for fault in faults(document()))


def test_ties_within_the_noise_fall_to_the_first_row() -> None:
    """Whichever of them was a hair faster in this run: the next run would say the reverse."""
    one = the_result(finalists=[finalist(OTHER, 20.1), finalist(BETTER, 20.0)], noise_us=0.2)
    two = the_result(finalists=[finalist(BETTER, 20.1), finalist(OTHER, 20.0)], noise_us=0.2)
    assert records.baked_row(one) == records.baked_row(two) == tuple(OTHER)


@pytest.mark.parametrize(
    ("tuned_us", "noise_us", "baked"),
    [(29.8, 0.05, False), (29.6, 0.05, True), (29.0, 1.5, False), (28.0, 1.5, True), (31.0, 0.0, False)],
)
def test_a_row_is_baked_only_if_it_beats_the_default(tuned_us: float, noise_us: float, baked: bool) -> None:
    """By more than the noise and more than 1 % of the default's time (30 µs); otherwise the table says None."""
    assert records.baked_row(the_result(tuned_us=tuned_us, noise_us=noise_us)) == (tuple(BETTER) if baked else None)


def test_where_the_default_cannot_run_the_winner_is_baked() -> None:
    """Whatever its time: there is nothing to beat."""
    result = the_result(default_us=None, tuned_us=99.0)
    assert records.baked_row(result) == tuple(BETTER)
    assert records.gain(result) == float("inf")


def test_without_finalists_the_default_stays() -> None:
    """Every candidate failed, and the default ran."""
    result = the_result(finalists=[])
    assert records.baked_row(result) is None
    assert records.gain(result) == 0.0


def test_slowdowns_compare_like_with_like() -> None:
    """Full-length times with the winner's at full length, what was only screened with its time in screening."""
    other, screened = [16, *BETTER[1:]], [16, 16, 64, 1, 1, 4, 2, 96, True]
    candidates = [[BETTER, 22.0, 12, False], [other, 11.0, 12, False], [screened, 33.0, 3, True]]
    result = the_result(candidates=candidates, finalists=[finalist(BETTER, 20.0), finalist(other, 25.0)])
    assert records.slowdowns(result) == {
        tuple(BETTER): 1.0,
        tuple(other): 1.25,
        tuple(screened): 1.5,
        tuple(DEFAULT): 1.5,
    }
    assert records.slowdowns(the_result(finalists=[], candidates=[])) == {tuple(DEFAULT): 1.0}
    unscreened = the_result(default=None, finalists=[finalist(BETTER, 20.0)], candidates=[[screened, 33.0, 3, True]])
    assert records.slowdowns(unscreened) == {tuple(BETTER): 1.0}


def test_a_race_is_compared_within_itself() -> None:
    """By the winner's time in it. Of two races the last counts, and the record's own times before either."""
    slow = [16, 16, 64, 1, 1, 4, 2, 96, True]
    races = [
        {"run": 0, "samples": 96, "times": [[BETTER, 10.0], [DEFAULT, 99.0], [OTHER, 11.0], [slow, 30.0]]},
        {"run": 0, "samples": 96, "times": [[BETTER, 40.0], [OTHER, 50.0]]},
    ]
    result = the_result(races=races)
    length = {tuple(BETTER): 1.0, tuple(DEFAULT): 1.5, tuple(OTHER): 1.25, tuple(slow): 3.0}
    assert records.at_length(result) == length
    assert records.in_screening(result) == {tuple(BETTER): 1.0, tuple(slow): 31.5 / 20.0}
    assert records.slowdowns(result) == length


def test_results_tell_what_gpu_they_are_of() -> None:
    """By architecture and number of SMs, for other GPUs to borrow by; and what every candidate took."""
    result = the_result()
    assert (result.architecture, result.sm_count) == ("9.0", 132)
    assert result.screened == {tuple(BETTER): 20.0, (16, 16, 64, 1, 1, 4, 2, 96, True): 31.5}
