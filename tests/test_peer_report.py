"""`csgmv bench --peers`: tables, summaries and note in text and Markdown, from one run or two."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import peer_runs
from csgmv import cli, peer_report, peers, readme_block

LINE = "NVIDIA H200 torch 2.11.0+cu130 triton 3.6.0"


def bench(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What the command prints."""
    assert cli.main(["bench", *map(str, argv), "--measured-on", LINE]) == 0
    return capsys.readouterr().out


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the Markdown table whose header begins with this cell, header included and rule left out."""
    lines = text[text.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return peer_runs.put(tmp_path / "one.json", peer_runs.document())


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return peer_runs.put(tmp_path / "two.json", peer_runs.document(drift=1.1))


def test_a_table_a_suite(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its own columns, in one order; prefill with its sums."""
    text = bench(capsys, "--peers", one, "--markdown")
    prefill, host = rows(text, "layer"), rows(text, "call")
    mixed, decode = (rows(text[text.index(f"**{name}") :], "tokens × adapters") for name in ("Mixed", "Decode"))
    ratios = ["best peer ÷ csgmv", "csgmv ÷ floor"]
    peers = ["sglang 0.5.11", "sglang 0.5.23", "vLLM 0.33", "csgmv"]
    assert prefill[0] == ["layer", "kernel", "floor", "limit", "cuBLAS", *peers, *ratios]
    assert mixed[0] == ["tokens × adapters", "layer", "floor", *peers, *ratios]
    assert decode[0][3:7] == ["sglang 0.5.11", "sglang 0.5.23", "0.5.23 tuned", "0.5.23 split-K"]
    assert host[0] == ["call", *peers[:2], "0.5.23 split-K", *peers[2:], ratios[0]]
    assert [len(table) - 1 for table in (prefill, mixed, decode, host)] == [8 + 4, 8, 6, 4]
    assert decode[4] == ["32 × 32", "qkv", "11.2", "63.9", "40.2", "32.9", "41.0", "229.5", "20.1", "1.64", "1.79"]
    assert prefill[9][:2] == ["sum, shrink + expand", "best chunk size"]
    assert prefill[11][2:5] == ["-", "-", "-"]


