"""Dots lie where the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from csgmv.reporting import canvas, dots
from fabricated import EXPAND, document, record, record_of
from reported import chapter

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions give the figures that they would have made PNGs of."""
    monkeypatch.setattr(canvas, "picture", lambda _name, _caption, figure: figure)


def test_dots_lie_at_the_speedups(tmp_path: Path) -> None:
    """A line a layer, colours and legend by chunk size."""
    shrinks = document(record(30.0, 20.0), record(30.0, 10.0, chunk_size=32))
    expands = document(record_of("expand", 5.0, 16, 8, 8), **EXPAND)  # its default does not run
    [figure] = dots.speedups(chapter(tmp_path, shrinks, expands))
    [panel] = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["shrink  1024 → 3·64", "expand  64 → 256+64+64"]
    drawn = {each.get_label(): each.get_offsets()[:, 0].tolist() for each in panel.collections}
    assert drawn["chunk size 16"] == [1.5]
    assert drawn["chunk size 32"] == [3.0]


def test_shares_are_of_the_floor(tmp_path: Path) -> None:
    """The default's in grey, the table's before it."""
    made = chapter(tmp_path, document(record(30.0, 20.0)))
    [figure] = dots.shares(made)
    [default, table] = figure.axes[0].collections
    floor = made.findings[0].floor_us(made.bandwidth)
    assert default.get_offsets().tolist() == [[pytest.approx(floor), pytest.approx(100 * floor / 30)]]
    assert table.get_offsets().tolist() == [[pytest.approx(floor), pytest.approx(100 * floor / 20)]]
