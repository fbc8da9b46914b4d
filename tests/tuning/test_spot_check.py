"""`csgmv spot-check`: keys that were not tuned are searched afresh and timed beside what the table gives them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crossed import WHERE as H200
from crossed import RowBench
from csgmv import fallback, footprint, readme_block, records, rules
from csgmv.baking.collect import collect
from csgmv.cli import main
from csgmv.tuning import spot_check
from csgmv.tuning.spot_check import MARKER, acceptable, measure, verdicts
from csgmv.tuning.spots import Asked, Spot, Verdict, drawn
from laid import tables
from rigs import StillRig

WHERE = fallback.Target(*H200, footprint.LIMITS["9.0"], "9.0", 132)
LENDER = rules.Key("shrink", 1024, (), 32, 2, "bfloat16", 16, 8)
ROW = (16, 64, 64, 1, 1, 8, 4, None, False)
TABLES = fallback.Tables({H200: fallback.by_layer({LENDER: ROW})}, {WHERE.gpu: ("9.0", 132)})
OPTIONS = ("--models", "qwen3-1.7b", "--ranks", "8", "32", "--tp", "1", "--ops", "shrink", "--keys", "4")
HERE = ("--gpu", "H200", "--triton", "3.6.0")


@pytest.fixture(scope="module")
def spots() -> list[Spot]:
    asked = Asked(("qwen3-1.7b",), (8, 32), (1,), ("shrink",))
    return list(itertools.islice(drawn(asked, WHERE, TABLES, 0), 4))


@pytest.fixture(scope="module")
def checked(spots: list[Spot], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the searches and races of all spots."""
    folder = tmp_path_factory.mktemp("spots") / "checked"
    measure(spots, folder, StillRig(RowBench()), processes=1)
    return folder


@pytest.fixture
def table() -> Iterator[None]:
    with tables(TABLES):
        yield


def test_losses_are_those_of_the_rows(spots: list[Spot], checked: Path) -> None:
    """The search finds a row of one stage; the table's is timed beside it in each record's race."""
    found = verdicts(spots, checked, WHERE)
    assert [one.spot for one in found] == spots
    for one in found:
        assert one.spot.served.row is not None
        (result,) = (each.result for each in collect(checked).found if each.result.key == one.spot.key)
        best = records.winner(result)
        assert best is not None
        assert one.loss == pytest.approx(RowBench.us(one.spot.served.row) / RowBench.us(best.row) - 1, rel=2e-3)
        assert one.loss > 0.5


def test_what_is_there_is_not_measured_again(spots: list[Spot], checked: Path, tmp_path: Path) -> None:
    """Neither searches nor races; a key more is measured by itself."""
    bench = RowBench()
    measure(spots, checked, StillRig(bench), processes=1)
    assert (bench.checked, bench.raced) == ([], [])
    for file in checked.rglob("*.json"):
        target = tmp_path / file.relative_to(checked)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (more,) = itertools.islice(drawn(Asked(("qwen3-4b",), (8,), (1,), ("shrink",)), WHERE, TABLES, 0), 1)
    measure([*spots, more], tmp_path, StillRig(bench), processes=1)
    assert {key for key, _, _ in bench.raced} == {more.key}
    assert len(verdicts([*spots, more], tmp_path, WHERE)) == 5


def test_a_search_that_was_cut_short_is_told_by_what_it_has(spots: list[Spot], tmp_path: Path) -> None:
    """Without any there is nothing to tell."""
    measure(spots, tmp_path, StillRig(RowBench()), processes=1, time_budget=0.0)
    with pytest.raises(ValueError, match="expected raw results, got none"):
        verdicts(spots, tmp_path, WHERE)
    measure(spots[:1], tmp_path, StillRig(RowBench()), processes=1)
    with pytest.raises(ValueError, match="expected records of the keys drawn, with their races, got none of 3"):
        verdicts(spots[1:], tmp_path, WHERE)
    assert [one.spot for one in verdicts(spots, tmp_path, WHERE)] == spots[:1]


