"""Raw results are whole files at any moment, valid by the rules that the codegen applies, and resumable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from csgmv import checks, files, raw_results, records, rules, schemas
from csgmv.tuning.plan import Batch, Task
from csgmv.tuning.record import Accuracy, Archive, Finalist, Race, Record, Run, Timing

KEY = rules.Key("expand", 0, (48, 16), 12, 2, "bfloat16", 16, 8)
DEFAULT, BEST = (64, 64, 16, 1, 4, 3, None, False), (16, 32, 16, 2, 2, 2, 128, True)
THIRD = (16, 64, 16, 2, 2, 2, None, True)
RUN = Run(
    compute_capability="9.0",
    sm_count=132,
    driver="580.10",
    cuda="13.0",
    torch="2.11.0+cu130",
    csgmv="0.1.0",
    kernel_hash="sha256:" + "a" * 64,
    seed=0,
    date="2026-11-23",
    l2="cold",
)


def measured(key: rules.Key = KEY, best_us: float = 7.123456) -> Record:
    return Record(
        chunk_size=key.chunk_size,
        segment_bucket=key.segment_bucket,
        tokens=37,
        adapters=5,
        num_segments=key.segment_bucket,
        default=Timing(DEFAULT, 10.04, 10.1, 10.3, 768),
        candidates=[(BEST, best_us, 72, False), (DEFAULT, 10.2, 24, True)],
        finalists=[Finalist(BEST, 7.0, best_us, 7.6, 768, 8192, 96, 0)],
        pruned={"registers": 3},
        failed={"OutOfResources: shared memory": 1},
        accuracy=Accuracy(1, 0.00123456, 0.016),
        noise_us=0.0512345,
        batches=[(37, 5, key.segment_bucket, 10.1, 7.12), (8, 8, 8, 9.0, 5.0)],
    )


def task(key: rules.Key = KEY, *batches: tuple[int, int]) -> Task:
    return Task(key, tuple(Batch(*batch, 8) for batch in batches or ((37, 5), (8, 8))))


def archive(folder: Path, **change: object) -> Archive:
    return Archive(folder, "NVIDIA H200", "3.6.0", dataclasses.replace(RUN, **change))


def test_a_record_comes_back_as_the_codegen_reads_it(tmp_path: Path) -> None:
    """Path, validity, and the winner that the shared rules choose."""
    archive(tmp_path).add(KEY, measured())
    path = tmp_path / "nvidia-h200" / "triton-3.6.0" / "expand-n48+16-r12-bfloat16.json"
    document = checks.parse(path.read_text())
    assert raw_results.faults(document) == []
    (result,) = raw_results.results(document)
    assert (result.gpu, result.triton, result.key) == ("NVIDIA H200", "3.6.0", KEY)
    assert records.baked_row(result) == BEST
    assert document["records"][0]["accuracy"]["max_error"] == 0.001235


def test_files_are_compact_with_a_candidate_a_line(tmp_path: Path) -> None:
    """So that a diff of two runs shows what changed, and a repository can hold thousands of keys."""
    one = archive(tmp_path)
    one.add(KEY, measured())
    text = one.path(KEY).read_text()
    assert "[[16,32,16,2,2,2,128,true],7.12,72,false],\n" in text
    assert text.endswith("}\n")
    one.add(KEY._replace(segment_bucket=64), measured(KEY._replace(segment_bucket=64)))
    assert len(one.path(KEY).read_text()) - len(text) < 1200


def test_a_race_is_added_to_what_is_there(tmp_path: Path) -> None:
    """The record, its neighbours and its earlier races stay as they were; each race has its own run."""
    other = KEY._replace(segment_bucket=32)
    first = archive(tmp_path)
    for key in (KEY, other):
        first.add(key, measured(key))
    before = checks.parse(first.path(KEY).read_text())
    first.add_race(KEY, Race(96, [(BEST, 7.123456), (DEFAULT, 10.0)]))
    later = archive(tmp_path, date="2026-12-01")
    later.add_race(KEY, Race(192, [(BEST, 7.0), (THIRD, 8.0)]))
    document = checks.parse(first.path(KEY).read_text())
    assert raw_results.faults(document) == []
    record, neighbour = document["records"]
    assert record["races"] == [
        {"run": 0, "samples": 96, "times": [[list(BEST), 7.12], [list(DEFAULT), 10.0]]},
        {"run": 1, "samples": 192, "times": [[list(BEST), 7.0], [list(THIRD), 8.0]]},
    ]
    assert [{**record, "races": []}, neighbour] == before["records"]
    assert [run["date"] for run in document["runs"]] == ["2026-11-23", "2026-12-01"]
    assert f" [{json.dumps(list(THIRD), separators=(',', ':'))},8.0]\n" in first.path(KEY).read_text()
    assert later.raced(KEY) == {BEST, DEFAULT, THIRD}
    assert archive(tmp_path, driver="590.1").raced(KEY) == set()
    assert later.raced(other) == set()


def test_a_race_without_its_record_is_refused(tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(ValueError, match="expected a record of Key"):
        archive(tmp_path).add_race(KEY, Race(96, [(BEST, 7.0), (DEFAULT, 10.0)]))
    assert not list(tmp_path.iterdir())


def test_a_key_tuned_again_is_raced_again(tmp_path: Path) -> None:
    """Its races were run against another winner's time; those of other keys stay."""
    other = KEY._replace(segment_bucket=32)
    one = archive(tmp_path)
    for key in (KEY, other):
        one.add(key, measured(key))
        one.add_race(key, Race(96, [(BEST, 7.0), (THIRD, 8.0)]))
    one.add(KEY, measured())
    assert (one.raced(KEY), one.raced(other)) == (set(), {BEST, THIRD})


