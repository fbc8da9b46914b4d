"""A chapter of csgmv report, from fabricated files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csgmv.reporting import findings
from fabricated import put


def chapter(folder: Path, *documents: dict[str, Any], bandwidth: float = 1e12) -> findings.Chapter:
    """The first one of a folder that the documents are put into."""
    for number, made in enumerate(documents):
        put(folder, f"{number}.json", made)
    return findings.read(folder, bandwidth=bandwidth).chapters[0]
