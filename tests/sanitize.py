"""compute-sanitizer over a representative run: every kernel, every way through it, small and few enough to wait for.

    python tests/sanitize.py                          # memcheck, initcheck, racecheck, synccheck
    python tests/sanitize.py --tools racecheck

The same launches are first made without a sanitizer, which fills Triton's cache, then under each of its tools, every
result compared each time. Then comes one launch that stores past the end of its output and one that reads what nobody
wrote: memcheck and initcheck have to find these. The exit status is 0 if all of that is as it should be, 1 if there are
findings, 2 where there is no GPU or no compute-sanitizer.

PyTorch's allocator would hide what the tools look for, since they see its large blocks only: it is switched off. Memory
that nobody may read is left as cudaMalloc gives it, and inputs are copied in number by number. One thing is left out
under initcheck: where max_rank is a multiple of 8 and an adapter's rank is none, expand loads ranks in whole groups of
8, so that its loads are wide, and replaces those beyond the rank by zero.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # for the tests, which make the launches all the same

import exercise
from cases import Case
from csgmv import AddLoraConfig, ExpandConfig, Segments, ShrinkConfig, lora_shrink
from csgmv.config import Config, to_row
from exercise import Operands
from fences import Fenced

TOOLS = ("memcheck", "initcheck", "racecheck", "synccheck")
PLANTED = {"memcheck": "store past the end", "initcheck": "read of what nobody wrote"}
FOUND = 9  # exit status of a program under compute-sanitizer that found something
NO_TOOL = 2
SECONDS = 900.0
INTERPRETED = not torch.cuda.is_available()
CPU = torch.device("cpu")
DEVICE = CPU if INTERPRETED else torch.device("cuda", 0)

SHRINKS = {
    "one pass": ShrinkConfig(16, 32, 64, num_stages=3),
    "shared x": ShrinkConfig(32, 16, 32, column_tiles=3, num_stages=4),
    "large tile": ShrinkConfig(128, 64, 64, column_tiles=2, num_warps=8, num_stages=3),
    "split": ShrinkConfig(16, 32, 64, split_k=4, num_stages=2),
    "sliced": ShrinkConfig(16, 32, 256, num_stages=3, sliced_k=True),
    "sliced and split": ShrinkConfig(16, 16, 128, column_tiles=2, split_k=3, num_warps=8, num_stages=2, sliced_k=True),
    "tiles of several segments": ShrinkConfig(64, 32, 64, num_stages=2),
}
EXPANDS = {
    "rank in steps": ExpandConfig(16, 64, 16, column_tiles=2, num_stages=3),
    "one tile ahead": ExpandConfig(16, 32, 64, column_tiles=3, num_stages=1),
    "pipelined": ExpandConfig(32, 64, 64, column_tiles=4, num_stages=3),
    "prefetched": ExpandConfig(64, 128, 64, column_tiles=2, num_warps=8, num_stages=2, prefetch=True),
    "large tile": ExpandConfig(128, 128, 64, num_warps=8, num_stages=2),
}
PAIRS = {
    "staged": AddLoraConfig(SHRINKS["one pass"], EXPANDS["pipelined"]),
    "staged, overlapped": AddLoraConfig(SHRINKS["shared x"], EXPANDS["one tile ahead"], overlap=True),
    "partials": AddLoraConfig(SHRINKS["split"], EXPANDS["one tile ahead"]),
    "partials, overlapped": AddLoraConfig(SHRINKS["split"], EXPANDS["prefetched"], overlap=True),
    "sliced, in steps": AddLoraConfig(SHRINKS["sliced and split"], EXPANDS["rank in steps"], overlap=True),
    "large tiles": AddLoraConfig(SHRINKS["large tile"], EXPANDS["large tile"]),
}


class Made(NamedTuple):
    """One of the launches: a name for people, and the case."""

    name: str
    case: Case


def _case(op: str, dtype: str, config: Config | None, **fields: object) -> Case:
    """Three adapters of which one is of a lower rank, rows dealt in turns; what `fields` say is otherwise."""
    usual: dict[str, object] = {
        "input_dim": 256,
        "widths": (128, 64),
        "max_rank": 64,
        "chunk_size": 16,
        "padded": False,
        "batch_invariant": False,
        "x_extra": 0,
        "base_extra": 0,
        "unaligned": "",
        "given_out": False,
        "source": "any" if config else "the table",
        "num_tokens": 57,
        "ranks": (64, 64, 40),
        "scalings": (0.5, -1.25, 2.0),
        "mix": "turns",
    }
    return Case(op, dtype, config=to_row(config) if config else None, **{**usual, **fields})  # type: ignore[arg-type]


# Of what no mask is needed for, and of what every one is.
ODD = {
    "input_dim": 101,
    "widths": (40, 7, 0),
    "max_rank": 12,
    "chunk_size": 24,
    "x_extra": 3,
    "base_extra": 5,
    "given_out": True,
    "num_tokens": 41,
    "idle_rows": 2,
    "ranks": (12, 5, 0, 12),
    "scalings": (0.5, -1.25, 2.0, 0.0),
    "mix": "random",
}
SIXTEEN = {"input_dim": 72, "widths": (24,), "max_rank": 16, "scalings": (1.0, 0.5)}


def representative() -> Iterator[Made]:
    """A few dozen: each config on even dimensions with whole ranks, and on odd ones with lower ranks; each grouping."""
    dtypes = itertools.cycle(("float16",) if INTERPRETED else ("float16", "bfloat16"))
    for op, configs in (("shrink", SHRINKS), ("expand", EXPANDS), ("add_lora", PAIRS)):
        for name, config in configs.items():
            yield Made(f"{op}, {name}", _case(op, next(dtypes), config))
            yield Made(f"{op}, {name}, odd", _case(op, next(dtypes), config, **ODD, padded=name.startswith("s")))
    yield Made("add_lora in float32", _case("add_lora", "float32", PAIRS["partials"]))
    yield Made("ranks that are no multiples of 8", _case("add_lora", "float16", None, **SIXTEEN, ranks=(16, 3)))
    for grouping in ("refilled", "on the device", "other adapters"):
        how = {"grouping": grouping, "spare_tokens": 40, "mix": "runs", "num_tokens": 33}
        yield Made(f"rows grouped: {grouping}", _case("add_lora", "float16", None, **SIXTEEN, ranks=(16, 8), **how))


def loads_past_the_rank(case: Case) -> bool:
    """Whether expand's wide loads take in numbers of h and B that nobody has written, and that it then drops."""
    return case.op != "shrink" and case.max_rank % 8 == 0 and any(rank % 8 for rank in case.ranks)