def test_the_summary_is_what_bench_peers_prints(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Geometric mean and worst over the rows; of the floor only where it is above 8 µs."""
    text = bench(capsys, "--peers", one)
    decode = text[text.index("Decode: ") : text.index("Host: ")]
    ratios = [10.4 / 5.2, 10.8 / 5.6, 9.8 / 5.9, 32.9 / 20.1, 50.6 / 27.3, 29.3 / 15.2]
    mean = torch.tensor(ratios).log().mean().exp().item()
    assert f"best peer ÷ csgmv: geometric mean {mean:.2f}, worst {min(ratios):.2f}, over 6 of 6 rows." in decode
    floors = [20.1 / 11.2, 27.3 / 16.6, 15.2 / 8.2]
    mean = torch.tensor(floors).log().mean().exp().item()
    said = (
        f"csgmv ÷ floor where the floor exceeds 8 µs: geometric mean {mean:.2f}, worst {max(floors):.2f}, over 3 of 3"
    )
    assert said in decode


def test_a_wrong_result_has_no_time_and_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dash in its row, and a summary over the others that says so."""
    content = peer_runs.document()
    del content["decode"][4]["csgmv"], content["decode"][5]["vllm"]
    text = bench(capsys, "--peers", peer_runs.put(tmp_path / "run.json", content), "--markdown")
    decode = rows(text[text.index("**Decode") :], "tokens × adapters")
    assert decode[5][-3:] == ["-", "-", "-"]
    assert decode[6][-4] == "-"
    assert "over 5 of 6 rows" in text
    assert "over 2 of 3 rows" in text


def test_a_second_run_stands_beside_the_first(one: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its time of csgmv and its ratio in columns, its means in brackets, and how far the runs are apart."""
    text = bench(capsys, "--peers", one, two, "--markdown")
    decode = rows(text[text.index("**Decode") :], "tokens × adapters")
    assert decode[0][-5:] == ["csgmv", "again", "best peer ÷ csgmv", "again", "csgmv ÷ floor"]
    assert decode[4][-5:] == ["20.1", "22.1", "1.64", "1.49", "1.79"]
    assert "worst 1.64 (1.49), over 6 of 6 rows." in text
    assert "differ from the first's by 0.0% in the median, by 10.0% at most." in text
    host = rows(text, "call")
    assert host[4] == ["both, add_lora", "63.0", "45.0", "73.0", "86.0", "14.0", "15.4", "3.21", "2.92"]


def test_a_call_that_only_the_first_run_has_right(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows stay side by side with their own."""
    content = peer_runs.document()
    for row in (*content["prefill"], *content["host"]):
        del row["csgmv_pair"]
    text = bench(capsys, "--peers", one, peer_runs.put(tmp_path / "run.json", content), "--markdown")
    assert [row[8:12] for row in rows(text, "layer")[11:]] == [["515.7", "-", "4.07", "-"], ["816.5", "-", "3.22", "-"]]


def test_whole_models_stand_beside_the_bare_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way by the bare model's time that was taken beside it; a wrong result has none; again in a column."""
    content = peer_runs.whole_models()
    one = peer_runs.put(tmp_path / "one.json", content)
    text = bench(capsys, "--peers", one, "--markdown")
    table = rows(text, "batch × length")
    assert table == [
        ["batch × length", "bare", "csgmv", "no adapters", "torch.bmm", "PEFT"],
        ["8 × 1024", "40.0", "44.0 (1.100×)", "42.0 (1.050×)", "50.0 (1.250×)", "300.0 (7.500×)"],
        ["64 × 128", "-", "-", "42.0 (1.050×)", "50.0", "300.0"],
    ]
    assert peer_report.METHOD not in text
    assert peer_report.METHOD_OF_WHOLE_MODELS in text
    content["e2e"][0]["csgmv"] = 46.0
    text = bench(capsys, "--peers", one, peer_runs.put(tmp_path / "two.json", content), "--markdown")
    assert rows(text, "batch × length")[1][2:4] == ["44.0 (1.100×)", "46.0 (1.150×)"]


def test_suites_may_come_in_files_of_their_own(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told as if they were one; the second run's as well."""
    whole = bench(capsys, "--peers", one, "--markdown")
    content = peer_runs.document()
    parts = [peer_runs.put(tmp_path / f"{name}.json", {name: rows}) for name, rows in reversed(content.items())]
    assert bench(capsys, "--peers", *parts, "--markdown").partition("NVIDIA")[0] == whole.partition("NVIDIA")[0]
    twice = bench(capsys, "--peers", one, one, "--markdown").partition("NVIDIA")[0]
    assert bench(capsys, "--peers", *parts, one, "--markdown").partition("NVIDIA")[0] == twice


def test_the_note_says_where_when_and_how(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The day is that of the file, the GPU and versions are those given."""
    noon = datetime.datetime(2026, 11, 21, 12).timestamp()
    os.utime(one, (noon, noon))
    note = bench(capsys, "--peers", one, "--markdown").rstrip().splitlines()[-1]
    assert note.startswith("NVIDIA H200, torch 2.11.0+cu130, Triton 3.6.0, csgmv ")
    assert ", 2026-11-21. " in note
    assert cli.main(["bench", "--peers", str(one), "--measured-on", f"{LINE} 2026-11-20", "--markdown"]) == 0
    told = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert told.startswith("NVIDIA H200, torch 2.11.0+cu130, Triton 3.6.0, csgmv ")
    assert ", 2026-11-20. " in told
    assert peer_report.METHOD in note
    assert "Measured by `python bench_peers.py --json FILE`, told by `csgmv bench --peers " in note


def test_into_replaces_the_peers_block_only(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of `csgmv bench` in the same file stay."""
    readme = tmp_path / "README.md"
    own = "\nown\n".join(readme_block.markers("bench"))
    readme.write_text(f"{own}\n" + "\nold\n".join(readme_block.markers("peers")))
    assert bench(capsys, "--peers", one, "--markdown", "--into", readme) == ""
    text = readme.read_text()
    assert text.startswith(own)
    assert "\nold\n" not in text
    assert "**Decode: " in text


def test_the_readme_is_of_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """The H100's tables and picture, by the files in the tree."""
    root = Path(__file__).parents[1]
    paths = [root / "tests" / "measured" / f"h100-{suite}.json" for suite in peers.SUITES]
    text = bench(capsys, "--peers", *paths, "--markdown").partition("NVIDIA")[0]
    lines = [line for line in text.splitlines() if line]
    assert len(lines) > 60
    assert not {*lines} - {*(root / "README.md").read_text(encoding="utf-8").splitlines()}


def test_another_gpus_figures_have_a_block_of_their_own(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named by --block; the usual one stays."""
    readme = tmp_path / "README.md"
    usual = "\nold\n".join(readme_block.markers("peers"))
    readme.write_text(f"{usual}\n" + "\nold\n".join(readme_block.markers("peers-l4")))
    assert bench(capsys, "--peers", one, "--markdown", "--into", readme, "--block", "peers-l4") == ""
    text = readme.read_text()
    assert text.startswith(usual)
    assert "**Decode: " in text.removeprefix(usual)


def test_where_it_was_measured_is_this_gpu_or_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON does not hold it, and nobody guesses."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA B200")
    assert peer_report.setting(None).gpu == "NVIDIA B200"
    assert peer_report.setting(None).torch == torch.__version__
    assert peer_report.setting(f" {LINE}\n") == ("NVIDIA H200", "2.11.0+cu130", "3.6.0", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--measured-on: expected the first line that bench_peers"):
        peer_report.setting(None)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--peers", "{one}", "--measured-on", "an H200"],
            "--measured-on: expected 'GPU torch VERSION triton VERSION [YYYY-MM-DD]'",
        ),
        (["--peers", "{one}", "{two}", "{one}"], "--peers: expected a suite in one file or two, got prefill in 3"),
        (["--peers", "{one}", "{other}"], "other.json: expected the same launches of decode as in "),
        (["--peers", "{one}", "{part}"], "--peers: expected a second run of prefill as of the others, got one in "),
        (["--peers", "{one}", "--into", "README.md"], "--into: expected together with --markdown"),
        (["--peers", "{one}", "--block", "mine"], "--block: expected together with --into"),
        (["--peers", "{one}", "--json", "x.json"], "--json: --peers takes JSON and writes none"),
        (["--peers", "{one}", "--plot", "x.png"], "--plot: expected a file named .svg, got x.png"),
        (["--peers", "{none}"], "No such file or directory"),
        (["--plot", "x.svg"], "--plot: expected together with --peers"),
        (["--measured-on", LINE], "--measured-on: expected together with --peers"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    argv: list[str], said: str, one: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit status 2, before anything is written."""
    content: dict[str, Any] = peer_runs.document()
    content["decode"].pop()
    other = peer_runs.put(tmp_path / "other.json", content)
    part = peer_runs.put(tmp_path / "part.json", {"host": content["host"]})
    names = {"one": one, "two": two, "other": other, "part": part, "none": tmp_path / "none.json"}
    given = [part.format(**names) for part in argv]
    more = [] if "--measured-on" in given or "--peers" not in given else ["--measured-on", LINE]
    assert cli.main(["bench", *given, *more]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
