"""Each option of each command, wrong in every way: exit status 2, what is wrong on the last line, nothing written.

The table is in wrong_commands.py. It is complete by construction: options are asked of the parsers themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from csgmv import binaries, cli, launch
from fabricated import document, put
from wrong_commands import ANY, GOOD, WRONG


def options(command: str) -> Iterator[argparse.Action]:
    """What a command may be given."""
    parser = argparse.ArgumentParser(prog=command)
    importlib.import_module(cli.COMMANDS[command].module).add_arguments(parser)
    yield from (action for action in parser._actions if action.dest != "help")


def name(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else action.dest


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_has_wrong_cases(command: str) -> None:
    """Also one that is still to be written."""
    known = {*WRONG[command]} | ANY.get(command, set())
    assert {name(action) for action in options(command)} == known


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with results and a file that holds something else; options are looked at as on a GPU."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "results/nvidia-h200/triton-3.6.0/shrink.json", document())
    (tmp_path / "a-file").write_text("no JSON")
    return tmp_path


@contextlib.contextmanager
def as_on_a_gpu(command: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if command in ("agree", "warmup", "bench"):
            patch.setattr(launch, "INTERPRETED", False)
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "device_count", lambda: 1)
            patch.setattr(torch.cuda, "current_device", lambda: 0)
            patch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
            patch.setattr(torch.cuda, "device", contextlib.nullcontext)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
            patch.setattr(binaries.sizes_of_chunks, "possible", lambda *_: {16})
            patch.setattr(binaries, "_without_rows", lambda *_: pytest.fail("nothing was found wrong"))
        yield


def ran(argv: Sequence[str]) -> int:
    try:
        return cli.main(argv)
    except SystemExit as error:
        return int(error.code or 0)


def cases(command: str) -> Iterator[tuple[Sequence[str], str]]:
    """Those of the table, and those that an option's kind says."""
    for lines in WRONG[command].values():
        yield from lines
    for action in options(command):
        option = name(action)
        if not action.option_strings:
            continue
        if action.nargs == 0:
            yield [f"{option}=1"], f"argument {option}: ignored explicit argument '1'"
        elif action.choices is not None:
            yield [option, "nonsense"], f"argument {option}.*: invalid choice: 'nonsense'"
        elif action.type not in (None, Path):
            yield [option, "x"], f"argument {option}: (invalid .* value: 'x'|expected .*, got 'x')|got 'x'"
        if action.nargs in (None, "+"):
            yield [option], f"argument {option}: expected (one|at least one) argument"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_what_is_wrong_is_told_in_one_line(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit status 2; no file is made or changed."""
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for added, message in cases(command):
        argv = [command, *GOOD[command], *added]
        if not added[0].startswith("-"):
            argv = [command, *added, "results"]
        with as_on_a_gpu(command):
            status = ran(argv)
        said = capsys.readouterr().err
        assert status == cli.USER_ERROR, f"{argv}: {status}, {said}"
        assert re.search(message, said.rstrip().rpartition("\n")[2]), f"{argv}: {said!r}, not {message!r}"
        assert "Traceback" not in said
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
