"""`csgmv report`: raw results in, a page and its pictures out."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from pathlib import Path

import pytest

from csgmv import cli
from fabricated import EXPAND, document, older, put, record, record_of

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

SHIPPED = Path(__file__).parents[2] / "configs"


def write(out: Path, configs: Path, *options: str) -> str:
    """The page that the command writes."""
    assert cli.main(["report", "--configs", str(configs), "--out", str(out), *options]) == 0
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_pictures_lie_beside_the_page_and_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte, in the order of the page."""
    put(tmp_path / "configs", "one.json", document())
    html, out = write(tmp_path / "out", tmp_path / "configs"), tmp_path / "out"
    inside = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", html)]
    beside = {file.name: file.read_bytes() for file in out.iterdir() if file.suffix == ".png"}
    assert set(beside) == {"speed-up.png", "speed-up-shrink.png", "floor.png", "winners.png", "landscape-shrink.png"}
    assert sorted(inside) == sorted(beside.values())
    assert capsys.readouterr().out == f"{out}/report.html: 1 key, 5 pictures (PNGs lie beside it)\n"


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    """So that two of them can be compared."""
    put(tmp_path / "configs", "one.json", document())
    assert write(tmp_path / "a", tmp_path / "configs") == write(tmp_path / "b", tmp_path / "configs")


def test_a_gpu_is_a_chapter_with_pictures_of_its_own(tmp_path: Path) -> None:
    """Unless one is chosen."""
    put(tmp_path / "configs", "one.json", document())
    put(tmp_path / "configs", "two.json", document(gpu="NVIDIA A100"))
    html = write(tmp_path / "both", tmp_path / "configs")
    assert re.findall(r'class="chapter">([^<]*)<', html) == ["NVIDIA A100, Triton 3.6.0", "NVIDIA H200, Triton 3.6.0"]
    assert {file.name[:2] for file in (tmp_path / "both").glob("*.png")} == {"1-", "2-"}
    html = write(tmp_path / "one", tmp_path / "configs", "--gpu", "a100", "--bandwidth", "1.5")
    assert re.findall(r'class="chapter">([^<]*)<', html) == ["NVIDIA A100, Triton 3.6.0"]
    assert "at 1.5 TB/s: as given by --bandwidth." in html


def test_records_of_all_sorts_make_a_page(tmp_path: Path) -> None:
    """Without a default that runs, without finalists, without candidates; of schema 1 too."""
    put(tmp_path / "configs", "a.json", document(record(None), record(chunk_size=32, candidates=[], finalists=[])))
    put(tmp_path / "configs", "b.json", document(record_of("expand", 5.0, 16, 8, 8), **EXPAND))
    put(tmp_path / "configs", "c.json", older(document(record(), input_dim=2048)))
    html = write(tmp_path / "out", tmp_path / "configs")
    assert "2048 → 3·64" in html
    assert "2 of 4 keys have no speed-up" in html


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="configs/ does not lie beside these tests")
def test_the_shipped_results_are_told_quickly_and_briefly(tmp_path: Path) -> None:
    """In a minute, on a processor that is shared with other tests, and ten kilobytes a key."""
    began = time.process_time()
    html = write(tmp_path, SHIPPED)
    assert time.process_time() - began < 60
    keys = sum(len(json.loads(path.read_text())["records"]) for path in SHIPPED.rglob("*.json"))
    assert len(html) < 10_000 * keys


def test_no_results_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written."""
    (tmp_path / "configs").mkdir()
    assert (
        cli.main(["report", "--configs", str(tmp_path / "configs"), "--out", str(tmp_path / "out")]) == cli.USER_ERROR
    )
    assert capsys.readouterr().err == f"csgmv: error: {tmp_path}/configs: expected raw results, got none\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["0", "-1", "nan", "1001", "fast"])
def test_a_bandwidth_is_a_number_of_terabytes(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Within reason."""
    with pytest.raises(SystemExit):
        cli.main(["report", "--bandwidth", given])
    assert f"expected TB/s, above 0 up to 1000, got '{given}'" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_without_the_extra_the_remedy_is_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work is done."""
    put(tmp_path, "one.json", document())
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["report", "--configs", str(tmp_path), "--out", str(tmp_path / "out")]) == cli.USER_ERROR
    assert "report: needs matplotlib and jinja2: pip install 'csgmv[plot]'" in capsys.readouterr().err
