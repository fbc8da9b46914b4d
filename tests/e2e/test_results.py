"""How end-to-end figures are told, and read again: no time for a wrong result, one measurement for one chunk size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csgmv.e2e import results, saved
from whole_models import batch, decode, report


def test_a_row_has_each_way_in_ms_and_in_multiples_of_the_bare_model() -> None:
    """Of 40 ms, 44 is 1.10 times; a floor of 3.2 ms on top of them 1.08; a wrong result has its error, and no time."""
    header, (row,) = results.times_table(report(batch(PEFT=None)).subjects[0])
    assert dict(zip(header, row)) == {
        "batch": "8 × 64",
        "bare ms": "40.00",
        "floor": "1.08×",
        "csgmv": "44.00 (1.10×)",
        "csgmv, chunk 16": "46.00 (1.15×)",
        "defaults": "60.00 (1.50×)",
        "defaults, chunk 16": "80.00 (2.00×)",
        "no adapters": "40.40 (1.01×)",
        "torch.bmm": "50.00 (1.25×)",
        "PEFT": "WRONG: 7.0e-01",
    }


def test_without_a_bare_time_there_are_no_multiples() -> None:
    """But the times that there are."""
    _, (row,) = results.times_table(report(batch(bare=None)).subjects[0])
    assert row[1:4] == ["-", "-", "44.00"]


def test_what_the_table_is_worth_is_throughput() -> None:
    """80 ms against 46, 60 against 44, 80 against 44; nothing where one of the two was wrong."""
    _, rows = results.worth_table(report(batch(), batch(3, 7, defaults_16=None)).subjects[0])
    assert rows == [
        ["8 × 64", "64", "+73.9 %", "+36.4 %", "+81.8 %"],
        ["3 × 7", "64", "-", "+36.4 %", "-"],
    ]


def test_where_the_chosen_chunk_size_is_the_small_one_it_is_measured_once() -> None:
    """Both columns have its time. What was not measured at all has a dash."""
    subject = report(decode()).subjects[0]
    header, (row,) = results.times_table(subject)
    cells = dict(zip(header, row))
    assert cells["csgmv"] == cells["csgmv, chunk 16"] == "44.00 (1.10×)"
    assert cells["PEFT"] == "-"
    assert results.worth_table(subject)[1][0][2:] == ["+36.4 %"] * 3


def test_the_note_names_all_that_is_needed_to_measure_again() -> None:
    """GPU, versions, date, method and bandwidth; Markdown the command too."""
    made = report(peft=None)
    for said in ("NVIDIA H200", "torch 2.0", "transformers 5.0", "PEFT not installed", "2026-11-26", "4.20 TB/s"):
        assert said in made.note()
    assert made.markdown().endswith("Printed by `csgmv bench --e2e`.")
    assert "| 8 × 64 | 40.00 |" in made.markdown()
    assert made.subjects[0].caption in made.text(None)


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Times that there are none of included."""
    made, file = report(batch(PEFT=None), decode()), tmp_path / "e2e.json"
    file.write_text(made.json())
    assert saved.read(file) == made
    assert not made.right
    assert report(decode()).right


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "Expecting value"),
        ('{"figures": []}', r"\$\.figures: unknown field"),
        ({"gpu": 3}, r"\$\.gpu: expected 1 to 500 printable characters, got 3"),
        ({"ms": -1}, r"\$\.subjects\[0\]\.batches\[0\]\.timed\[0\]\.ms: expected a number above 0"),
        ({"ms": float("nan")}, "NaN is not a JSON number"),
    ],
)
def test_another_file_is_refused(wrong: str | dict[str, float], said: str, tmp_path: Path) -> None:
    """With its name and the first fault."""
    file = tmp_path / "other.json"
    if isinstance(wrong, dict):
        document = json.loads(report().json())
        document["subjects"][0]["batches"][0]["timed"][0] |= {k: v for k, v in wrong.items() if k == "ms"}
        document |= {k: v for k, v in wrong.items() if k != "ms"}
        wrong = json.dumps(document)
    file.write_text(wrong)
    with pytest.raises(ValueError, match=f"expected what `csgmv bench --e2e --json` wrote, got .*other.json: {said}"):
        saved.read(file)


def test_the_readme_has_what_was_measured_of_untuned_models() -> None:
    """By the files in the tree, which `bench --e2e --json` wrote."""
    root = Path(__file__).parents[2]
    readme = {*(root / "README.md").read_text(encoding="utf-8").splitlines()}
    for path in sorted((root / "tests" / "measured").glob("e2e-*.json")):
        lines = [line for line in saved.read(path).markdown().splitlines() if line.startswith(("|", "**"))]
        assert len(lines) > 10
        assert not {*lines} - readme