def test_records_of_one_shape_share_a_file_in_order(tmp_path: Path) -> None:
    """Whatever the order in which they were measured; the run is told once."""
    one = archive(tmp_path)
    keys = [KEY._replace(chunk_size=c, segment_bucket=b) for c, b in ((64, 1), (16, 32), (16, 8))]
    for key in keys:
        one.add(key, measured(key))
    document = checks.parse(one.path(KEY).read_text())
    assert [(r["chunk_size"], r["segment_bucket"]) for r in document["records"]] == [(16, 8), (16, 32), (64, 1)]
    assert len(document["runs"]) == 1
    assert [path.name for path in one.path(KEY).parent.iterdir()] == [one.path(KEY).name]


def test_a_key_measured_again_replaces_its_record_and_its_run(tmp_path: Path) -> None:
    """A run that no record is of any more goes; records of other keys keep theirs."""
    other = KEY._replace(segment_bucket=32)
    first = archive(tmp_path)
    for key in (KEY, other):
        first.add(key, measured(key))
    later = archive(tmp_path, date="2026-12-01", driver="590.1")
    later.add(KEY, measured(best_us=7.2))
    document = checks.parse(later.path(KEY).read_text())
    assert [run["date"] for run in document["runs"]] == ["2026-11-23", "2026-12-01"]
    assert [(r["segment_bucket"], r["run"]) for r in document["records"]] == [(8, 1), (32, 0)]
    later.add(other, measured(other))
    document = checks.parse(later.path(KEY).read_text())
    assert [run["driver"] for run in document["runs"]] == ["590.1"]
    assert [r["run"] for r in document["records"]] == [0, 0]


@pytest.mark.parametrize(
    ("change", "fresh"),
    [
        ({}, True),
        ({"date": "2027-01-01", "seed": 5, "csgmv": "0.2.0"}, True),
        ({"kernel_hash": "sha256:" + "b" * 64}, False),
        ({"driver": "590.1"}, False),
        ({"torch": "2.12.0"}, False),
    ],
)
def test_what_was_measured_here_with_these_kernels_is_fresh(
    tmp_path: Path, change: dict[str, object], fresh: bool
) -> None:
    """Another day or csgmv version with the same kernels changes nothing; kernels, driver or torch do."""
    archive(tmp_path).add(KEY, measured())
    assert (archive(tmp_path, **change).fresh(task()) is not None) == fresh


