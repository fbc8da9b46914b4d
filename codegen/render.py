"""The rows of all tables → Python source, through a Jinja2 template that lets nothing but literals in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from codegen.source import choose, fallback, files, rules

_TEMPLATES = Path(__file__).with_name("templates")


def literal(value: object) -> str:
    """Python source of an int, bool, None, str or tuple of these.

    Raises:
        TypeError: the value is of another type, and might be written as code.
    """
    if type(value) is tuple:
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    if value is None or type(value) in (bool, int, str):
        return repr(value)
    raise TypeError(f"expected int, bool, None, str or a tuple of these, got {type(value).__name__}")


def render(
    choice: choose.Chosen, digest: str, losses: Mapping[str, Mapping[str, tuple[int, int, int]]] | None = None
) -> str:
    """The source of `_tuned_table.py`: one entry a line, in the choice's order, the same on every run."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = literal
    template = environment.get_template("tuned_table.py.j2")
    rows = {target: fallback.by_layer(entries) for target, entries in choice.table.items()}
    others = {
        "chunk_sizes": choice.chunk_sizes,
        "gpus": choice.gpus,
        "defaults": choice.defaults,
        "losses": losses or {},
    }
    return template.render(table=rows, digest=digest, format=rules.table_format(), **others)


def write(text: str, out: Path) -> bool:
    """Writes the source in one step; True unless the file held it already, in which case it is not touched.

    Raises:
        OSError: the file or its folder cannot be written.
    """
    if out.is_file() and out.read_bytes() == text.encode():
        return False
    files.replace(out, text)
    return True
