"""Sections → one file of HTML that asks for nothing else: no script, no request, styles and pictures in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from csgmv import columns
from csgmv.reporting.elements import Section, Table

_TEMPLATES = Path(__file__).with_name("templates")


class Part(NamedTuple):
    """A chapter of the page: its title, and its sections in order."""

    title: str
    sections: Sequence[Section]


class Source(NamedTuple):
    """Where the results are, a digest of them, that of the installed table, and csgmv's version."""

    path: str
    digest: str
    table_digest: str
    version: str


def _numeric(table: Table) -> list[int]:
    """The columns of numbers, which are set to the right; dimensions are none."""
    return [
        column
        for column in range(len(table.header))
        if columns.right_aligned(table.rows, column) and not any("→" in row[column] for row in table.rows)
    ]


def render(parts: Sequence[Part], source: Source) -> str:
    """The page; whatever stands in a section is text there, never HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["numeric"] = _numeric
    return environment.get_template("page.html.j2").render(parts=parts, source=source)
