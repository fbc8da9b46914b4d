"""Tables as text: readable on a wide terminal, on a narrow one and in Markdown."""

from __future__ import annotations

import io

import pytest

from csgmv import columns


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:  # noqa: D102
        return True


HEADER = ("layer", "time µs", "config")
ROWS = [["qkv", "17.6", "exact"], ["gate_up", "180.0", "nearest chunk size (32)"]]


def test_numbers_are_set_to_the_right_and_words_to_the_left():
    """Columns line up, and no line ends in blanks."""
    assert columns.aligned(HEADER, ROWS).splitlines() == [
        "layer    time µs  config",
        "qkv         17.6  exact",
        "gate_up    180.0  nearest chunk size (32)",
    ]


def test_a_dash_among_numbers_leaves_the_column_to_the_right():
    """A missing number does not turn a column of numbers into one of words."""
    assert columns.aligned(("n",), [["-"], ["125"]]).splitlines() == ["  n", "  -", "125"]


def test_what_is_wider_than_the_terminal_becomes_one_field_a_line():
    """No line is wider than the terminal unless a single cell is."""
    text = columns.aligned(HEADER, ROWS, width=36)
    assert text.splitlines()[:4] == ["layer    qkv", "time µs  17.6", "config   exact", ""]
    assert columns.aligned(HEADER, ROWS, width=41) == columns.aligned(HEADER, ROWS)


def test_a_last_column_is_folded_into_what_is_left():
    """Words stay whole, and the lines that go on stand beneath; where too little is left, one field a line."""
    rows = [["qkv", "block_m=16 block_n=128 num_warps=8"], ["o", "default"]]
    assert columns.aligned(("layer", "config"), rows, 32, fold=True).splitlines() == [
        "layer  config",
        "qkv    block_m=16 block_n=128",
        "       num_warps=8",
        "o      default",
    ]
    assert columns.aligned(("layer", "config"), rows, 30, fold=True) == columns.aligned(("layer", "config"), rows, 30)
    assert columns.aligned(("layer", "config"), rows, fold=True) == columns.aligned(("layer", "config"), rows)


def test_a_text_is_folded_beneath_its_label():
    """Which it has or has not; without a width it stays one line."""
    text = "a row of many words that do not fit"
    assert columns.labelled("row", text, 34).splitlines() == [
        "row     a row of many words that",
        "        do not fit",
    ]
    assert columns.labelled("", "more", 34) == "        more"
    assert columns.labelled("row", text, None) == f"row     {text}"


def test_a_table_without_rows_is_its_header():
    """Nothing to align is no error, on any terminal."""
    assert columns.aligned(HEADER, [], width=5) == "layer  time µs  config"


def test_markdown_aligns_numbers_and_escapes_bars():
    """A bar in a cell does not end it."""
    assert columns.markdown(("a|b", "n"), [["x", "1"]]).splitlines() == ["| a\\|b | n |", "| --- | ---: |", "| x | 1 |"]


def test_a_pipe_has_no_width(monkeypatch):
    """Output that is read by a program is not folded to the terminal that it was started from."""
    monkeypatch.setenv("COLUMNS", "20")
    assert columns.terminal_width() is None  # pytest captures standard output: it is no terminal


@pytest.mark.parametrize(("columns_", "told"), [("200", 60), ("40", 39)])
def test_progress_stays_on_its_line(columns_, told, monkeypatch):
    """A line as wide as the terminal would begin the next one."""
    monkeypatch.setenv("COLUMNS", columns_)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(columns.sys, "stderr", terminal)
    columns.progress("x" * 100)
    assert terminal.getvalue() == f"\r{'x' * told}\r"


def test_a_dumb_terminal_gets_no_progress(monkeypatch):
    """It has no way back to the line's beginning."""
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    monkeypatch.setattr(columns.sys, "stderr", terminal)
    columns.progress("x")
    assert terminal.getvalue() == ""
