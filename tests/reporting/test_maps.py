"""Heat maps have a number a key or a place, at every shape of results."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from csgmv.reporting import canvas, maps
from fabricated import BETTER, document, record
from reported import chapter

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions give the figures that they would have made PNGs of."""
    monkeypatch.setattr(canvas, "picture", lambda _name, _caption, figure: figure)


def test_maps_have_a_number_a_key(tmp_path: Path) -> None:
    """At its chunk size and its bucket of segments."""
    made = document(record(30.0, 20.0), record(30.0, 10.0, chunk_size=32), record(30.0, 12.0, chunk_size=64))
    [figure] = maps.speedup_maps(chapter(tmp_path, made), "shrink")
    panel = figure.axes[0]
    assert {(text.get_position(), text.get_text()) for text in panel.texts} == {
        ((0.5, 2.5), "1.5"),
        ((0.5, 1.5), "3.0"),
        ((0.5, 0.5), "2.5"),
    }
    assert [label.get_text() for label in panel.get_yticklabels()] == ["64", "32", "16"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["8"]


def test_landscapes_say_how_much_slower_each_place_is(tmp_path: Path) -> None:
    """In percent; the winner is framed."""
    candidates = [[BETTER, 20.0, 12, False], [[64, 32, 128, 1, 1, 8, 2, None, False], 25.0, 12, True]]
    [figure] = maps.sweeps(chapter(tmp_path, document(record(candidates=candidates))), "shrink")
    panel = figure.axes[0]
    assert panel.get_title(loc="left") == "1024 → 3·64, chunk 16, 101 × 5"
    assert {(text.get_position(), text.get_text()) for text in panel.texts} == {((0.5, 0.5), "0"), ((1.5, 1.5), "25")}
    assert [label.get_text() for label in panel.get_xticklabels()] == ["32×32", "64×32"]
    assert [frame.get_xy() for frame in panel.patches] == [(0, 0)]


def test_of_many_layers_a_dozen_have_landscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread over all of them, the first and the last among them, as the caption says."""
    captions: list[str] = []
    monkeypatch.setattr(maps.canvas, "picture", lambda _, caption, figure: captions.append(caption) or figure)
    sizes = [512 + 64 * at for at in range(25)]
    made = chapter(tmp_path, *(document(record(candidates=[[BETTER, 20.0, 12, False]]), input_dim=d) for d in sizes))
    titles = [panel.get_title(loc="left") for figure in maps.sweeps(made, "shrink") for panel in figure.axes]
    shown = [int(title.split()[0]) for title in titles if title]
    assert (len(shown), shown[0], shown[-1]) == (12, sizes[0], sizes[-1])
    assert max(after - before for before, after in itertools.pairwise(shown)) <= 3 * 64
    assert all("12 of 25 layers" in caption for caption in captions)


def test_layers_of_the_fewest_keys_have_no_map_beside_those_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has what there is to say of them."""
    monkeypatch.setattr(maps, "_MAPPED", 1)
    captions: list[str] = []
    monkeypatch.setattr(canvas, "picture", lambda _, caption, figure: (captions.append(caption), figure)[1])
    many = document(*(record(30.0, 20.0, chunk_size=size) for size in (16, 32, 64, 128)))
    made = chapter(tmp_path, document(record(30.0, 10.0), input_dim=512), many)
    [figure] = maps.speedup_maps(made, "shrink")
    assert [panel.get_title(loc="left") for panel in figure.axes if panel.texts] == ["1024 → 3·64"]
    assert "each of the 1 layers of 2 that have most keys" in captions[0]


def test_winners_are_counted(tmp_path: Path) -> None:
    """A panel a kernel."""
    [figure] = maps.where_winners_lie(chapter(tmp_path, document(record(), record(chunk_size=32))))
    assert [text.get_text() for text in figure.axes[0].texts] == ["2"]
    assert figure.axes[0].get_title(loc="left") == "shrink"


def test_records_without_candidates_have_no_landscape(tmp_path: Path) -> None:
    """And none without finalists have winners."""
    made = chapter(tmp_path, document(record(candidates=[], finalists=[])))
    assert maps.sweeps(made, "shrink") == maps.where_winners_lie(made) == []
