"""Pictures show the numbers of the records, at every shape of results."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csgmv.reporting import findings, pictures
from fabricated import BETTER, EXPAND, document, put, record, record_of

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """The figures that a function of `pictures` makes PNGs of."""
    monkeypatch.setattr(pictures, "_picture", lambda _name, _caption, figure: figure)
    return lambda draw, *args: draw(*args)


def chapter(folder: Path, *documents: dict[str, Any]) -> findings.Chapter:
    for number, made in enumerate(documents):
        put(folder, f"{number}.json", made)
    return findings.read(folder, bandwidth=1e12).chapters[0]


def texts(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_dots_lie_at_the_speedups(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    """A line a layer, colours and legend by chunk size."""
    shrinks = document(record(30.0, 20.0), record(30.0, 10.0, chunk_size=32))
    expands = document(record_of("expand", 5.0, 16, 8, 8), **EXPAND)  # its default does not run
    [figure] = drawn(pictures.speedups, chapter(tmp_path, shrinks, expands))
    [panel] = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["shrink  1024 → 3·64", "expand  64 → 256+64+64"]
    dots = {dots.get_label(): dots.get_offsets()[:, 0].tolist() for dots in panel.collections if dots.get_label()}
    assert dots["chunk size 16"] == [1.5]
    assert dots["chunk size 32"] == [3.0]


def test_maps_have_a_number_a_key(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    """At its chunk size and its bucket of segments."""
    made = document(record(30.0, 20.0), record(30.0, 10.0, chunk_size=32), record(30.0, 12.0, chunk_size=64))
    [figure] = drawn(pictures.speedup_maps, chapter(tmp_path, made), "shrink")
    panel = figure.axes[0]
    assert {(text.get_position(), text.get_text()) for text in panel.texts} == {
        ((0.5, 2.5), "1.5"),
        ((0.5, 1.5), "3.0"),
        ((0.5, 0.5), "2.5"),
    }
    assert [label.get_text() for label in panel.get_yticklabels()] == ["64", "32", "16"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["8"]


def test_more_layers_than_a_picture_holds_go_on_in_the_next(tmp_path: Path) -> None:
    """Under a name of its own."""
    layers = (document(input_dim=64 * number) for number in range(1, 2 * pictures._PANELS + 2))
    names = [picture.name for picture in pictures.speedup_maps(chapter(tmp_path, *layers), "shrink")]
    assert names == ["speed-up-shrink", "speed-up-shrink-2"]


def test_shares_are_of_the_floor(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    """The default's in grey, the table's before it."""
    made = chapter(tmp_path, document(record(30.0, 20.0)))
    [figure] = drawn(pictures.shares, made)
    [default, table] = figure.axes[0].collections
    floor = made.findings[0].floor_us(made.bandwidth)
    assert default.get_offsets().tolist() == [[pytest.approx(floor), pytest.approx(100 * floor / 30)]]
    assert table.get_offsets().tolist() == [[pytest.approx(floor), pytest.approx(100 * floor / 20)]]


def test_landscapes_say_how_much_slower_each_place_is(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    """In percent; the winner is framed."""
    candidates = [[BETTER, 20.0, 12, False], [[64, 32, 128, 1, 1, 8, 2, None], 25.0, 12, True]]
    [figure] = drawn(pictures.sweeps, chapter(tmp_path, document(record(candidates=candidates))), "shrink")
    panel = figure.axes[0]
    assert panel.get_title(loc="left") == "1024 → 3·64, chunk 16, 101 × 5"
    assert {(text.get_position(), text.get_text()) for text in panel.texts} == {((0.5, 0.5), "0"), ((1.5, 1.5), "25")}
    assert [label.get_text() for label in panel.get_xticklabels()] == ["32×32", "64×32"]
    assert [frame.get_xy() for frame in panel.patches] == [(0, 0)]


def test_winners_are_counted(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    """A panel a kernel."""
    [figure] = drawn(pictures.where_winners_lie, chapter(tmp_path, document(record(), record(chunk_size=32))))
    assert texts(figure.axes[0]) == ["2"]
    assert figure.axes[0].get_title(loc="left") == "shrink"


def test_records_without_candidates_have_no_landscape(tmp_path: Path) -> None:
    """And break no other picture, nor does a record without finalists."""
    made = chapter(tmp_path, document(record(candidates=[], finalists=[])))
    assert pictures.sweeps(made, "shrink") == pictures.where_winners_lie(made) == []
    assert len(pictures.speedups(made)) == len(pictures.shares(made)) == 1


def test_a_picture_is_a_png_of_two_pixels_for_one(tmp_path: Path) -> None:
    """So that it is sharp on fine screens; and the same bytes each time."""
    made = chapter(tmp_path, document())
    [first], [again] = pictures.shares(made), pictures.shares(made)
    assert first.png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", first.png[16:24])
    assert (width / 2, height / 2) == pytest.approx(first.pixels, abs=1)
    assert first == again
