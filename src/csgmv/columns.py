"""Rows of cells as text: aligned columns, one field a line where columns do not fit, or Markdown."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

_GAP = "  "
_LABEL = " " * 8  # as wide as a label and the gap after it
_LEAST_FOLDED = 24  # characters of a column that is folded; narrower ones are no longer read with ease


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in ("+", "-") and cell[1:2].isdigit())


def right_aligned(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Columns of numbers (a unit or a dash among them is no matter) are set to the right."""
    cells = [row[column] for row in rows if row[column] not in ("", "-")]
    return bool(cells) and all(map(_numeric, cells))


def _records(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    label = max(map(len, header))
    blocks = ("\n".join(f"{name:<{label}}  {cell}" for name, cell in zip(header, row)) for row in rows)
    return "\n\n".join(blocks)


def folded(text: str, width: int | None) -> list[str]:
    """A text as lines of at most so many characters (None: as one line), words left whole."""
    if width is None:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def labelled(label: str, text: str, width: int | None) -> str:
    """A text after its label, folded beneath itself; without a label it goes on with what stands above."""
    first, *more = folded(text, width and max(width - len(_LABEL), _LEAST_FOLDED))
    return "\n".join([f"{label:<{len(_LABEL)}}{first}", *(_LABEL + line for line in more)])


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, *, fold: bool = False
) -> str:
    """The rows under their header, in columns; one field a line where that is wider than `width` characters.

    With `fold`, the last column is first of all folded into what the others leave of the width, if that is enough.
    """
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    if rows and width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        left = width - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1)
        if not fold or left < _LEAST_FOLDED:
            return _records(header, rows)
        widths[-1] = left
    right = [right_aligned(rows, i) for i in range(len(header))]

    def lines(row: Sequence[str]) -> str:
        last = folded(row[-1], widths[-1] if fold else None)
        parts = itertools.zip_longest(*([cell] for cell in row[:-1]), last, fillvalue="")
        padded = (
            (cell.rjust(n) if to_right else cell.ljust(n) for cell, n, to_right in zip(part, widths, right))
            for part in parts
        )
        return "\n".join(_GAP.join(line).rstrip() for line in padded)

    return "\n".join(map(lines, cells))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as a Markdown table (columns of numbers to the right)."""
    rule = ["---:" if right_aligned(rows, i) else "---" for i in range(len(header))]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in (header, rule, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def rewritable(stream: TextIO) -> bool:
    """Whether the stream is a terminal on which a line can be written over: not one that calls itself dumb."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def progress(text: str) -> None:
    """Say on one line of the terminal what is being done; an empty text clears it. Nothing where nobody watches."""
    if rewritable(sys.stderr):
        width = min(60, shutil.get_terminal_size().columns - 1)  # a line that is full would begin the next one
        print(f"\r{text:<{width}.{width}}", end="\r", file=sys.stderr, flush=True)


def terminal_width() -> int | None:
    """Columns of the terminal that standard output goes to; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
