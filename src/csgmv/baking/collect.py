"""Raw results on disk → validated results, or every fault of every file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import checks, raw_results, records

MOST_BYTES = 16 * 2**20  # a file of real results has some 100 kB


class Faulty(ValueError):
    """Raw results from which no table can be made; its text has one fault a line."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Document(NamedTuple):
    """A file without faults: where it is, its name (relative to the folder that was read), and what is in it."""

    file: Path
    name: str
    content: dict[str, Any]


class Found(NamedTuple):
    """One result and the file that it stands in (relative to the folder that was read)."""

    file: str
    result: records.Result


class Collected(NamedTuple):
    """All results found, and a digest that changes with their content alone: not with layout, place or time.

    `documents` has each file as it was parsed, for reports, which show more than the results that decide.
    """

    found: list[Found]
    digest: str
    documents: Mapping[str, Mapping[str, Any]]


def _files(path: Path) -> Iterator[Path]:
    """The file, or what stands in the folder, at any depth; links to folders are listed, not followed."""
    if not path.is_dir():
        yield from [path] if os.path.lexists(path) else []
        return
    for parent, folders, names in os.walk(path):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in names + links)


def _read(file: Path) -> Any:
    """The parsed content of one file.

    Raises:
        ValueError: it is no plain file of JSON.
        OSError: it cannot be read.
    """
    if file.is_symlink() or not file.is_file():
        raise ValueError("expected a plain file, got a link or a special file")
    if file.suffix != ".json" or not file.name.isprintable():
        raise ValueError("expected only .json files, named in printable characters, and README.md at the top")
    if (size := file.stat().st_size) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got {size}")
    return checks.parse(file.read_text(encoding="utf-8"))


def documents(path: Path) -> list[Document]:
    """Reads a file of raw results, or every one below a folder; there may be none.

    Raises:
        Faulty: with every fault of every file.
    """
    faults: list[str] = []
    found: list[Document] = []
    folder = path if path.is_dir() else path.parent
    for file in sorted(_files(path), key=lambda file: file.relative_to(folder).as_posix()):
        if file == folder / "README.md":
            continue
        try:
            content = _read(file)
            reasons = raw_results.faults(content)
        except RecursionError:
            reasons = ["$: nested too deeply"]
        except (OSError, ValueError) as error:
            reasons = [f"$: {error}"]
        place = str(file) if str(file).isprintable() else repr(str(file))
        faults += [f"{place}: {reason}" for reason in reasons]
        if not reasons:
            found.append(Document(file, file.relative_to(folder).as_posix(), content))
    if faults:
        raise Faulty(faults)
    return found


def nothing(path: Path) -> str:
    """The fault of a place without results."""
    return f"{path}: expected raw results, got {'none' if path.exists() else 'no such file or folder'}"


def collect(path: Path) -> Collected:
    """Reads a file of raw results, or every one below a folder.

    Raises:
        Faulty: with every fault of every file, or because there is no result at all.
    """
    contents = {name: content for _, name, content in documents(path)}
    found: list[Found] = []
    digest = hashlib.sha256()
    for name, content in contents.items():
        found += (Found(name, result) for result in raw_results.results(content))
        digest.update(f"{name}\0{json.dumps(content, sort_keys=True)}\0".encode())
    if not found:
        raise Faulty([nothing(path)])
    return Collected(found, f"sha256:{digest.hexdigest()}", contents)
