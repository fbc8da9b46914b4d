"""Write one HTML page, and its pictures as PNGs, by which to judge raw results.

It shows what tuning gained by layer and chunk size, how near launches come to the memory's speed, what the search saw,
pruned and failed at, and what speaks against trusting it. It needs no GPU.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from csgmv import __version__, columns, files, show
from csgmv.e2e import saved
from csgmv.e2e.results import Report
from csgmv.reporting import findings, page, whole_models
from csgmv.reporting.sections import SECTIONS

PAGE = "report.html"
_WHOLE_MODELS = 2  # place of their section, behind what speaks for and against the results
EXAMPLES = {
    "csgmv report": "./configs as report/report.html.",
    "csgmv report --configs tuned --gpu h200 --bandwidth 4.2 --out /tmp/h200": "One GPU's results, the floor by a "
    "bandwidth that is known.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv report`."""
    add = parser.add_argument
    add(
        "--configs",
        type=Path,
        default=Path("configs"),
        metavar="PATH",
        help="raw results: a folder or file",
    )
    add("--out", type=Path, default=Path("report"), metavar="DIR", help=f"folder for {PAGE} and PNGs")
    add("--gpu", metavar="NAME", help="GPUs whose name contains this, in any case")
    floor = parser.add_mutually_exclusive_group()
    floor.add_argument(
        "--bandwidth",
        type=_terabytes,
        metavar="TB/S",
        help="of the GPU's memory, in 10^12 bytes a second, for the floor (default: the rate of the fastest launch)",
    )
    floor.add_argument(
        "--bench", type=Path, metavar="FILE", help="take the bandwidth from what `csgmv bench --json FILE` wrote"
    )
    add(
        "--e2e", type=Path, metavar="FILE", help="tell also of whole models: what `csgmv bench --e2e --json FILE` wrote"
    )


def _terabytes(text: str) -> float:
    try:
        terabytes = float(text)
    except ValueError:
        terabytes = 0.0
    if not 0 < terabytes <= 1000:
        raise argparse.ArgumentTypeError(f"expected TB/s, above 0 up to 1000, got {text!r}")
    return 1e12 * terabytes


def _check_extra() -> None:
    try:
        importlib.import_module("jinja2")
        importlib.import_module("matplotlib")
    except ImportError:
        raise ValueError("report: needs matplotlib and jinja2: pip install 'csgmv[plot]'") from None


def _whole_models(path: Path | None, book: findings.Book) -> Report | None:
    """What was measured end to end, if asked for; of a GPU and Triton version that the page has a chapter on."""
    if path is None:
        return None
    report = saved.read(path)
    there = [f"{chapter.gpu}, Triton {chapter.triton}" for chapter in book.chapters]
    if (its := f"{report.gpu}, Triton {report.triton}") not in there:
        raise ValueError(f"--e2e: expected figures of {' or '.join(there)}, got those of {its} in {path}")
    return report


def run(args: argparse.Namespace) -> int:
    """Read, draw and write; the page comes last, when its pictures are there.

    Raises:
        ValueError: the results are faulty, there are none, options do not fit them, or an extra is missing.
        OSError: a file cannot be read or written.
    """
    _check_extra()
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out: expected a folder, got {args.out}")
    book = findings.read(args.configs, args.gpu, bandwidth=args.bandwidth, bench=args.bench)
    whole = _whole_models(args.e2e, book)
    parts = []
    for number, chapter in enumerate(book.chapters, start=1):
        prefix = f"{number}-" if len(book.chapters) > 1 else ""
        sections = []
        for section in SECTIONS:
            columns.progress(f"{chapter.gpu}, Triton {chapter.triton}: {section.__name__}")
            sections.append(section(chapter))
        if (more := whole_models.of_chapter(whole, chapter)) is not None:
            sections.insert(_WHOLE_MODELS, more)
        named = [
            made._replace(pictures=[each._replace(name=f"{prefix}{each.name}.png") for each in made.pictures])
            for made in sections
        ]
        parts.append(page.Part(f"{chapter.gpu}, Triton {chapter.triton}", named))
    columns.progress("")
    html = page.render(parts, page.Source(str(book.path), book.digest, show.digest(), __version__))
    pictures = [picture for part in parts for section in part.sections for picture in section.pictures]
    for picture in pictures:
        files.replace(args.out / picture.name, picture.png)
    files.replace(args.out / PAGE, html)
    keys = sum(len(chapter.findings) for chapter in book.chapters)
    print(
        f"{args.out / PAGE}: {keys:,} {'key' if keys == 1 else 'keys'}, {len(pictures)} pictures (PNGs lie beside it)"
    )
    return 0