def test_the_limits_are_on_median_tail_and_default(spots: list[Spot]) -> None:
    """Each by itself."""

    def losing(*losses: float, default_us: float | None = 200.0) -> list[Verdict]:
        return [Verdict(spots[0], 100 * (1 + loss), 100.0, default_us, 1.0) for loss in losses]

    assert acceptable(losing(0.0, 0.04, 0.2), 0.05, 0.2)
    assert not acceptable(losing(0.0, 0.06, 0.2), 0.05, 0.2)
    assert not acceptable(losing(0.0, 0.04, 0.21), 0.05, 0.2)
    assert acceptable(losing(0.02, default_us=101.5), 0.05, 0.2)
    assert not acceptable(losing(0.02, default_us=100.5), 0.05, 0.2)
    assert acceptable(losing(0.02, default_us=None), 0.05, 0.2)


def test_there_is_nothing_to_tell_where_nothing_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which option, and what makes the folder."""
    assert main(["spot-check", "--tell", "--out", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("csgmv: error: --out: expected a folder that a run on a GPU has filled, got no ")


@pytest.mark.usefixtures("table")
def test_it_is_told_as_text_json_and_markdown(
    checked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, from the folder; the exit status is by the limits."""
    tell = ["spot-check", *OPTIONS, *HERE, "--out", str(checked), "--tell"]
    assert main(tell) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("4 of 4 keys judged: the table's config loses ")
    losses = [float(line.split(" %")[0]) for line in said[3:]]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    monkeypatch.setattr(spot_check, "WORST", 3)
    assert main(tell) == 1
    assert capsys.readouterr().out.splitlines() == [*said[:-1], "", "These are the worst; --all prints all 4."]
    assert main([*tell, "--all"]) == 1
    assert capsys.readouterr().out.splitlines() == said
    assert main([*tell, "--median", "1000", "--percentile-95", "1000", "--json"]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    assert (told["gpu"], told["keys"], len(told["judged"])) == ("NVIDIA H200", 4, 4)
    assert 100 * told["worst"] == pytest.approx(losses[0], abs=0.06)
    slower = sum(one["slower_than_default"] for one in told["judged"])
    assert main([*tell, "--median", "1000", "--percentile-95", "1000"]) == (1 if slower else 0)
    capsys.readouterr()
    begin, end = readme_block.markers(MARKER)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert main([*tell, "--markdown", "--into", str(readme)]) == 1
    assert capsys.readouterr().out == ""
    lines = readme.read_text().splitlines()
    assert lines[3] == "| model | keys | median | 95 % | worst | slower than default |"
    assert lines[5].startswith("| qwen3-1.7b | 4 | ")
    assert lines[6].startswith("| all | 4 | ")
    assert lines[8].endswith(f"Printed by `csgmv {' '.join(tell)} --markdown --into {readme}`.")


@pytest.mark.usefixtures("table")
def test_a_dry_run_lists_the_keys(spots: list[Spot], capsys: pytest.CaptureFixture[str]) -> None:
    """Those that would be searched, and what serves them."""
    assert main(["spot-check", *OPTIONS, *HERE, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.endswith(f": {spot.served.step}") for line, spot in zip(lines, spots))
    assert lines[-1] == "4 keys"


def test_options_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, with status 2."""
    assert main(["spot-check", "--into", str(tmp_path / "README.md")]) == 2
    assert "--into: expected together with --markdown" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and nothing is written."""
    assert main(["spot-check", "--out", str(tmp_path / "out")]) == 2
    assert "csgmv: error: spot-check needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_two_keys_are_checked_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Searched, timed and told; a second run has nothing to search."""
    options = ["--models", "qwen3-0.6b", "--ranks", "12", "--tp", "1", "--keys", "2", "--out", str(tmp_path)]
    loose = ["--median", "1000", "--percentile-95", "1000", "--processes", "8"]
    assert main(["spot-check", *options, *loose]) in (0, 1)
    assert "2 of 2 keys judged" in capsys.readouterr().out
    assert main(["spot-check", *options, *loose]) in (0, 1)
    assert "0 keys searched" in capsys.readouterr().err


def test_the_readme_is_of_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are in the tree, and within the marks."""
    root = Path(__file__).parents[2]
    written = tmp_path / "README.md"
    written.write_text("\n".join(readme_block.markers(MARKER)))
    asked = ("--tell", "--keys", "150", "--out", str(root / "tests" / "spot-check"))
    assert main(["spot-check", *asked, "--gpu", "H100", "--triton", "3.6.0", "--markdown", "--into", str(written)]) == 0
    capsys.readouterr()
    rows = [line for line in written.read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert not {*rows} - {*(root / "README.md").read_text(encoding="utf-8").splitlines()}
