"""How measured figures are told: no time for a wrong result, one table in three forms, the README's block replaced."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from csgmv import figures, readme_block

BEGIN, END = readme_block.markers("bench")
CASE = figures.Case(("o", "down"), "expand", 2048, (1024,), (64,), 30720, 1, "even", 16, "bfloat16")
RIGHT = figures.Figure(CASE, "exact", {"block_m": 64}, {"block_m": 128}, 1e-3, 2e-3, 120.0, 48.0, 30.0)
WRONG = replace(RIGHT, tuned_error=0.5, tuned_us=None)


def report(*measured: figures.Figure) -> figures.Report:
    return figures.Report(
        measured, "GPU of the test", "2.0", "3.0", "0.1", "2026-11-23", 4.2e12, "Times: M.", "csgmv bench"
    )


@pytest.mark.parametrize(
    ("op", "dimension"),
    [("shrink", "1024 → 3·64"), ("expand", "64 → 2048+1024+1024"), ("add_lora", "1024 → 3·64 → 2048+1024+1024")],
)
def test_a_dimension_says_what_is_mapped_to_what(op, dimension):
    """The largest of mixed ranks is the one that the tensors have."""
    case = replace(CASE, op=op, input_dim=1024, slice_widths=(2048, 1024, 1024), ranks=(8, 64, 16))
    assert case.dimension == dimension


def test_speed_up_and_fraction_are_of_the_tuned_time():
    """120 µs against 48 is 2.5 times; a floor of 30 is 62 % of the way."""
    assert RIGHT.cells[-8:] == ["120.0", "48.0", "2.50×", "30.0", "62%", "-", "-", "exact"]


def test_a_wrong_result_has_no_speed():
    """Neither a time nor a speed-up is printed for it, but its error is."""
    assert not WRONG.right
    assert WRONG.cells[-8:] == ["120.0", "WRONG: 5.0e-01", "-", "30.0", "-", "-", "-", "exact"]


def test_what_batch_invariance_costs_is_told_if_asked():
    """Two columns more, and what they mean; a wrong result has no time there either."""
    asked = replace(RIGHT, invariant_config={"block_m": 16}, invariant_error=1e-3, invariant_us=60.0)
    wrong = replace(asked, invariant_error=0.5, invariant_us=None)
    assert asked.right
    assert not wrong.right
    lines = report(asked, wrong, RIGHT).markdown().splitlines()
    assert lines[0].endswith("| of floor | invariant µs | ÷ tuned | config |")
    assert lines[2].endswith("| 62% | 60.0 | 1.25× | exact |")
    assert lines[3].endswith("| 62% | WRONG: 5.0e-01 | - | exact |")
    assert lines[4].endswith("| 62% | - | - | exact |")
    assert "batch_invariant=True" in report(asked).note()
    assert "invariant" not in report(RIGHT).markdown()


def test_a_batch_that_all_rows_share_stands_in_the_note():
    """One batch: no column repeats it. Two: the columns tell them apart."""
    one, two = report(RIGHT), report(RIGHT, replace(RIGHT, case=replace(CASE, tokens=64, adapters=8)))
    assert "tokens" not in one.text(None).splitlines()[0]
    assert "30720 tokens, 1 adapter, rank 64, bfloat16. " in one.note()
    assert "tokens" in two.text(None).splitlines()[0]
    assert "8 even" in two.text(None)


def test_the_note_names_all_that_is_needed_to_measure_again():
    """GPU, versions, date, method and bandwidth; Markdown the command too."""
    for said in ("GPU of the test", "torch 2.0", "Triton 3.0", "csgmv 0.1", "2026-11-23", "Times: M.", "4.20 TB/s"):
        assert said in report(RIGHT).note()
    assert report(RIGHT).markdown().endswith("Printed by `csgmv bench`.")


def test_markdown_is_a_row_a_figure():
    """Header, rule, rows, an empty line, the note."""
    lines = report(RIGHT, RIGHT).markdown().splitlines()
    assert lines[0].startswith("| layer | kernel | dimension | chunk | default µs | tuned µs | speed-up | floor µs |")
    assert lines[2] == lines[3] == "| o, down | expand | 64 → 1024 | 16 | 120.0 | 48.0 | 2.50× | 30.0 | 62% | exact |"
    assert lines[4] == ""


def test_json_has_every_number_by_name():
    """A wrong result's time is null."""
    value = json.loads(report(RIGHT, WRONG).json())
    assert value["gpu"] == "GPU of the test"
    assert [figure["tuned_us"] for figure in value["figures"]] == [48.0, None]
    assert value["figures"][0]["case"]["slice_widths"] == [1024]
    assert value["figures"][0]["tuned_config"] == {"block_m": 128}


def test_what_stands_between_the_markers_is_replaced_and_nothing_else():
    """Also when it is done again."""
    other = "\n\n".join(readme_block.markers("peers"))
    text = f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\n{other}\n"
    once = readme_block.between_markers(text, "new", "bench")
    assert once == text.replace("old", "new")
    assert readme_block.between_markers(once, "new", "bench") == once
    assert readme_block.between_markers(once, "beside", "peers") == once.replace(
        other, other.replace("\n\n", "\n\nbeside\n\n")
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        BEGIN,
        END + BEGIN,
        2 * (BEGIN + END),
        BEGIN + 2 * END,
    ],
)
def test_missing_or_repeated_markers_are_an_error(text):
    """Rather than a table in the wrong place."""
    with pytest.raises(ValueError, match="--into: expected one <!-- bench:begin -->"):
        readme_block.between_markers(text, "new", "bench")
