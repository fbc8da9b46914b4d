"""What rows of other keys lose is told of those that races timed, and of no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from csgmv.reporting import borrowing, canvas, sections
from fabricated import BETTER, DEFAULT, document, record
from reported import chapter

pytest.importorskip("matplotlib")

ROWS = [[16, 32, 128, 2, 1, warps, 2, None, False] for warps in (1, 2, 4, 8)]
RACE = {
    "run": 0,
    "samples": 96,
    "times": [[BETTER, 10.0], [DEFAULT, 15.0], *([row, us] for row, us in zip(ROWS, (11.0, 9.9, 35.0, 12.0)))],
}


RACED = document(record(races=[RACE]), record(chunk_size=64))


def test_losses_are_counted_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; what takes more than twice as long is drawn as that. The winner and the default are none of them."""
    monkeypatch.setattr(canvas, "picture", lambda _name, _caption, figure: figure)
    made = borrowing.section(chapter(tmp_path, RACED))
    (table,) = made.tables
    assert table.rows == [["shrink", "1", "4", "15.0 %", "250.0 %", "250.0 %"]]
    (panel,) = made.pictures[0].axes
    curve = panel.lines[0]
    assert list(curve.get_xdata()) == [25, 50, 75, 100]
    assert list(curve.get_ydata()) == pytest.approx([-1, 10, 20, 100])


def test_they_are_counted_among_what_was_measured(tmp_path: Path) -> None:
    """Apart from finalists."""
    (table,) = sections.search(chapter(tmp_path, RACED)).tables
    assert ["measured", "at full length, as rows of other keys", "4", "4"] in [list(row) for row in table.rows]


def test_without_races_the_command_is_named(tmp_path: Path) -> None:
    """There is no picture."""
    made = borrowing.section(chapter(tmp_path, document()))
    assert "csgmv cross" in made.lead
    assert list(made.pictures) == []
