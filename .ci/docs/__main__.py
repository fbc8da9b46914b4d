"""Write the API reference into a folder, build/docs if none is named: PYTHONPATH=.ci python -m docs [FOLDER].

pdoc imports each module and renders what it finds, so names that are imported when they are first asked for are on its
pages as any others. What it warns of, such as an annotation that does not resolve, is an error.
"""

from __future__ import annotations

import importlib
import sys
import typing
import warnings
from pathlib import Path

import pdoc

from docs.pages import PAGES, names

TEMPLATES = Path(__file__).with_name("templates")


def _prepare(page: str) -> None:
    """Import a page's module, and have pdoc see its public names alone, with types for annotations."""
    module = importlib.import_module(page)
    module.__all__ = list(names(page))  # type: ignore[attr-defined]
    for name in names(page):
        value = getattr(module, name)
        if hasattr(value, "_field_defaults"):  # a NamedTuple's annotations do not say which module they are of
            value.__new__.__annotations__ |= typing.get_type_hints(value)


def write(folder: Path) -> list[str]:
    """Write all pages, and return what pdoc warned of."""
    for page in PAGES:
        _prepare(page)
    pdoc.render.configure(docformat="google", template_directory=TEMPLATES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*PAGES, output_directory=folder)
    return [str(warning.message) for warning in caught]


def main(argv: list[str]) -> int:
    """Write the pages and say where they are; exit status 1 where pdoc warned of something."""
    folder = Path(argv[0] if argv else "build/docs")
    faults = write(folder)
    for fault in faults:
        print(f"docs: {fault}", file=sys.stderr)
    print(f"{folder / 'index.html'}: {len(PAGES)} modules")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
