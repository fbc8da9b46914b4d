"""A picture is a PNG, sharp and reproducible; many layers take several."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from csgmv.reporting import canvas, dots, maps
from fabricated import document
from reported import chapter

pytest.importorskip("matplotlib")


def test_more_layers_than_a_picture_holds_go_on_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a name of its own."""
    monkeypatch.setattr(maps, "_MAPPED", 2 * canvas.PANELS + 1)
    layers = (document(input_dim=64 * number) for number in range(1, 2 * canvas.PANELS + 2))
    names = [picture.name for picture in maps.speedup_maps(chapter(tmp_path, *layers), "shrink")]
    assert names == ["speed-up-shrink", "speed-up-shrink-2"]


def test_a_picture_is_a_png_of_two_pixels_for_one(tmp_path: Path) -> None:
    """So that it is sharp on fine screens; and the same bytes each time."""
    made = chapter(tmp_path, document())
    [first], [again] = dots.shares(made), dots.shares(made)
    assert first.png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", first.png[16:24])
    assert (width / 2, height / 2) == pytest.approx(first.pixels, abs=1)
    assert first == again
