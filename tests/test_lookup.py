"""`csgmv explain`: the step of the fallback that serves a launch, on this machine and on one named."""

from __future__ import annotations

import pytest
import triton

from csgmv import cli, dispatch, fallback, footprint, rules

KEY = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)
ROW = (64, 32, 128, 1, 4, 4, 3, 128, False)
TABLE = {("NVIDIA H200", "3.5.1"): fallback.by_layer({KEY: ROW, KEY._replace(segment_bucket=64): None})}
SHRINK = ["--op", "shrink", "--input-dim", "1024", "--slices", "3", "--rank", "64", "--chunk-size", "16"]
H200 = ["--gpu", "NVIDIA H200", "--triton", "3.5.1"]


@pytest.fixture(autouse=True)
def table(monkeypatch):
    defaults = {"10.3": {"shrink": {128: ROW}}}
    known = fallback.Tables(TABLE, {"NVIDIA H200": ("9.0", 132)}, defaults)
    monkeypatch.setattr(dispatch, "table", lambda: TABLE)
    monkeypatch.setattr(dispatch, "tables", lambda: known)


def explain(capsys, *argv: str) -> str:
    assert cli.main(["explain", *argv]) == 0
    return capsys.readouterr().out


def test_an_exact_row_is_printed_field_by_field(capsys):
    """With the key asked for and the key found."""
    text = explain(capsys, *SHRINK, "--segments", "6", *H200)
    assert "launch  shrink, input_dim 1024, slices 3, rank 64, bfloat16, chunk size 16, 6-11 segments\n" in text
    assert "on      NVIDIA H200, Triton 3.5.1" in text
    assert "step    exact\n" in text
    fields = dict(line.split() for line in text.splitlines()[-9:])
    assert fields == {name: str(value) for name, value in zip(rules.FIELD_NAMES["shrink"], ROW)}


@pytest.mark.parametrize(
    ("argv", "step"),
    [
        (["--segments", "16", *H200], "nearest segment bucket (8)"),
        (["--segments", "8", "--dtype", "float16", *H200], "other 16-bit dtype (bfloat16)"),
        (["--segments", "8", "--gpu", "NVIDIA H200", "--triton", "3.6.0"], "Triton 3.5.1, exact"),
        (["--segments", "8", "--dtype", "float32", *H200], "default"),
        (["--segments", "8", "--rank", "32", *H200], "nearest rank (64)"),
        (["--segments", "8", "--input-dim", "1536", *H200], "nearest dimensions (1024 → 3·64)"),
        (["--segments", "8", "--gpu", "NVIDIA A10G"], "default"),
        (
            ["--segments", "8", "--gpu", "NVIDIA H100", "--architecture", "9.0", "--triton", "3.5.1"],
            "GPU NVIDIA H200, exact",
        ),
        (
            ["--segments", "8", "--gpu", "NVIDIA X100", "--architecture", "10.3", "--triton", "3.5.1"],
            "default of architecture 10.3",
        ),
    ],
)
def test_each_step_is_named(argv, step, capsys):
    """The nearest row, the nearest version, and what remains when nothing is near."""
    assert f"step    {step}\n" in explain(capsys, *SHRINK, *argv)


def test_a_gpu_that_is_not_here_is_looked_up_under_the_version_of_its_rows(capsys):
    """As a machine that has one would be set up; the installed version says nothing of it."""
    text = explain(capsys, *SHRINK, "--segments", "8", "--gpu", "NVIDIA H200")
    assert "on      NVIDIA H200, Triton 3.5.1 (" in text
    assert "exact" in text


def test_a_part_of_a_word_is_no_name(capsys):
    """An H20 is no H200; and what says more of it is named."""
    text = explain(capsys, *SHRINK, "--segments", "8", "--gpu", "H20")
    assert f"on      H20, Triton {triton.__version__} (" in text
    assert "--architecture, as 9.0 for Hopper, and --sm-count say whose rows it borrows" in text


def test_a_key_whose_default_was_the_best_says_so(capsys):
    """A row of None is an answer, not a miss."""
    text = explain(capsys, *SHRINK, "--segments", "64", *H200)
    assert "the default was measured best" in text
    assert "46-90 segments; tuned on NVIDIA H200 under Triton 3.5.1" in text


def test_a_default_has_no_row(capsys):
    """And the command says that, rather than leaving a blank."""
    text = explain(capsys, *SHRINK, "--segments", "8", "--gpu", "NVIDIA A10G")
    assert "row     none: the built-in default" in text
    text = explain(capsys, *SHRINK, "--segments", "8", "--gpu", "NVIDIA X100", "--architecture", "10.3")
    assert "row     none: what does best on average" in text


def test_a_named_gpu_that_the_table_knows_is_held_to_its_architecture_s_limits(capsys, monkeypatch):
    """And the output says so."""
    elsewhere = fallback.Target("NVIDIA X100", triton.__version__, footprint.UNLIMITED)
    monkeypatch.setattr(dispatch, "target", lambda _: elsewhere)
    text = explain(capsys, *SHRINK, "--segments", "8", *H200)
    assert "not in this machine: its limits are those of architecture 9.0" in text


def test_a_named_gpu_that_is_not_here_is_not_held_to_limits(capsys):
    """What it can run is not known here, and the output says so."""
    assert "not in this machine: its limits are not checked" in explain(
        capsys, *SHRINK, "--segments", "8", "--gpu", "NVIDIA B200"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*SHRINK, "--segments", "0"], "--segments: expected a positive number, got 0"),
        (
            ["--rank", "64", "--chunk-size", "16", "--segments", "1"],
            "--input-dim: expected a positive number for add_lora",
        ),
        (
            ["--op", "expand", "--slices", "2", "--rank", "8", "--chunk-size", "16", "--segments", "1"],
            "--slices: only for",
        ),
        (
            ["--op", "expand", "--slice-widths", *"12345", "--rank", "8", "--chunk-size", "16", "--segments", "1"],
            "num_slices: expected 1 to 4, got 5",
        ),
    ],
)
def test_a_launch_that_cannot_be_is_refused(argv, said, capsys):
    """By the option's name, with exit status 2 and no traceback."""
    assert cli.main(["explain", *argv]) == 2
    assert f"csgmv: error: {said}" in capsys.readouterr().err


def test_batch_invariant_launches_have_one_config(capsys, monkeypatch):
    """That of 32 segments of 16 rows, but for tiles of 16 rows, whatever the segments."""
    other = (64, 64, 64, 1, 4, 4, 3, 128, False)
    rows = fallback.by_layer({KEY._replace(segment_bucket=32): ROW, KEY._replace(segment_bucket=2): other})
    monkeypatch.setattr(dispatch, "tables", lambda: fallback.Tables({("NVIDIA H200", "3.5.1"): rows}))
    usual = explain(capsys, *SHRINK, "--segments", "32", *H200)
    text = explain(capsys, *SHRINK[:-1], "128", "--segments", "2", "--batch-invariant", *H200)
    assert "chunk size 128, 2 segments, batch-invariant\n" in text
    configs = [dict(line.split() for line in each.splitlines()[-9:]) for each in (usual, text)]
    assert configs[0]["block_m"] != "16"
    assert configs[1] == {**configs[0], "block_m": "16"}
