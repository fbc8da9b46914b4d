"""`csgmv show`: counts, the rows that were asked for, and JSON, from whatever table there is."""

from __future__ import annotations

import importlib
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

import csgmv
from csgmv import chunk_sizes, cli, columns, dispatch, fallback, rules

SHRINK = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)
EXPAND = rules.Key("expand", 0, (2048, 1024, 1024), 64, 3, "bfloat16", 16, 8)
TABLE = {
    ("NVIDIA H200", "3.10.0"): {SHRINK: (64, 32, 256, 1, 4, 4, 3, None, False), EXPAND: None},
    ("NVIDIA H200", "3.5.1"): {SHRINK._replace(chunk_size=32): (16, 16, 64, 1, 1, 2, 3, 128, True)},
    ("NVIDIA A10G", "3.6.0"): {EXPAND._replace(segment_bucket=1): (64, 64, 16, 1, 4, 3, None, False)},
}
TABLE = {target: fallback.by_layer(rows) for target, rows in TABLE.items()}

CELLS = {
    ("NVIDIA H200", "3.10.0"): {(2048, 8): 64, (1, 1): 16, (2048, 1): 128},
    ("NVIDIA H200", "3.5.1"): {(1, 1): 32},
    ("NVIDIA A10G", "3.6.0"): {},
}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setattr(dispatch, "table", lambda: TABLE)
    monkeypatch.setattr(chunk_sizes, "table", lambda: CELLS)


def show(capsys, *argv: str) -> tuple[int, str]:
    status = cli.main(["show", *argv])
    return status, capsys.readouterr().out


def test_counts_per_gpu_version_and_operation(capsys):
    """Versions in the order of their numbers; keys whose default was the best count as keys, not as tuned."""
    status, text = show(capsys)
    assert status == 0
    assert "4 keys" in text.splitlines()[0]
    assert [line.split()[1:] for line in text.splitlines()[2:6]] == [
        ["A10G", "3.6.0", "expand", "1", "1", "1"],
        ["H200", "3.5.1", "shrink", "1", "1", "1"],
        ["H200", "3.10.0", "expand", "1", "1", "0"],
        ["H200", "3.10.0", "shrink", "1", "1", "1"],
    ]


def test_a_row_names_the_fields_that_differ_from_the_default(capsys):
    """And says what the others are."""
    _, text = show(capsys, "--op", "shrink", "--chunk-size", "16")
    assert "shrink on NVIDIA H200, Triton 3.10.0" in text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("1024"))
    assert row.split() == ["1024", "-", "64", "3", "bfloat16", "16", "6-11", "block_n=32", "split_k=4"]
    assert (
        "default: block_m=64 block_n=16 block_k=256 column_tiles=1 split_k=1 num_warps=4 num_stages=3 maxnreg=None"
        in text
    )
    assert text.endswith("1 of 4 keys\n")


@pytest.mark.parametrize(
    ("argv", "rows"),
    [
        (["--all"], 4),
        (["--gpu", "h200"], 3),
        (["--triton", "3.5.1"], 1),
        (["--op", "expand"], 2),
        (["--input-dim", "1024"], 2),
        (["--slice-widths", "2048", "1024", "1024"], 2),
        (["--rank", "64"], 4),
        (["--slices", "3", "--dtype", "bfloat16"], 4),
        (["--segments", "11"], 3),
        (["--segments", "1", "--gpu", "A10G"], 1),
    ],
)
def test_every_option_selects(argv, rows, capsys):
    """11 segments share the bucket of 8; several options must all hold."""
    status, text = show(capsys, *argv, "--json")
    assert status == 0
    assert len(json.loads(text)["rows"]) == rows


@pytest.mark.parametrize("argv", [["--rank", "8"], ["--rank", "8", "--json"], ["--dtype", "float32"]])
def test_nothing_found_is_exit_status_1(argv, capsys):
    """As with grep."""
    assert show(capsys, *argv)[0] == 1


def test_a_gpu_without_rows_is_told_which_there_are(capsys):
    """Not only that there are none."""
    status, text = show(capsys, "--gpu", "A100", "--op", "shrink")
    assert status == 1
    assert f"\nThe table has rows for {', '.join(dispatch.tables().gpus)}.\n" in text


def test_json_names_every_field(capsys):
    """None where the default was the best."""
    _, text = show(capsys, "--triton", "3.10.0", "--json")
    expand, shrink = json.loads(text)["rows"]
    assert expand["config"] is None
    assert shrink["config"] == dict(zip(rules.FIELD_NAMES["shrink"], (64, 32, 256, 1, 4, 4, 3, None, False)))
    assert (shrink["gpu"], shrink["input_dim"], shrink["slice_widths"]) == ("NVIDIA H200", 1024, [])


