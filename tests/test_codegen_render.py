"""The table as Python source."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from codegen.render import literal, render, write
from codegen.source import choose, fallback, rules

KEY = rules.Key("expand", 0, (2048,), 64, 1, "bfloat16", 16, 8)
ROW = (64, 64, 16, 1, 4, 3, None, False)


def namespace(text: str) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    exec(compile(text, "_tuned_table.py", "exec"), variables)
    return variables


def test_the_source_gives_the_table_back() -> None:
    """Keys and rows as plain tuples: they import four times faster than calls of classes do."""
    table = {("NVIDIA H200", "3.6.0"): {KEY: ROW, KEY._replace(chunk_size=32): None}, ("NVIDIA A100", "3.6.0"): {}}
    chunk_sizes = {("NVIDIA H200", "3.6.0"): {(1, 1): 16, (2048, 8): 64}, ("NVIDIA A100", "3.6.0"): {}}
    gpus, defaults = {"NVIDIA H200": ("9.0", 132)}, {"9.0": {"expand": {16: ROW, 32: ROW}}, "8.0": {}}
    losses = {"shrink": {"architecture's default": (3, 56, 250), "nearest rank": (1, -2, -2)}, "expand": {}}
    variables = namespace(render(choose.Chosen(table, chunk_sizes, [], gpus, defaults), "sha256:0123", losses))
    assert variables["LOSSES"] == losses
    assert variables["GPUS"] == gpus
    assert variables["DEFAULTS"] == defaults
    assert {target: fallback.flat(rows) for target, rows in variables["TABLE"].items()} == table
    assert variables["CHUNK_SIZES"] == chunk_sizes
    assert variables["DIGEST"] == "sha256:0123"
    ((layer, batches),) = variables["TABLE"]["NVIDIA H200", "3.6.0"].items()
    assert {type(layer), *map(type, batches)} == {tuple}


def test_an_entry_is_a_line() -> None:
    """So that a change in one row is a change in one line."""
    keys = [KEY._replace(chunk_size=size) for size in (16, 32, 64)]
    target = ("NVIDIA H200", "3.6.0")
    choice = choose.Chosen({target: dict.fromkeys(keys, ROW)}, {target: {(8, 8): 16}}, [])
    lines = render(choice, "sha256:0").splitlines()
    assert "        (8, 8): 16," in lines
    layer = lines.index("        ('expand', 0, (2048,), 64, 1, 'bfloat16'): {")
    row = "(64, 64, 16, 1, 4, 3, None, False),"
    assert lines[layer + 1 : layer + 4] == [f"            ({size}, 8): {row}" for size in (16, 32, 64)]


@pytest.mark.parametrize("value", [1.5, b"x", [1], {"a": 1}, object(), (1, (2, 3.0)), float("nan")])
def test_nothing_but_literals_is_written(value: object) -> None:
    """Floats neither: the table has none."""
    with pytest.raises(TypeError, match="expected int, bool, None, str or a tuple of these, got"):
        literal(value)


def test_a_type_that_passes_for_another_is_not_written() -> None:
    """A class may give itself any repr."""

    class Number(int):
        def __repr__(self) -> str:
            return "__import__('os')"

    with pytest.raises(TypeError, match="got Number"):
        literal((Number(1),))


@pytest.mark.parametrize("value", [(), (1,), ("a'b\"\n", None, True, -3), ((1,), ((),))])
def test_literals_give_the_value_back(value: object) -> None:
    """Quotes and tuples of one and none included."""
    assert ast.literal_eval(literal(value)) == value


def test_an_unchanged_file_is_not_touched(tmp_path: Path) -> None:
    """So that builds do not make a tree look changed, and work where nothing may be written."""
    out = tmp_path / "table.py"
    assert write("A = 1\n", out)
    os.utime(out, (1, 1))
    assert not write("A = 1\n", out)
    assert out.stat().st_mtime == 1
    assert write("A = 2\n", out)
    assert out.read_bytes() == b"A = 2\n"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last step fails the old file stands, and nothing else lies about."""
    out = tmp_path / "table.py"
    write("A = 1\n", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o644

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write("A = 2\n", out)
    assert [file.name for file in tmp_path.iterdir()] == ["table.py"]
    assert out.read_text() == "A = 1\n"
