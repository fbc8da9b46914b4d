"""`csgmv coverage`: what serves a model's keys, what that is expected to lose, and what the exit status says of it."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping

import pytest
import torch

from csgmv import cli, cover, coverage, dispatch, fallback, footprint, known_models, models, readme_block, rules
from csgmv.tuning.plan import Plan
from laid import tables

GPU, VERSION = "NVIDIA H200", "3.5.1"
LAYER = models.LayerShape("o", 1024, (512,))
ASKED = ["--layer", "o:1024:512", "--rank", "64", "--chunk-sizes", "16", "--ops", "shrink"]
HERE = ["--gpu", GPU, "--triton", VERSION]
ROW = (16, 32, 128, 1, 4, 4, 2, None, False)
KEYS = [task.key for task in Plan([LAYER], 64, (16,), ops=("shrink",)).tasks()]
LOSSES = {"shrink": {"nearest segment bucket": (9, 201, 523), "default": (109, 561, 4124)}}
Rows = Mapping[rules.Key, "rules.Row | None"]


def known(rows: Rows, defaults: Mapping[str, object] | None = None) -> fallback.Tables:
    return fallback.Tables({(GPU, VERSION): fallback.by_layer(rows)}, {GPU: ("9.0", 132)}, defaults or {})


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cover, "losses", lambda: LOSSES)


@pytest.fixture
def capture(capsys: pytest.CaptureFixture[str]):
    """Runs the command over a table; gives its status and what it printed, as one line of single spaces."""

    def run(over: fallback.Tables, *argv: str) -> tuple[int, str]:
        with tables(over):
            status = cli.main(["coverage", *argv])
        captured = capsys.readouterr()
        return status, " ".join((captured.out + captured.err).split())

    return run


def test_every_key_tuned_is_success(capture) -> None:
    """That the default was measured best at a key is an answer of its own too."""
    rows = dict.fromkeys(KEYS, ROW) | {KEYS[0]: None}
    status, said = capture(known(rows), *ASKED, *HERE)
    assert status == 0
    assert f"{len(KEYS)} keys: {len(KEYS)} tuned, 0 borrowed, 0 default, expected loss 0.0 %" in said
    assert said.count("all exact") == 1


def test_borrowed_keys_are_told_by_step_source_and_loss(capture) -> None:
    """And are a status of their own."""
    missing, *rest = KEYS
    status, said = capture(known(dict.fromkeys(rest, ROW)), *ASKED, *HERE)
    assert status == coverage.STATUS["borrowed"] == 3
    assert f"{len(KEYS)} keys: {len(rest)} tuned, 1 borrowed, 0 default" in said
    (lender, *_) = fallback.lenders(missing, fallback.by_layer(dict.fromkeys(rest)))
    assert f"nearest segment bucket ({lender.segment_bucket}), 1 key loses 20.1 %, 95 %: 52.3 % (9 judged)" in said
    assert f"expected loss {100 * 0.201 / len(KEYS):.1f} %" in said


def test_defaults_are_the_worst(capture) -> None:
    """The built-in one and an architecture's, which are told apart."""
    other = KEYS[0]._replace(op="expand", input_dim=0, slice_widths=(512,))
    status, said = capture(known({other: None}), *ASKED, *HERE)
    assert status == coverage.STATUS["default"] == 4
    assert f"default, {len(KEYS)} keys lose 56.1 %, 95 %: 412.4 % (109 judged)" in said
    assert "architecture" not in said
    status, said = capture(known({other: None}, {"9.0": {"shrink": {128: ROW}}}), *ASKED, *HERE)
    assert status == 4
    assert f"architecture's default, {len(KEYS)} keys whose loss was not measured" in said


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"dtype": "float16"}, "other 16-bit dtype (float16)"),
        ({"segment_bucket": 16384}, "nearest segment bucket (16384)"),
        ({"chunk_size": 128}, "nearest chunk size (128)"),
        ({"max_rank": 32}, "nearest rank (32)"),
        ({"input_dim": 4096}, "nearest dimensions (4096 → 64)"),
        ({"input_dim": 4096, "max_rank": 32}, "nearest dimensions and rank (4096 → 32)"),
    ],
)
def test_each_step_is_named(change, step, capture) -> None:
    """With what it borrows from; dimensions of another rank are apart from those of the same, since they cost more."""
    present = {key._replace(**change): ROW for key in (KEYS if "dtype" in change else KEYS[:1])}
    status, said = capture(known(present), *ASKED, *HERE)
    assert status == 3
    assert step in said


