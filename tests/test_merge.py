"""`csgmv merge`: one record a key, whoever measured it; the outcome is a function of the records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csgmv import checks, cli, merge, raw_results
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect
from csgmv.tuning.record import text
from fabricated import BETTER, DEFAULT, document, finalist, put, record

Files = dict[str, str]  # a contribution: the text of each file by its name


def combined(*contributions: Files) -> Files:
    """What a folder would hold after merging."""
    found = []
    for contribution in contributions:
        for name, content in contribution.items():
            found += merge.measured(name, checks.parse(content))
    outcome = {str(name): text(content) for name, content in merge.merged(found).documents.items()}
    assert not [fault for content in outcome.values() for fault in raw_results.faults(checks.parse(content))]
    return outcome


RUN = document()["runs"][0]
OTHER = [*BETTER[:5], 8, *BETTER[6:]]
# Few values for each, so that most keys are measured several times, and some measurements are equal in worth.
RUNS = st.builds(
    lambda date, seed: {**RUN, "date": date, "seed": seed},
    st.sampled_from(["2026-11-22", "2026-11-23"]),
    st.integers(0, 1),
)


# Races of a record that may be the same one in several files, or of another day.
RACES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([10.0, 11.0])), max_size=2, unique=True)


@st.composite
def contents(draw: st.DrawFn) -> str:
    """A file: of one of two GPUs and shapes, one to three records of four keys, of one to three runs."""
    runs = draw(st.lists(RUNS, min_size=1, max_size=3))
    made = []
    for chunk_size in draw(st.lists(st.sampled_from([16, 32, 64, 128]), min_size=1, max_size=3, unique=True)):
        us, samples = draw(st.sampled_from([15.0, 20.0, 29.9])), draw(st.sampled_from([24, 48]))
        made.append(
            record(
                draw(st.sampled_from([None, 30.0])),
                run=draw(st.integers(0, len(runs) - 1)),
                chunk_size=chunk_size,
                candidates=[[BETTER, us + draw(st.integers(0, 1)), 12, False]],
                finalists=[finalist(BETTER, us, samples)],
                races=[
                    {"run": run % len(runs), "samples": 96, "times": [[BETTER, 10.0], [OTHER, us]]}
                    for run, us in draw(RACES)
                ],
            )
        )
    gpu, input_dim = draw(st.sampled_from(["NVIDIA H200", "NVIDIA L4"])), draw(st.sampled_from([1024, 2048]))
    return json.dumps(document(*made, gpu=gpu, input_dim=input_dim, runs=runs))


CONTRIBUTIONS = st.dictionaries(st.sampled_from(["a.json", "b.json", "z/c.json"]), contents(), min_size=1, max_size=3)


@settings(max_examples=80, deadline=None)
@given(a=CONTRIBUTIONS, b=CONTRIBUTIONS, c=CONTRIBUTIONS)
def test_the_outcome_is_a_function_of_the_records(a: Files, b: Files, c: Files) -> None:
    """Commutative, associative, idempotent; and it has every key that anyone measured."""
    ab = combined(a, b)
    assert ab == combined(b, a)
    assert combined(ab, c) == combined(a, combined(b, c)) == combined(combined(c, a), b)
    assert combined(ab) == ab == combined(ab, ab) == combined(ab, a)
    keys = {one.key for files in (a, b) for name, content in files.items() for one in measured(name, content)}
    assert {one.key for name, content in ab.items() for one in measured(name, content)} == keys


def measured(name: str, content: str) -> list[merge.Measured]:
    return list(merge.measured(name, checks.parse(content)))


@settings(max_examples=40, deadline=None)
@given(a=CONTRIBUTIONS, b=CONTRIBUTIONS)
def test_records_are_kept_as_they_were(a: Files, b: Files) -> None:
    """Each with its own run; a file has the runs of its records, by date, and no others."""
    given = {one.content for files in (a, b) for name, content in files.items() for one in measured(name, content)}
    for name, content in combined(a, b).items():
        runs = checks.parse(content)["runs"]
        assert {one.content for one in measured(name, content)} <= given
        assert sorted(run["date"] for run in runs) == [run["date"] for run in runs]
        timed = [each for one in measured(name, content) for each in (one, *one.races.values())]
        assert {each.run["seed"] for each in timed} == {run["seed"] for run in runs}


@settings(max_examples=40, deadline=None)
@given(a=CONTRIBUTIONS, b=CONTRIBUTIONS)
def test_a_record_keeps_the_races_of_all(a: Files, b: Files) -> None:
    """Of those that differ in nothing else, each once; a record that lost takes its races along."""
    given = [one for files in (a, b) for name, content in files.items() for one in measured(name, content)]
    for name, content in combined(a, b).items():
        for one in measured(name, content):
            same = [other for other in given if other[1:4] == one[1:4] and other.content == one.content]
            assert {*one.races} == {order for other in same for order in other.races}


def command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = cli.main(["merge", *map(str, argv)])
    return status, *capsys.readouterr()


def contents_of(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*.json"))}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of two people who share a key, which the second one's record gains more at."""
    put(tmp_path, "a/x.json", document(record(), record(chunk_size=64)))
    later = [{**RUN, "date": "2026-11-24"}]
    put(tmp_path, "b/y.json", document(record(finalists=[finalist(BETTER, 15.0)]), record(chunk_size=32), runs=later))
    return tmp_path / "a", tmp_path / "b"


