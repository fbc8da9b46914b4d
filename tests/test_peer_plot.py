"""The picture of a run: bars of the floor's share, in SVG, the same each time."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import peer_runs
from csgmv import cli, peer_plot, peers

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path: Path) -> peers.Run:
    return peers.read(peer_runs.put(tmp_path / "run.json", peer_runs.document()))


def test_bars_are_shares_of_the_floor(run: peers.Run) -> None:
    """A panel a suite; in each csgmv's bars and then the best peer's, from top to bottom as the rows are."""
    figure = peer_plot.draw(run, "GPU of the test")
    assert "GPU of the test" in figure.get_suptitle()
    assert [len(panel.patches) for panel in figure.axes] == [16, 16, 12]
    decode = figure.axes[2]
    widths = [bar.get_width() for bar in decode.patches]
    assert widths[3] == pytest.approx(100 * 11.2 / 20.1)
    assert widths[6 + 3] == pytest.approx(100 * 11.2 / 32.9)
    assert [label.get_text() for label in decode.get_yticklabels()][3] == "32 × 32 qkv"
    assert decode.yaxis_inverted()
    assert {"20.1 µs", "32.9 µs"} <= {text.get_text() for text in decode.texts}


def test_what_has_no_time_has_no_bar(run: peers.Run) -> None:
    """And says so."""
    del run.suites["decode"][0]["csgmv"]  # type: ignore[attr-defined]
    decode = peer_plot.draw(run, "").axes[2]
    assert decode.patches[0].get_width() == 0
    assert "no time" in {text.get_text() for text in decode.texts}


def test_the_same_run_gives_the_same_bytes(run: peers.Run) -> None:
    """SVG without a date, so that a commit shows only what changed."""
    first, again = peer_plot.svg(run, "GPU"), peer_plot.svg(run, "GPU")
    assert first == again
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert "32 × 32 qkv" in first


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the tables."""
    source, plot = peer_runs.put(tmp_path / "run.json", peer_runs.document()), tmp_path / "new" / "peers.svg"
    argv = ["--peers", str(source), "--measured-on", "NVIDIA H200 torch 2.11.0 triton 3.6.0", "--plot", str(plot)]
    assert cli.main(["bench", *argv]) == 0
    assert "Decode: " in capsys.readouterr().out
    assert "NVIDIA H200, torch 2.11.0, Triton 3.6.0, 20" in plot.read_text(encoding="utf-8")


def test_without_matplotlib_the_remedy_is_named(run: peers.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"--plot: needs matplotlib: pip install 'csgmv\[plot\]'"):
        peer_plot.svg(run, "")


def test_host_times_alone_are_nothing_to_draw(run: peers.Run) -> None:
    """They have no floor."""
    alone = peers.Run({"host": run.suites["host"]})
    with pytest.raises(ValueError, match="--plot: expected one of the suites prefill, mixed, decode, got none"):
        peer_plot.draw(alone, "")
