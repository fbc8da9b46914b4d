"""What `--help` prints: descriptions in paragraphs, defaults, examples that can be pasted, exit statuses.

A subcommand's module says what is its own: its docstring is the description, EXAMPLES maps command lines to what they
do, STATUSES maps exit statuses to what they mean. All else is the same for every command.
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

WIDTH = 100  # columns; longer lines are not read with ease
STATUSES = {0: "all well", 2: "bad options or input, or something that is needed is not there"}
_PROMPT = "$ "
_STEP = "    "
_BROKEN = " \\"  # at the end of a line, for the shell to go on with the next
_QUOTED = re.compile(r"'[^']*'")
_LABEL = re.compile(r" *(\d+  )?")  # what a folded line's continuation is set in by


class Formatter(argparse.HelpFormatter):
    """Folds to the terminal, to WIDTH at most; breaks no word at its hyphens, so that options can be copied."""

    def __init__(self, prog: str, **settings: Any) -> None:
        settings.setdefault("width", min(shutil.get_terminal_size().columns, WIDTH) - 2)
        super().__init__(prog, **settings)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are folded as wholes; lines that begin with a space each by itself, commands with a backslash."""
        filled = []
        for block in text.split("\n\n"):
            lines = block.split("\n")
            laid = any(line.startswith(" ") for line in lines)
            parts = lines if laid else [" ".join(block.split())]
            filled.append("\n".join(_folded(part, width, indent) for part in parts))
        return "\n\n".join(filled)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """With the default, where there is one that is more than nothing and the text does not tell it itself."""
        default = action.default
        nothing = not default or default is True or default == argparse.SUPPRESS
        if action.help is None or nothing or "default" in action.help:
            return action.help
        told = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{action.help} (default: {told.replace('%', '%%')})"


def _folded(line: str, width: int, indent: str) -> str:
    text = line.lstrip(" ")
    first = indent + line[: len(line) - len(text)]
    if not text.startswith(_PROMPT):
        label = _LABEL.match(line)
        hanging = indent + " " * (label.end() if label else 0)
        return textwrap.fill(text, width, initial_indent=first, subsequent_indent=hanging, break_on_hyphens=False)
    glued = _QUOTED.sub(lambda quoted: quoted[0].replace(" ", "\0"), text)  # the shell breaks no line within quotes
    lines = textwrap.wrap(
        glued,
        width - len(_BROKEN),
        initial_indent=first,
        subsequent_indent=first + _STEP,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"{_BROKEN}\n".join(lines).replace("\0", " ")


def epilog(examples: Mapping[str, str], statuses: Mapping[int, str]) -> str:
    """Examples and exit statuses as `Formatter` lays them out.

    Args:
        examples: what each command line does.
        statuses: what an exit status of this command means, besides STATUSES or in place of them.
    """
    every = sorted({**STATUSES, **statuses}.items())
    return "\n\n".join([_section("examples:", _told(examples)), _section("exit status:", _listed(every))])


def _told(examples: Mapping[str, str]) -> Iterable[str]:
    for command, does in examples.items():
        yield from (f"  {_PROMPT}{command}", f"      {does}")


def _listed(statuses: Iterable[tuple[int, str]]) -> Iterable[str]:
    return (f"  {status:3}  {meaning}" for status, meaning in statuses)


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([title, *lines])