def test_other_versions_and_gpus_are_named(capture, monkeypatch) -> None:
    """A GPU that is here and that the table does not know borrows another's rows."""
    rows = known(dict.fromkeys(KEYS, ROW))
    _, said = capture(rows, *ASKED, "--gpu", GPU, "--triton", "3.6.0")
    assert f"other Triton version, exact (Triton {VERSION}), {len(KEYS)} keys whose loss was not measured" in said
    elsewhere = fallback.Target("NVIDIA H100", VERSION, footprint.LIMITS["9.0"], "9.0", 114)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(coverage.launch, "INTERPRETED", False)
    monkeypatch.setattr(dispatch, "target", functools.cache(lambda _: elsewhere))
    status, said = capture(rows, *ASKED)
    assert status == 3
    assert f"on NVIDIA H100 under Triton {VERSION}" in said
    assert "other GPU, exact (NVIDIA H200)" in said


def test_losses_that_are_put_up_with_count_as_tuned(capture) -> None:
    """By the median; what was not measured is not put up with, whatever the bound."""
    rows = dict.fromkeys(KEYS[1:], ROW)
    assert capture(known(rows), *ASKED, *HERE, "--max-loss", "20")[0] == 3
    assert capture(known(rows), *ASKED, *HERE, "--max-loss", "20.1")[0] == 0
    unmeasured = {key._replace(max_rank=32): ROW for key in KEYS}
    assert capture(known(unmeasured), *ASKED, *HERE, "--max-loss", "1000")[0] == 3
    assert capture(known({}), *ASKED, *HERE, "--max-loss", "57")[0] == 0


