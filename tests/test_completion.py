"""Shell completion: the scripts do in their shells what a user expects of them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest

from csgmv import cli, completion

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: completion.script(shell) for shell in completion.SHELLS}


def in_shell(shell: str, *argv: str) -> list[str]:
    """The lines that a shell prints; skipped where the shell is not installed."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, *argv], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def completed(shell: str, script: str, typed: str, folder: object) -> list[str]:
    """What a shell that has read the script offers for the last word of a line that begins 'csgmv '."""
    words = ["csgmv", *typed.split(" ")]
    if shell == "fish":
        offered = in_shell("fish", "--no-config", "-c", f"cd {folder}\n{script}\ncomplete -C 'csgmv {typed}'")
        return [line.split("\t")[0] for line in offered]
    quoted = " ".join(f"'{word}'" for word in words)
    ask = (
        f"cd {folder}\n{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        f"compopt() {{ :; }}\n_shtab_csgmv\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    return in_shell("bash", "--norc", "-c", ask)


def typing(argv: list[str], lines: list[str]) -> str:
    """What a terminal shows whose user types these lines into a program, and then that it is to end."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(["timeout", "60", *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        os.write(ours, "".join(f"{line}\n" for line in [*lines, "exit"]).encode())
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's end, once nobody writes to it
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    return shown.decode()


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("", [*cli.COMMANDS]),
        ("exp", ["explain"]),
        ("tune --time", ["--time-budget"]),
        ("explain --dtype bf", ["bfloat16"]),
        ("completion z", ["zsh"]),
        ("tune --from-misses mis", ["misses.json"]),
    ],
)
def test_completions(shell, typed, wanted, scripts, tmp_path):
    """Of commands, options, choices and files."""
    (tmp_path / "misses.json").touch()
    offered = completed(shell, scripts[shell], typed, tmp_path)
    assert set(wanted) <= set(offered)
    assert not {"merge", "--stale", "float16"} & set(offered) - set(wanted)


def test_zsh_completes_on_a_terminal(scripts, tmp_path):
    """Zsh completes nowhere else: a line is typed, up to a Tab and Enter, for a csgmv that prints its arguments."""
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    (tmp_path / "_csgmv").write_text(scripts["zsh"])
    (tmp_path / "misses.json").touch()
    load = f"cd {tmp_path}; fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -d dump"
    fake = 'PS1=; csgmv() { print "<$@>" }'
    typed = ["expl\t", "tune --time-b\t60", "explain --dtype bfl\t", "tune --from-misses mis\t"]
    text = typing(["zsh", "--no-rcs", "--interactive"], [load, fake, *(f"csgmv {line}" for line in typed)])
    told = re.findall(r"<(.*?) ?>\r", text)
    assert told == ["explain", "tune --time-budget 60", "explain --dtype bfloat16", "tune --from-misses misses.json"]


def test_every_option_is_in_every_script(scripts):
    """Also of the commands that are imported only when chosen."""
    for name, parser in cli.subcommands(cli.parser()):
        for option in parser._option_string_actions:
            for shell, script in scripts.items():
                assert option.lstrip("-") in script, (shell, name)


def test_without_shtab_the_extra_is_named(monkeypatch, capsys):
    """With what to type."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "csgmv: error: completion: needs shtab: pip install 'csgmv[completion]'\n"