def test_another_batch_or_key_is_not_fresh(tmp_path: Path) -> None:
    """Neither is a key that has no file."""
    one = archive(tmp_path)
    one.add(KEY, measured())
    assert one.fresh(task(KEY, (37, 5))) is not None
    assert one.fresh(task(KEY, (36, 5))) is None
    assert one.fresh(task(KEY, (37, 5), (1, 1))) is None
    assert one.fresh(task(KEY._replace(chunk_size=32))) is None
    assert one.fresh(task(KEY._replace(max_rank=13))) is None


def test_records_of_other_machines_that_take_part_are_fresh(tmp_path: Path) -> None:
    """Each is kept with the run that it comes from; without that machine it is not fresh."""
    other = dataclasses.replace(RUN, driver="570.1")
    both = Archive(tmp_path, "NVIDIA H200", "3.6.0", RUN, other)
    both.add(KEY, measured(), other)
    again = Archive(tmp_path, "NVIDIA H200", "3.6.0", RUN, other)
    assert again.fresh(task()) is not None
    assert [run["driver"] for run in checks.parse(both.path(KEY).read_text())["runs"]] == ["570.1"]
    assert archive(tmp_path).fresh(task()) is None


@pytest.mark.parametrize("at", ["write", "replace"])
def test_killed_while_writing_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Ctrl-C in the middle of writing, or just before the new file takes the old one's place; nothing is left lying."""
    one = archive(tmp_path)
    one.add(KEY, measured())
    before = one.path(KEY).read_text()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if at == "write":
        monkeypatch.setattr(files.os, "chmod", interrupt)
    else:
        monkeypatch.setattr(files.os, "replace", interrupt)
    other = KEY._replace(segment_bucket=32)
    with pytest.raises(KeyboardInterrupt):
        archive(tmp_path).add(other, measured(other))
    monkeypatch.undo()
    assert one.path(KEY).read_text() == before
    assert list(one.path(KEY).parent.iterdir()) == [one.path(KEY)]
    again = archive(tmp_path)
    assert again.fresh(task()) is not None
    again.add(other, measured(other))
    assert len(checks.parse(one.path(KEY).read_text())["records"]) == 2


@pytest.mark.parametrize("text", ["{", '{"schema": 1}'])
def test_a_broken_file_stops_the_run_and_is_kept(tmp_path: Path, text: str) -> None:
    """The path and the fault are named; nobody's results are overwritten."""
    one = archive(tmp_path)
    one.path(KEY).parent.mkdir(parents=True)
    one.path(KEY).write_text(text)
    with pytest.raises(ValueError, match=r"(?s)expand-n48\+16-r12-bfloat16\.json: .*move it away"):
        one.fresh(task())
    assert one.path(KEY).read_text() == text


def test_a_file_of_an_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """Its records stay beside the new one, with what they left out made explicit: batches, and a config's new field."""
    one = archive(tmp_path)
    one.add(KEY, measured())
    path = one.path(KEY)
    document = checks.parse(path.read_text())
    document["schema"] = 1
    document["fields"].remove("prefetch")
    for record in document["records"]:
        del record["batches"], record["tuned_on"], record["races"]
        timings = [record["default"], *record["finalists"]]
        for row in (*(timing["row"] for timing in timings), *(row for row, *_ in record["candidates"])):
            del row[-1]
    assert raw_results.faults(document) == []
    path.write_text(json.dumps(document))
    other = KEY._replace(segment_bucket=32)
    archive(tmp_path).add(other, measured(other))
    document = checks.parse(path.read_text())
    assert raw_results.faults(document) == []
    assert document["schema"] == schemas.SCHEMA
    assert [record["batches"] for record in document["records"]] == [
        [[37, 5, 8, 10.1, 7.12]],
        [[37, 5, 32, 10.1, 7.12], [8, 8, 8, 9.0, 5.0]],
    ]
    older, newer = document["records"]
    # Tiles of one segment, and the whole rank (12) with one tile ahead.
    assert older["default"]["row"] == [16, *DEFAULT[1:5], 1, *DEFAULT[6:]]
    assert [finalist["row"] for finalist in older["finalists"]] == [[*BEST[:5], 1, BEST[6], False]]
    assert [finalist["row"] for finalist in newer["finalists"]] == [[*BEST]]