def test_help_documents_the_statuses(capsys) -> None:
    """All of them."""
    with pytest.raises(SystemExit):
        cli.main(["coverage", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for told in ("0 every key is tuned,", "3 some keys borrow, and none gets a default", "4 some keys get a default"):
        assert told in said.split("exit status: ")[1]


def test_all_lists_each_key(capture) -> None:
    """With its chunk size, segments, step and expected loss."""
    rows = dict.fromkeys(KEYS[1:], ROW)
    _, said = capture(known(rows), *ASKED, *HERE, "--all")
    assert said.count("o shrink 1024 → 64 16 ") == len(KEYS)
    assert said.count("tuned 0.0 % exact") == len(KEYS) - 1
    assert said.count("borrowed 20.1 % nearest segment bucket") == 1


def test_json_has_every_key(capsys) -> None:
    """For programs; the exit status is the same."""
    with tables(known(dict.fromkeys(KEYS[1:], ROW))):
        assert cli.main(["coverage", *ASKED, *HERE, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["gpu"], told["triton"]) == (GPU, VERSION)
    assert [key["state"] for key in told["keys"]] == ["borrowed", *["tuned"] * (len(KEYS) - 1)]
    first, second, *_ = told["keys"]
    assert (first["layers"], first["max_rank"], first["expected_loss"]) == (["o"], 64, 0.201)
    assert first["source"]["segment_bucket"] != first["segment_bucket"] == KEYS[0].segment_bucket
    assert second["step"] == "exact"


def test_layers_that_share_a_kernel_share_its_row() -> None:
    """o and down expand alike, and shrink apart."""
    with tables(known({})):
        found = cover.covers(Plan(models.QWEN3_EMBEDDING_0_6B, 64, (16,)), coverage.target(GPU, VERSION))
    layers = {(one.key.op, one.key.input_dim, one.key.slice_widths): one.layers for one in found}
    assert layers["expand", 0, (1024,)] == ("o", "down")
    assert layers["shrink", 2048, ()] == ("o",)
    assert layers["add_lora", 1024, (2048, 1024, 1024)] == ("qkv",)
    assert all(layers.values())


def test_ranks_are_16_and_64_if_none_is_given(capture) -> None:
    """Each with a block of its own."""
    _, said = capture(known({}), "--model", "llama-3.2-1b", "--chunk-sizes", "16", "--ops", "shrink", *HERE)
    assert "llama-3.2-1b, rank 16, bfloat16, on NVIDIA H200" in said
    assert "llama-3.2-1b, rank 64, bfloat16, on NVIDIA H200" in said


def two_gpus() -> fallback.Tables:
    gpus = {GPU: ("9.0", 132), "NVIDIA H200 NVL": ("9.0", 132), "NVIDIA A100": ("8.0", 108)}
    return fallback.Tables({(gpu, VERSION): {} for gpu in gpus}, gpus)


@pytest.mark.parametrize(("given", "found"), [("h200 nvl", "NVIDIA H200 NVL"), ("a100", "NVIDIA A100"), (GPU, GPU)])
def test_a_part_of_a_gpu_s_name_is_enough(given: str, found: str) -> None:
    """In any case; the whole name of one counts before parts of others. Its rows' Triton version is meant."""
    with tables(two_gpus()):
        where = coverage.target(given, None)
        assert (where.gpu, where.triton) == (found, VERSION)
        assert where.limits == footprint.LIMITS[where.architecture]
        assert coverage.target(given, "3.9.1").triton == "3.9.1"


@pytest.mark.parametrize("given", ["NVIDIA B200", "NVIDIA", "h20"])
def test_a_gpu_that_the_table_does_not_know_is_refused(given: str, capture) -> None:
    """Or one of several; the message has those that there are."""
    status, said = capture(two_gpus(), *ASKED, "--gpu", given)
    assert status == 2
    assert f"error: --gpu: expected one of the table's, {GPU}, NVIDIA H200 NVL, NVIDIA A100; got {given}" in said


def test_without_a_gpu_the_one_that_the_table_knows_best_is_meant(capture, monkeypatch) -> None:
    """And its Triton version, if none is named; an empty table has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = {KEYS[0]: None}
    tables = fallback.Tables(
        {(GPU, VERSION): fallback.by_layer(row), ("NVIDIA A100", "3.4.0"): {}},
        {"NVIDIA A100": ("8.0", 108), GPU: ("9.0", 132)},
    )
    assert f"on {GPU} under Triton {VERSION}" in capture(tables, *ASKED)[1]
    assert f"on {GPU} under Triton 3.9.0" in capture(tables, *ASKED, "--triton", "3.9.0")[1]
    assert "which has none; got none" in capture(fallback.Tables({}), *ASKED)[1]


@pytest.mark.gpu
def test_the_gpu_that_is_here_is_meant() -> None:
    """With the installed Triton, unless another is asked for."""
    where = coverage.target(None, None)
    assert where == dispatch.target(torch.device("cuda", torch.cuda.current_device()))
    assert coverage.target(None, "3.0.0") == where._replace(triton="3.0.0")


def test_the_readme_s_table_is_put_between_its_markers(capsys, tmp_path) -> None:
    """A row for each known model and rank, and the command that wrote it; whatever is covered, that is success."""
    readme = tmp_path / "README.md"
    readme.write_text("\nold\n".join(readme_block.markers(coverage.MARKER)))
    argv = ["coverage", "--markdown", "--chunk-sizes", "16", "--ops", "shrink", "--into", str(readme), *HERE]
    with tables(known(dict.fromkeys(KEYS, ROW))):
        assert cli.main(argv) == 0
    assert capsys.readouterr().out == ""
    text = readme.read_text()
    assert "old" not in text
    rows = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [[f"| {name}", rank] for name in known_models.models() for rank in ("16", "64")]
    assert f"--gpu '{GPU}' --triton {VERSION}`." in text


def test_into_needs_markdown(capture, tmp_path) -> None:
    """Rather than writing a table for terminals into a README."""
    status, said = capture(known({}), *ASKED, *HERE, "--into", str(tmp_path / "README.md"))
    assert status == 2
    assert "--into: expected together with --markdown" in said


def test_what_to_look_up_has_to_be_said(capture) -> None:
    """A model, an adapter or layers."""
    status, said = capture(known({}), *HERE)
    assert status == 2
    assert "--model, --adapter, --layer: expected one of them, such as --model llama-3.1-8b, got none" in said


def test_the_page_on_results_is_of_this_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """For two models at both ranks; the line beneath the table there has the command that writes it again."""
    monkeypatch.undo()
    text = (pathlib.Path(__file__).parents[1] / "configs" / "README.md").read_text(encoding="utf-8")
    where = coverage.target("H100", "3.6.0")
    found = {
        (model, rank): cover.covers(Plan(models.layer_shapes(model), rank), where)
        for model in ("Qwen/Qwen3-1.7B", "meta-llama/Llama-3.1-8B")
        for rank in coverage.RANKS
    }
    table, _, _ = coverage.markdown(found, where, "").partition("\n\n")
    for row in table.splitlines():
        assert row in text