def test_which_record_won_and_why_is_said(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In whichever order the folders are named; a second time nothing is written; and the table is the same."""
    a, b = two
    status, said, _ = command(capsys, a, b, "--out", tmp_path / "out")
    assert status == 0
    assert said == (
        "shrink 1024 → 3·64, bfloat16, chunk size 16, 8 segments on NVIDIA H200, Triton 3.6.0: "
        f"{b}/y.json wins\n  over {a}/x.json: saves 50.0 % of its default's time, not 33.3 %\n"
        f"{tmp_path}/out: 3 records in 1 files, 1 of them written; 1 keys had several\n"
    )
    name = "nvidia-h200/triton-3.6.0/shrink-k1024-s3-r64-bfloat16.json"
    assert list(contents_of(tmp_path / "out")) == [name]
    status, other, _ = command(capsys, b, a, "--out", tmp_path / "other")
    assert other == said.replace("/out", "/other")
    assert contents_of(tmp_path / "other") == contents_of(tmp_path / "out")
    before = (tmp_path / "out" / name).stat().st_mtime_ns
    assert "0 of them written; 1 keys had several" in command(capsys, a, b, "--out", tmp_path / "out")[1]
    assert (tmp_path / "out" / name).stat().st_mtime_ns == before
    for folder in two:
        put(tmp_path / "all", f"{folder.name}.json", json.loads(next(folder.iterdir()).read_text()))
    assert choose(collect(tmp_path / "all").found).table == choose(collect(tmp_path / "out").found).table


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"default": None, "others": []}, "the default did not run there"),
        ({"finalists": [finalist(BETTER, 20.0, samples=96)]}, "as large a gain, of 96 samples, not 48"),
        ({"noise_us": 0.2}, "equal in gain, samples and date"),
    ],
)
def test_the_other_reasons(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The date's is beneath."""
    put(tmp_path, "a/x.json", document())
    put(tmp_path, "b/x.json", document(record(**change)))
    assert reason in command(capsys, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")[1]


def test_of_equal_records_the_later_one_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the run that nobody refers to any more is gone."""
    put(tmp_path, "a/x.json", document(runs=[{**RUN, "date": "2026-11-24"}]))
    put(tmp_path, "b/x.json", document())
    _, said, _ = command(capsys, tmp_path / "b", tmp_path / "a", "--out", tmp_path / "out")
    assert f"{tmp_path}/a/x.json wins" in said
    assert "as many samples, of 2026-11-24, not 2026-11-23" in said
    (merged,) = contents_of(tmp_path / "out").values()
    assert [run["date"] for run in json.loads(merged)["runs"]] == ["2026-11-24"]


def test_what_is_there_already_is_merged_too(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost; a file under another name is removed once its records stand under theirs, however the folder is
    spelled; README.md stays.
    """
    a, b = two
    (a / "README.md").write_text("what these are")
    status, said, _ = command(capsys, b, "--out", b / ".." / "a")
    assert status == 0
    assert "x.json: removed, its records are in other files now" in said
    assert [file.name for file in sorted(a.rglob("*")) if file.is_file()] == [
        "README.md",
        "shrink-k1024-s3-r64-bfloat16.json",
    ]
    (merged,) = contents_of(a).values()
    assert [one["chunk_size"] for one in json.loads(merged)["records"]] == [16, 32, 64]
    assert (b / "y.json").exists()
    before = contents_of(a)
    assert command(capsys, a, "--out", a)[0] == 0
    assert contents_of(a) == before


def test_faults_are_told_whole_and_nothing_is_written(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every file in every folder, the one that is there already included."""
    a, b = two
    put(a, "bad.json", document(record(noise_us="low"), colour="blue"))
    put(tmp_path, "out/old.json", document(record(tokens=0)))
    (b / "worse.json").write_text("{")
    status, said, error = command(capsys, a, b, tmp_path / "none", "--out", tmp_path / "out")
    assert (status, said) == (2, "")
    assert "bad.json: $.colour: unknown field" in error
    assert "bad.json: $.records[0].noise_us: expected a number" in error
    assert "worse.json: $: " in error
    assert "old.json: $.records[0].tokens: expected an integer from 1" in error
    assert "none: expected raw results, got no such file or folder" in error
    assert list(contents_of(tmp_path / "out")) == ["old.json"]
    assert command(capsys, b / "y.json", "--out", a / "x.json")[0] == 2


def test_gpus_that_share_a_file_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One would take the other's place."""
    put(tmp_path, "a/x.json", document())
    put(tmp_path, "b/x.json", document(gpu="NVIDIA (H200)"))
    status, _, error = command(capsys, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert status == 2
    assert "expected one GPU's results, got 'NVIDIA (H200)' and 'NVIDIA H200'" in error
    assert not (tmp_path / "out").exists()


def test_the_tuners_files_come_out_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layout, numbers and order are the tuner's."""
    wide = {"tokens": 4096, "adapters": 1, "num_segments": 8, "noise_us": 1e-05}
    race = {"run": 0, "samples": 96, "times": [[BETTER, 10.0], [DEFAULT, 11.5]]}
    content = text(document(record(**wide), record(chunk_size=64, tuned_us=20.1 + 0.2, races=[race])))
    name = "nvidia-h200/triton-3.6.0/shrink-k1024-s3-r64-bfloat16.json"
    file = tmp_path / "a" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert command(capsys, tmp_path / "a", "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / name).read_text() == content
