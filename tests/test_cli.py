"""The command line: what it mounts, how it fails, and that it behaves in a pipe."""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import subprocess
import sys
import types

import pytest

from csgmv import __version__, cli, demo

SOURCES = str(pathlib.Path(cli.__file__).parents[1])  # of this csgmv, installed or not
IMPORTABLE = {"PYTHONPATH": os.pathsep.join(filter(None, (SOURCES, os.environ.get("PYTHONPATH"))))}


def command(*argv: str, **environment: str) -> subprocess.Popen[str]:
    """`csgmv` as a process of its own, with nothing decided about interpretation."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, "-m", "csgmv.cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=inherited | IMPORTABLE | environment,
    )


@pytest.fixture
def failing(monkeypatch):
    """Mounts a command `fail` whose run is the test's; returns the module that holds it."""
    module = types.ModuleType("csgmv_failing", "Fails.")
    module.add_arguments = lambda _: None
    monkeypatch.setitem(sys.modules, "csgmv_failing", module)
    monkeypatch.setitem(cli.COMMANDS, "fail", cli._Command("csgmv_failing", "fails"))
    return module


def test_help_names_every_command(capsys):
    """One line each, on standard output, and success."""
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for name, mounted in cli.COMMANDS.items():
        assert any(line.split()[:1] == [name] for line in text.splitlines())  # a long name has a line of its own
        assert mounted.help.split()[0] in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    """With its module's words and its options."""
    with pytest.raises(SystemExit) as done:
        cli.main([name, "--help"])
    assert done.value.code == 0
    assert f"usage: csgmv {name}" in capsys.readouterr().out


def test_help_fits_a_narrow_terminal(monkeypatch, capsys):
    """Forty columns are enough to read it."""
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


def test_only_the_chosen_command_is_imported():
    """`csgmv --help` waits for no command's imports."""
    code = (
        "import sys; from csgmv import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {command.module for command in cli.COMMANDS.values()} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=os.environ | IMPORTABLE)


def test_version(capsys):
    """The package's own."""
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"csgmv {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["fly"], ["show", "--nonsense"], ["bench", "--rank", "none"]])
def test_a_bad_command_line_is_exit_status_2(argv, capsys):
    """Told on standard error, with nothing on standard output."""
    try:
        status = cli.main(argv)
    except SystemExit as done:
        status = done.code
    assert status == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("error: " if argv else "usage: csgmv ") in captured.err


@pytest.mark.parametrize(
    ("typed", "hint"), [("explian", "did you mean explain?"), ("xyzzy", "`csgmv --help` lists them")]
)
def test_a_mistyped_command_is_told_what_is_near_it(typed, hint, capsys):
    """In one line."""
    assert cli.main([typed, "--rank", "8"]) == 2
    assert capsys.readouterr().err == f"csgmv: error: {typed}: expected a command, got none of this name; {hint}\n"


def test_a_command_gets_its_arguments_and_the_line_that_was_typed(failing):
    """The line can be typed again as it is printed."""
    seen = {}
    failing.add_arguments = lambda parser: parser.add_argument("--name")
    failing.run = lambda args: seen.update(vars(args)) or 7
    assert cli.main(["fail", "--name", "NVIDIA H200"]) == 7
    assert seen["name"] == "NVIDIA H200"
    assert seen["command_line"] == "csgmv fail --name 'NVIDIA H200'"


@pytest.mark.parametrize("kind", [ValueError, TypeError, ImportError])
def test_our_own_errors_are_one_line(kind, failing, capsys):
    """What csgmv raises is about the user's input: no traceback, exit status 2."""
    scope = {"__name__": "csgmv.somewhere", "kind": kind}
    exec("def run(args): raise kind('ranks: expected a list, got 3')", scope)
    failing.run = scope["run"]
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == "csgmv: error: ranks: expected a list, got 3\n"


def test_a_fault_of_others_keeps_its_traceback(failing):
    """A ValueError out of torch is no news about the user's input, and hiding where it came from helps nobody."""

    def run(_: argparse.Namespace) -> int:
        raise ValueError("deep inside")

    failing.run = run
    with pytest.raises(ValueError, match="deep inside"):
        cli.main(["fail"])


def test_a_missing_file_is_one_line(failing, tmp_path, capsys):
    """Wherever the error was raised."""
    failing.run = lambda _: (tmp_path / "none").read_text()
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == f"csgmv: error: {tmp_path / 'none'}: No such file or directory\n"


def test_a_misspelt_option_is_told_by_its_command(capsys):
    """With the command's usage, and what it may have meant."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["coverage", "--modle", "x"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: csgmv coverage ")
    assert said.endswith("csgmv coverage: error: unknown: --modle x (did you mean --model?)\n")


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_what_every_installation_needs_is_named(name, failing, capsys):
    """An installation without it (`pip install --no-deps`, or triton outside Linux) says what to type."""
    scope = {"__name__": "csgmv.somewhere", "error": ModuleNotFoundError(f"No module named {name!r}", name=name)}
    exec("def run(args): raise error", scope)
    failing.run = scope["run"]
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err.endswith(f"needs {name}, which is not installed: pip install {name}\n")


def test_output_that_cannot_be_encoded_is_replaced(failing, monkeypatch):
    """Arrows and micro signs are not worth a failure where standard output is ASCII."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    failing.run = lambda _: print("48 → 32 in 5 µs") or 0
    assert cli.main(["fail"]) == 0
    assert written.getvalue() == b"48 ? 32 in 5 ?s\n"


def test_an_interruption_is_no_traceback(failing, capsys):
    """Ctrl-C ends with the shell's customary status."""

    def run(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    failing.run = run
    assert cli.main(["fail"]) == 130
    assert capsys.readouterr().err == "csgmv: interrupted\n"


def test_a_reader_that_goes_away_is_no_error():
    """`csgmv show --all | head` prints no traceback."""
    with command("show", "--json") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_without_a_gpu_kernels_are_interpreted():
    """The command decides it before Triton is imported: nobody has to set a variable."""
    launch = ["--op", "shrink", "--input-dim", "48", "--rank", "8", "--chunk-size", "16", "--segments", "1"]
    with command("explain", *launch, CUDA_VISIBLE_DEVICES="") as process:
        text, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "(no GPU here: " in text


def test_missing_numpy_is_named_with_its_remedy(monkeypatch, capsys):
    """Triton's interpreter needs it, and neither torch nor triton brings it."""
    monkeypatch.setattr(demo.launch, "INTERPRETED", True)
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["demo"]) == 2
    assert "needs numpy: pip install 'csgmv[interpret]'" in capsys.readouterr().err
