"""A long run of cases drawn at random, each judged by `exercise`; it says how long it will take.

    python tests/every_batch.py --cases 10000 --seed 0

Compiling is what takes the time there, so every kind of call is made with several batches (`--batches`), and the kinds
are dealt to processes, one a processor, that share the GPU and Triton's cache on disk. Without a GPU kernels are
interpreted, and cases are small. For each failure the line that repeats it is printed:

    python tests/every_batch.py --case '{"op": "shrink", …}'

and with `--published` the cases are those of `published`, which only a GPU gets through.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, as_completed

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, here and in the processes that are started

import cases
import exercise
import fences
import interpreting
import published
from cases import Case
from csgmv import dispatch, footprint, launch
from csgmv.tuning.worker import Failure, Farm

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
LIMIT_SECONDS = 300.0  # for the cases of a kind, most of it for compiling
REPORT_SECONDS = 10.0
MOST_KEPT = 1 << 30  # bytes of GPU memory that a process keeps from case to case
COUNTED: dict[str, Callable[[Case], object]] = {
    "operation": lambda case: case.op,
    "dtype": lambda case: case.dtype,
    "config": lambda case: case.source,
    "grouping": lambda case: case.grouping,
    "mix": lambda case: case.mix,
    "slices": lambda case: len(case.widths),
    "layout": lambda case: "padded" if case.padded else "packed",
    "chunk size": lambda case: case.chunk_size,
    "max_rank": lambda case: case.max_rank,
    "batch_invariant": lambda case: case.batch_invariant,
    "unaligned": lambda case: case.unaligned or "nothing",
    "slices apart": lambda case: " + ".join(case.apart) or "none",
}


def limits() -> footprint.Limits:
    """What configs are drawn for: this GPU, or where there is none an H200."""
    return dispatch.device_limits(DEVICE) if DEVICE.type == "cuda" else footprint.LIMITS["9.0"]


def drawn(seed: int, count: int, batches: int) -> Iterator[list[Case]]:
    """The cases of a run, by kinds."""
    if DEVICE.type == "cuda":
        scale, dtypes = cases.LARGE, ("float16", "float16", "bfloat16", "bfloat16", "float32")
    else:
        scale, dtypes = cases.SMALL, ("float16", "float32")
    return cases.drawn(seed, count, batches, scale, dtypes, limits())


class Checker:
    """Judges cases, in a process that may not outlive one of them."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._entered = contextlib.ExitStack()  # for as long as the process lives
        self._made = self._entered.enter_context(fences.fresh_memory())
        if launch.INTERPRETED:
            self._entered.enter_context(interpreting.quick())

    def check(self, lines: Sequence[str]) -> list[str]:
        """What is wrong with each case, "" where nothing is; raises where the GPU is of no use any more."""
        return [self._fault(cases.read(line)) for line in lines]

    def close(self) -> None:
        """Leave what was entered."""
        self._entered.close()

    def healthy(self) -> bool:
        """Whether the next case stands a chance."""
        try:
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def _fault(self, case: Case) -> str:
        try:
            exercise.check(case, DEVICE, self._made)
        except Exception as error:
            if not self.healthy():
                raise
            return f"{type(error).__name__}: {error}"
        finally:
            self._made.clear()
            if DEVICE.type == "cuda" and torch.cuda.memory_reserved() > MOST_KEPT:
                torch.cuda.empty_cache()  # other processes need room too
        return ""


class Run:
    """Cases on their way through the processes, and what has become of them."""

    def __init__(self, farm: Farm, groups: Sequence[Sequence[Case]]) -> None:
        self._farm, self.total = farm, sum(map(len, groups))
        self.done: list[Case] = []
        self.faults: list[tuple[Case, str]] = []
        self._waiting = {self._submit(group): group for group in groups}

    def _submit(self, group: Sequence[Case]) -> Future[list[str]]:
        return self._farm.submit("check", [case.line() for case in group], limit=LIMIT_SECONDS)

    def results(self) -> Iterator[None]:
        """Comes back whenever some cases are done."""
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            for future in as_completed(waiting):
                self._take(waiting[future], future)
                yield

    def _take(self, group: Sequence[Case], future: Future[list[str]]) -> None:
        try:
            faults = future.result()
        except CancelledError:
            return
        except Failure as failure:
            if len(group) > 1:  # which of them it was shows when each is by itself
                self._waiting.update({self._submit([case]): [case] for case in group})
                return
            faults = [str(failure)]
        self.done += group
        for case, fault in zip(group, faults):
            if fault:
                self.faults.append((case, fault))
                print(f"FAILED: {fault}\n  python tests/every_batch.py --case '{case.line()}'", flush=True)


def summary(done: Sequence[Case]) -> str:
    """How many cases there were of everything."""
    lines = []
    for name, what in COUNTED.items():
        counts = sorted(Counter(map(what, done)).items(), key=lambda item: -item[1])
        lines.append(f"{name}: {', '.join(f'{value} {count:,}' for value, count in counts)}")
    return "\n".join(lines)


def run(groups: Sequence[Sequence[Case]], processes: int, seconds: float) -> int:
    """A run; its exit status: 1 if a case failed, or not all were done."""
    started = reported = time.monotonic()
    farm = Farm(processes, Checker)
    try:
        under_way = Run(farm, groups)
        for _ in under_way.results():
            now, done = time.monotonic(), len(under_way.done)
            if now - started > seconds:
                print(f"stopped after {seconds:g} s", flush=True)
                break
            if now - reported > REPORT_SECONDS and done:
                reported, left = now, (now - started) * (under_way.total - done) / done
                failed = len(under_way.faults)
                print(f"{done:,} of {under_way.total:,} cases, {failed} failed, {left:.0f} s left", flush=True)
    finally:
        farm.close()
    done, failed = len(under_way.done), len(under_way.faults)
    print(summary(under_way.done))
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "interpreted"
    took = time.monotonic() - started
    print(f"{done:,} cases, {failed} failed ({where}, {took:.0f} s, {processes} processes)", flush=True)
    return 1 if failed or done < under_way.total else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cases", type=int, default=10_000, metavar="N", help="how many (10,000)")
    add("--seed", type=int, default=0, metavar="N", help="of all that is drawn (0)")
    on_gpu = DEVICE.type == "cuda"
    add("--batches", type=int, default=10 if on_gpu else 1, metavar="N", help="of each kind (10; interpreted 1)")
    add("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="(one a processor)")
    add("--seconds", type=float, default=float("inf"), metavar="N", help="stop after so many, whatever is done")
    add("--published", action="store_true", help="the shapes that published tests go through")
    add("--case", metavar="JSON", help="only this one, in this process")
    given = parser.parse_args(arguments)
    if given.case is None:
        some = published.groups() if given.published else list(drawn(given.seed, given.cases, given.batches))
        return run(some, given.processes, given.seconds)
    checker = Checker()
    (fault,) = checker.check([given.case])
    checker.close()
    print(fault or "all well")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