def make(case: Case, device: torch.device) -> None:
    """One launch on memory in which only what a case gives a number has one; raises if it does not come out right."""
    there = exercise.prepare(case, CPU)
    output = there.output and SimpleNamespace(tensor=_laid(there.output, device))
    operands = Operands(
        *(SimpleNamespace(tensor=_laid(each, device)) for each in (there.inputs, there.lora_a, there.lora_b)),
        output,
        exercise.segments_of(case, device),
        there.ranks,
        there.used,
        there.own,
    )
    result = exercise.call(case, operands)
    due = there.due(case)
    got = torch.zeros(due.shape, dtype=result.dtype)
    for at, part in _runs(due):
        got[at][part].copy_(result[at][part])
    fenced = there.output or Fenced(due.shape, result.dtype, CPU)
    exercise.judge(got, due, *exercise.expected(case, there, fenced))


def _laid(fenced: Fenced, device: torch.device) -> torch.Tensor:
    """The tensor on the device, in memory of its own, as large as need be; only its numbers are copied."""
    like = fenced.tensor
    tensor = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    for at, part in _runs(fenced.meant()):
        tensor[at][part].copy_(like[at][part])
    return tensor


def _runs(mask: torch.Tensor) -> Iterator[tuple[tuple[int, ...], slice]]:
    """Where a mask is true: by rows, the runs of neighbouring columns."""
    for at in itertools.product(*map(range, mask.shape[:-1])):
        columns = mask[at].nonzero().flatten().tolist()
        ends = [i for i, (left, right) in enumerate(itertools.pairwise(columns), 1) if right != left + 1]
        for first, end in itertools.pairwise((0, *ends, len(columns)) if columns else ()):
            yield at, slice(columns[first], columns[end - 1] + 1)


