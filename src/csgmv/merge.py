"""Merge raw results into one folder: every key has one record there, the better one, whoever measured it.

Which is better `csgmv.baking.choose.worth` says, as for the table: the larger gain over the default of its own run,
then more samples, then the later date; what is equal in all of them is decided by content. Records that differ in
their races alone are one, which keeps the races of all; a record that loses takes its own along. The outcome depends on
the records alone: not on the order of the arguments, nor on how files are named or grouped; merging it again changes
nothing. What --out holds already is merged with the rest, so that nothing is lost.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from csgmv import checks, files, raw_results, rules, schemas
from csgmv.baking.choose import Worth, worth
from csgmv.baking.collect import Document, Faulty, documents, nothing
from csgmv.tuning import record as layout

EXAMPLES = {
    "csgmv merge theirs": "A folder of somebody's raw results into ./configs.",
    "csgmv merge monday tuesday --out both": "Two runs into a folder of their own.",
}


class Race(NamedTuple):
    """A race of a record, with its run."""

    race: dict[str, Any]
    run: dict[str, Any]


class Measured(NamedTuple):
    """One record with all that it means; `content` has it with its run, as text that equal ones share.

    Neither `content` nor `record` has the races; these are by what they are sorted by, which equal ones share.
    """

    file: str
    gpu: str
    triton: str
    key: rules.Key
    worth: Worth
    content: str
    record: dict[str, Any]
    run: dict[str, Any]
    races: Mapping[tuple[str, str], Race]


class Decision(NamedTuple):
    """A key that was measured more than once: the record that is kept, and those that are not, the better first."""

    kept: Measured
    dropped: Sequence[Measured]


class Merged(NamedTuple):
    """Parsed files by their names in the folder, and how keys that were measured more than once were decided."""

    documents: Mapping[Path, dict[str, Any]]
    decisions: Sequence[Decision]


def measured(file: str, document: Mapping[str, Any]) -> Iterator[Measured]:
    """The records in a document that has no faults, by today's schema."""
    document = schemas.upgraded(document)
    runs = document["runs"]
    for whole, result in zip(document["records"], raw_results.results(document)):
        record = {name: value for name, value in whole.items() if name != "races"}
        run = runs[record["run"]]
        content = json.dumps([{**record, "run": 0}, run], sort_keys=True)
        races = [Race(race, runs[race["run"]]) for race in whole["races"]]
        by_order = {layout.race_order(*one): one for one in races}
        yield Measured(file, result.gpu, result.triton, result.key, worth(result), content, record, run, by_order)


def merged(found: Iterable[Measured]) -> Merged:
    """One record for each key.

    Raises:
        ValueError: GPUs whose names differ in signs alone have the same file.
    """
    rivals: dict[tuple[str, str, rules.Key], dict[str, Measured]] = defaultdict(dict)
    for one in sorted(found, key=lambda one: one.file):
        there = rivals[one.gpu, one.triton, one.key]
        same = there.setdefault(one.content, one)
        there[one.content] = same._replace(races={**same.races, **one.races})
    kept: dict[Path, list[Measured]] = defaultdict(list)
    decisions = []
    for (gpu, triton, key), by_content in sorted(rivals.items()):
        best, *others = sorted(by_content.values(), key=lambda one: (one.worth, one.content), reverse=True)
        kept[layout.name(gpu, triton, key)].append(best)
        if others:
            decisions.append(Decision(best, others))
    return Merged({name: _document(name, ones) for name, ones in kept.items()}, decisions)


