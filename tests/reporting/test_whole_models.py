"""What `csgmv bench --e2e` measured, on the report's page: in the chapter of its GPU, its wrong results marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from csgmv import cli
from csgmv.e2e.results import Report
from csgmv.reporting import bars, whole_models
from csgmv.reporting.findings import Bandwidth, Chapter
from fabricated import document, put
from whole_models import batch, decode, report

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def page(folder: Path, made: Report) -> str:
    """The page with these figures on it."""
    put(folder / "configs", "one.json", document())
    (folder / "e2e.json").write_text(made.json())
    options = ["--configs", str(folder / "configs"), "--out", str(folder / "out"), "--e2e", str(folder / "e2e.json")]
    assert cli.main(["report", *options]) == 0
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_it_is_a_section_of_its_gpus_chapter(tmp_path: Path) -> None:
    """With its picture, its tables and how it was measured."""
    html = page(tmp_path, report(batch(), decode()))
    assert html.count("<h2>End to end</h2>") == 1
    for said in ("44.00 (1.10×)", "+81.8 %", "How this was measured", "at the 4.20 TB/s of a device-to-device copy"):
        assert said in html
    assert (tmp_path / "out" / "end-to-end.png").is_file()


def test_other_chapters_have_no_such_section() -> None:
    """Another GPU's, or the same one's under another Triton version."""
    for gpu, triton in (("NVIDIA A100", "3.6.0"), ("NVIDIA H200", "3.7.0")):
        assert whole_models.of_chapter(report(), Chapter(gpu, triton, [], Bandwidth(1e12, ""))) is None


def test_cards_and_verdicts_are_of_all_batches() -> None:
    """The slowest batch; decoding is held to no mark of prompts; the table's worth over untuned small chunks."""
    made = whole_models.section(report(batch(csgmv=44.0), batch(3, 7, csgmv=48.0), decode()))
    assert [card.value for card in made.cards] == ["1.20×", "1.01×", "1.60×"]
    assert [verdict.good for verdict in made.verdicts] == [True, False, True]
    assert "1 of 2 batches of prompts take more than 1.15×" in made.verdicts[1].text


def test_a_wrong_result_is_marked() -> None:
    """And one that was slow without adapters; what has no time counts for no card."""
    made = whole_models.section(report(batch(csgmv=None, **{"no adapters": 41.0})))
    assert [verdict.good for verdict in made.verdicts] == [False, True, False]
    assert made.verdicts[0].text == "1 of 8 results were wrong and have no time."
    assert made.cards[0].value == "-"


def test_a_bar_is_a_way_to_serve_a_batch() -> None:
    """Once where two columns are one measurement; without a length where there is no time."""
    assert [(label, multiple) for _, label, multiple in bars._bars(decode())] == [
        ("csgmv", 1.1),
        ("defaults", 1.5),
        ("no adapters", 1.01),
        ("torch.bmm", 1.25),
    ]
    labels = {label: multiple for _, label, multiple in bars._bars(batch(PEFT=None))}
    assert labels["PEFT"] is None
    assert labels["defaults, chunk 16"] == 2.0


def test_figures_of_another_gpu_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a page is written."""
    put(tmp_path / "configs", "one.json", document())
    (tmp_path / "e2e.json").write_text(report(gpu="NVIDIA L4").json())
    options = ["--configs", str(tmp_path / "configs"), "--out", str(tmp_path / "out")]
    assert cli.main(["report", *options, "--e2e", str(tmp_path / "e2e.json")]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert "--e2e: expected figures of NVIDIA H200, Triton 3.6.0, got those of NVIDIA L4, Triton 3.6.0 in" in error
    assert not (tmp_path / "out").exists()
