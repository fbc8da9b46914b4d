"""Figures in a file such as README.md, between two marker lines of their name; standard library only."""

from __future__ import annotations

from pathlib import Path

from . import files


def markers(name: str) -> tuple[str, str]:
    """The lines between which figures of one kind ("bench", "peers", "coverage", "regret") stand."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def between_markers(text: str, inserted: str, name: str) -> str:
    """The text with what stands between the two marker lines of this name replaced.

    Raises:
        ValueError: the markers are missing, repeated or in the wrong order.
    """
    begin, end = markers(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"--into: expected one {begin} and after it one {end} in the file")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{inserted}\n\n{end}{rest.split(end)[1]}"


def check(path: Path, name: str) -> None:
    """Raises what `put` would, for whoever would rather know now than after minutes of measuring."""
    between_markers(path.read_text(encoding="utf-8"), "", name)


def put(path: Path, inserted: str, name: str) -> None:
    """Replace what stands between a file's markers of this name; the file is whole at any moment.

    Raises:
        ValueError: the markers are missing, repeated or in the wrong order. The file is as it was.
        OSError: the file cannot be read or written.
    """
    files.replace(path, between_markers(path.read_text(encoding="utf-8"), inserted, name))