def test_chunk_sizes_stand_beneath(capsys):
    """For each GPU and version that has some: a line for a number of adapters, a column for a number of rows."""
    _, text = show(capsys)
    older, newer = text.split("\nchunk size where none is given, ")[1:]
    assert "on NVIDIA H200, Triton 3.5.1\n" in older
    assert [line.split() for line in newer.splitlines()[1:]] == [
        ["adapters", "1", "rows", "2048", "rows"],
        ["1", "16", "128"],
        ["8", "-", "64"],
    ]
    assert "chunk size where" not in show(capsys, "--op", "expand")[1]
    assert "chunk size where" not in show(capsys, "--gpu", "A10G")[1]
    assert show(capsys, "--triton", "3.5.1")[1].count("chunk size where") == 1


def test_json_has_the_chunk_sizes(capsys):
    """Of the GPUs and versions asked for."""
    _, text = show(capsys, "--triton", "3.5.1", "--json")
    assert json.loads(text)["chunk_sizes"] == [
        {"gpu": "NVIDIA H200", "triton": "3.5.1", "rows": 1, "adapters": 1, "chunk_size": 32}
    ]
    assert len(json.loads(show(capsys, "--json")[1])["chunk_sizes"]) == 4


@pytest.mark.parametrize("segments", ["0", "-3"])
def test_a_number_of_segments_that_no_launch_has_is_refused(segments, capsys):
    """By the option's name: 0 would be served as 1."""
    assert cli.main(["show", "--segments", segments]) == 2
    assert f"--segments: expected a positive number, got {segments}" in capsys.readouterr().err


def test_a_config_of_both_parts_is_told_by_part(monkeypatch, capsys):
    """Without the prefix at every field, and folded to the terminal."""
    key = rules.Key("add_lora", 1024, (2048,), 64, 1, "bfloat16", 16, 8)
    row = (64, 32, 256, 1, 4, 4, 3, None, False, 64, 128, 16, 1, 4, 3, None, True, True)
    monkeypatch.setattr(dispatch, "table", lambda: {("NVIDIA H200", "3.6.0"): fallback.by_layer({key: row})})
    _, text = show(capsys, "--all")
    assert " shrink(block_n=32 split_k=4) expand(block_n=128 prefetch=True) overlap=True\n" in text
    monkeypatch.setattr(columns, "terminal_width", lambda: 100)
    _, text = show(capsys, "--all")
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert " shrink(block_n=32 split_k=4)\n" in text
    assert text.split() == show(capsys, "--all")[1].split()


def test_the_first_line_tells_the_table_by_digest_and_counts(capsys, monkeypatch):
    """Of the whole table, whatever rows are asked for; the same in JSON."""
    monkeypatch.setattr(csgmv, "__table_digest__", "sha256:0123", raising=False)
    defaults = {"9.0": {"shrink": {128: (16,)}, "expand": {128: (16,), 512: (32,)}}}
    monkeypatch.setattr(dispatch, "tables", lambda: fallback.Tables(TABLE, {}, defaults))
    first = "table sha256:0123: 4 keys, 3 of them tuned, 4 chunk sizes, 3 defaults of architectures"
    assert show(capsys)[1].splitlines()[0] == first
    assert show(capsys, "--op", "shrink")[1].splitlines()[0] == first
    told = json.loads(show(capsys, "--op", "shrink", "--json")[1])
    assert told["digest"] == "sha256:0123"
    assert told["counts"] == {"keys": 4, "tuned": 3, "chunk_sizes": 4, "defaults": 3}


DIGEST = """
import sys
sys.path[:0] = {paths!r}
import csgmv
assert "__table_digest__" in dir(csgmv)
print(csgmv.__table_digest__, *sorted({{"torch", "triton"}} & sys.modules.keys()))
"""


@pytest.mark.parametrize("generated", [True, False])
def test_the_digest_of_the_table(generated, tmp_path):
    """Asked for without an import of torch or Triton; None in a tree whose table has not been made."""
    package = tmp_path / "csgmv"
    shutil.copytree(pathlib.Path(csgmv.__file__).parent, package)
    table = package / "_tuned_table.py"
    table.write_text('DIGEST = "sha256:4567"') if generated else table.unlink()
    script = DIGEST.format(paths=[str(tmp_path)])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sha256:4567" if generated else "None"]


def test_the_digest_is_the_generated_one():
    """And is read once."""
    assert csgmv.__table_digest__ == importlib.import_module("csgmv._tuned_table").DIGEST
    assert vars(csgmv)["__table_digest__"].startswith("sha256:")
    with pytest.raises(AttributeError, match="has no attribute '__table_digests__'"):
        csgmv.__table_digests__  # noqa: B018


def test_a_tree_without_a_table_is_told(monkeypatch, capsys):
    """An uninstalled tree, or a wheel that was built without its hook."""
    monkeypatch.setattr(dispatch, "table", dict)
    monkeypatch.setattr(chunk_sizes, "table", dict)
    status, text = show(capsys)
    assert status == 1
    assert ": 0 keys, 0 of them tuned, 0 chunk sizes, " in text