def _document(name: Path, kept: Sequence[Measured]) -> dict[str, Any]:
    """One file: runs in the order of their dates, records as they were but for the number of their run."""
    first = kept[0]
    for one in kept:
        if one.gpu != first.gpu:
            raise ValueError(f"{name}: expected one GPU's results, got {first.gpu!r} and {one.gpu!r}")
    every = [run for one in kept for run in (one.run, *(race.run for race in one.races.values()))]
    order = {json.dumps(run, sort_keys=True): run for run in every}
    runs = [order[text] for text in sorted(order, key=lambda text: (order[text]["date"], text))]
    made = []
    for one in kept:
        races = [{**race, "run": runs.index(run)} for _, (race, run) in sorted(one.races.items())]
        made.append({**one.record, "run": runs.index(one.run), "races": races})
    return layout.empty(first.gpu, first.triton, first.key) | {"runs": runs, "records": made}


def _reason(kept: Worth, dropped: Worth) -> str:
    """Why the first wins over the second."""
    if kept.gain != dropped.gain:
        if kept.gain == float("inf"):
            return "the default did not run there"
        return f"saves {100 * kept.gain:.1f} % of its default's time, not {100 * dropped.gain:.1f} %"
    if kept.samples != dropped.samples:
        return f"as large a gain, of {kept.samples} samples, not {dropped.samples}"
    if kept.date != dropped.date:
        return f"as large a gain and as many samples, of {kept.date}, not {dropped.date}"
    return "equal in gain, samples and date: the last in the order of their content"


def told(decision: Decision) -> Iterator[str]:
    """Lines that say which record of a key won, over which others, and why."""
    key = decision.kept.key
    sizes = rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)
    yield (
        f"{key.op} {sizes}, {key.dtype}, chunk size {key.chunk_size}, {key.segment_bucket} segments "
        f"on {decision.kept.gpu}, Triton {decision.kept.triton}: {decision.kept.file} wins"
    )
    for one in decision.dropped:
        yield f"  over {one.file}: {_reason(decision.kept.worth, one.worth)}"


def _read(paths: Sequence[Path], out: Path) -> tuple[list[Document], list[Document]]:
    """What the paths hold, and what the folder holds already.

    Raises:
        Faulty: with every fault of every file, or because a path has no results.
    """
    faults: list[str] = []
    sources: list[Document] = []
    present: list[Document] = []
    for path in {one.resolve(): one for one in sorted([*paths, out], reverse=True)}.values():
        try:
            found = documents(path)
        except Faulty as error:
            faults += error.faults
            continue
        if path.resolve() == out.resolve():
            present = found
        else:
            sources += found
            faults += [] if found else [nothing(path)]
    if faults:
        raise Faulty(sorted(faults))
    return sources, present


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv merge`."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a folder of raw results, or one file")
    parser.add_argument("--out", type=Path, default=Path("configs"), metavar="FOLDER", help="where the outcome goes")


def run(args: argparse.Namespace) -> int:
    """Merge, and say which record won where there were several; exit status 0.

    Every fault of every file is told before anything is written. Files are replaced one by one, each in one step;
    those of the folder whose records stand in another file afterwards are removed once all are written.

    Raises:
        ValueError: with every fault of every file, one a line; or --out is no folder.
        OSError: the folder cannot be written.
    """
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out: expected a folder, got {args.out}")
    sources, present = _read(args.paths, args.out)
    every = [one for source in sources + present for one in measured(str(source.file), source.content)]
    outcome = merged(every)
    texts = {args.out / name: layout.text(document) for name, document in outcome.documents.items()}
    for path, text in texts.items():
        faults = raw_results.faults(checks.parse(text))
        assert not faults, f"{path}: what was merged breaks the schema: {faults}"
    written = [path for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode()]
    for path in written:
        files.replace(path, texts[path])
    moved = [one.file for one in present if Path(one.name) not in outcome.documents]
    for path in moved:
        path.unlink()
    for decision in outcome.decisions:
        print(*told(decision), sep="\n")
    for path in moved:
        print(f"{path}: removed, its records are in other files now")
    count = sum(len(document["records"]) for document in outcome.documents.values())
    print(
        f"{args.out}: {count} records in {len(texts)} files, {len(written)} of them written;"
        f" {len(outcome.decisions)} keys had several"
    )
    return 0