def plant(tool: str) -> None:
    """One launch with a fault that the tool has to find."""
    x, a = torch.empty(2, 64, device=DEVICE), torch.zeros(1, 16, 64, device=DEVICE)
    rows = [0, 1]
    if tool == "memcheck":
        x.zero_()
        rows = [0, 2]  # there is no third row
    numbers = (torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in (rows, [0, 2], [0], [16]))
    segments = Segments(*numbers, torch.ones(1, device=DEVICE), chunk_size=16, num_segments=1, num_tokens=2)
    lora_shrink(x, a, segments, config=ShrinkConfig(16, 16, 64))
    torch.cuda.synchronize()


def launches(tool: str) -> int:
    """Make them all, or those that the tool is for; how many."""
    made = [each for each in representative() if tool != "initcheck" or not loads_past_the_rank(each.case)]
    for name, case in made:
        print(name, flush=True)  # the last one printed is the one that failed
        make(case, DEVICE)
    return len(made)


class Report(NamedTuple):
    """What became of a program: how many findings, None where it did not get so far as to say; and what it printed."""

    findings: int | None
    text: str
    seconds: float


def findings(text: str) -> int | None:
    """The number in the last line that compute-sanitizer prints."""
    said = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (?:error|hazard)", text)
    return sum(map(int, said)) if said else None


def sanitized(sanitizer: str | None, tool: str, *options: str) -> Report:
    """Run this file's launches in a process of their own, under a tool unless `sanitizer` is None."""
    program = [sys.executable, __file__, "--launch", tool, *options]
    if sanitizer is not None:
        how = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        program = [sanitizer, *how, "--target-processes", "application-only", *program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    started = time.monotonic()
    try:
        done = subprocess.run(
            program, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return Report(None, f"took longer than {SECONDS:g} s", SECONDS)
    text = done.stdout + done.stderr
    found = findings(text) if sanitizer is not None else 0
    if done.returncode not in (0, FOUND):
        found = found or None  # it failed, and not for what the tool found
    return Report(found, text, time.monotonic() - started)


def run(tools: Sequence[str], sanitizer: str) -> int:
    """All of it; 0 if each tool finds nothing, but what was planted for it."""
    plain = sanitized(None, "memcheck")
    print(f"without a sanitizer: {_last(plain)} ({plain.seconds:.0f} s)", flush=True)
    bad = plain.findings is None
    if bad:
        print(plain.text)
        return 1
    for tool in tools:
        report = sanitized(sanitizer, tool)
        wrong = report.findings != 0
        print(f"{tool}: {report.findings} findings, {_last(report)} ({report.seconds:.0f} s)", flush=True)
        if wrong:
            print(report.text[-20_000:], flush=True)
        bad |= wrong
        if tool in PLANTED:
            planted = sanitized(sanitizer, tool, "--planted")
            print(f"{tool}, a planted {PLANTED[tool]}: {planted.findings} findings", flush=True)
            if not planted.findings:
                print(planted.text[-5_000:], flush=True)
            bad |= not planted.findings
    print("findings, see above" if bad else "all clean", flush=True)
    return 1 if bad else 0


def _last(report: Report) -> str:
    """What the program itself said last."""
    said = [line for line in report.text.splitlines() if line and not line.startswith("=")]
    return said[-1] if said else "nothing was said"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tools", nargs="+", choices=TOOLS, default=TOOLS, metavar="TOOL", help=f"of {', '.join(TOOLS)} (all)")
    add("--launch", choices=TOOLS, metavar="TOOL", help="make the launches for a tool, which runs this program")
    add("--planted", action="store_true", help="with --launch: the faulty one instead")
    given = parser.parse_args(arguments)
    if given.launch and given.planted:
        plant(given.launch)
        return 0
    if given.launch:
        print(f"{launches(given.launch)} launches, all right")
        return 0
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if INTERPRETED or sanitizer is None:
        what = "a GPU" if INTERPRETED else "compute-sanitizer"
        print(f"tests/sanitize.py: needs {what}, and finds none", file=sys.stderr)
        return NO_TOOL
    return run(given.tools, sanitizer)


if __name__ == "__main__":
    sys.exit(main())
