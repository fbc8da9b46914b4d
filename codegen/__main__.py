"""`python -m codegen`: makes src/csgmv/_tuned_table.py from configs/, checks it, judges it, or compares revisions."""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen import CONFIGS, TABLE, Faulty, diff, generate, history, limits, regret, write
from codegen.source import choose, fallback, kernel_hash, readme_block, rules


def _name(head: fallback.Head, key: rules.Key) -> str:
    gpu, triton = head
    return f"{gpu}, Triton {triton}, {', '.join(f'{name} {value}' for name, value in key._asdict().items())}"


def _stale(chosen: choose.Chosen) -> int:
    """How many rows were measured with kernels other than those of this source tree."""
    today = kernel_hash.kernel_hash()
    return sum(not kernel_hash.same_kernels(result.kernel_hash, today) for result in chosen.results)


def _report(choice: choose.Chosen, whole: bool) -> Iterator[str]:
    """What was chosen, in numbers; with `whole` also the keys that nothing beat the default at."""
    for (gpu, triton), rows in choice.table.items():
        tuned = sum(row is not None for row in rows.values())
        yield (
            f"{gpu}, Triton {triton}: {tuned} rows baked, {len(rows) - tuned} keys keep the default, which nothing "
            f"beat by more than the noise{'' if whole else ' (--all lists them)'}; "
            f"chunk sizes for {len(choice.chunk_sizes[gpu, triton])} cells of batches"
        )
    for target, rows in choice.table.items() if whole else ():
        yield from (f"default kept: {_name(target, key)}" for key, row in rows.items() if row is None)
    for duplicate in choice.duplicates:
        yield (
            f"duplicate: {_name(duplicate.head, duplicate.key)}: "
            f"{duplicate.kept} wins over {', '.join(duplicate.dropped)}"
        )


def _judge(found: Sequence[regret.Regret], into: Path | None) -> None:
    """Prints what borrowing costs, or puts it into a file."""
    if into is None:
        for line in regret.report(found):
            print(line)
    else:
        readme_block.put(into, regret.markdown(found), regret.MARKER)


def _difference(text: str, out: Path) -> str | None:
    """How a committed table differs from what it should be, in its first few lines, or None."""
    committed = out.read_bytes().decode(errors="replace") if out.is_file() else ""
    if committed == text:
        return None
    diff = difflib.unified_diff(committed.splitlines(), text.splitlines(), "committed", "generated", n=0, lineterm="")
    lines = list(diff) or ["the lines are the same, their line ends are not"]
    shown = "\n".join(line if len(line) <= 400 else f"{line[:397]}..." for line in lines[:10])
    more = f"\n… and {len(lines) - 10} lines more" if len(lines) > 10 else ""
    return f"{out}: not what the raw results give; run `python -m codegen`\n{shown}{more}"


def _since(revision: str, configs: Path, choice: choose.Chosen, most: int | None) -> Iterator[str]:
    """What changed since a git revision.

    Raises:
        history.Unknown: the revision cannot be read, or no table can be made of its results.
    """
    with tempfile.TemporaryDirectory() as folder:
        commit = history.unpack(revision, configs, Path(folder))
        try:
            before = generate(Path(folder)).choice
        except Faulty as error:
            raise history.Unknown(str(error).replace(folder, f"{commit}:{configs.name}")) from None
    yield f"{configs} since {revision} ({commit}), both tables made by the present code"
    yield from diff.report(before, choice, most)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m codegen", description="Make the table of tuned configs.")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of raw results (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=TABLE, help="file to write (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is out of date")
    parser.add_argument(
        "--fresh", action="store_true", help="with --check: fail also if rows were measured with other kernels"
    )
    parser.add_argument(
        "--regret",
        action="store_true",
        help="write no table; print what keys would lose that have to borrow their configs",
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help="with --regret: put it into FILE as a table in Markdown, between "
        f"{' and '.join(readme_block.markers(regret.MARKER))}",
    )
    parser.add_argument(
        "--diff", metavar="REV", help="write nothing; tell what the results have changed since this git revision"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"list the keys that keep the default; with --diff: all rows, not {diff.MOST} of a kind",
    )
    options = parser.parse_args(argv)
    if options.fresh and not options.check:
        parser.error("--fresh: expected together with --check")
    if options.into is not None and not options.regret:
        parser.error("--into: expected together with --regret")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 1 where results are faulty or, with --check, something is out of date."""
    options = _parsed(argv)
    try:
        text, choice, regrets = generate(options.configs)
        if options.regret:
            _judge(regrets, options.into)
            return 0
        if options.diff is not None:
            print(*_since(options.diff, options.configs, choice, None if options.all else diff.MOST), sep="\n")
            return 0
        limits.enforce(regrets, limits.read())
    except (Faulty, history.Unknown, limits.Excessive) as error:
        print(error, file=sys.stderr)
        return 1
    for line in _report(choice, options.all):
        print(line)
    if options.check:
        stale, difference = _stale(choice), _difference(text, options.out)
        if stale:
            old = f"{stale} of {len(choice.results)} rows were measured with other kernels than these"
            print(f"{old}; `csgmv tune --stale` measures them again", file=sys.stderr)
        if difference:
            print(difference, file=sys.stderr)
        else:
            print(f"{options.out}: up to date")
        return 1 if difference or (stale and options.fresh) else 0
    print(f"{options.out}: {'written' if write(text, options.out) else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
