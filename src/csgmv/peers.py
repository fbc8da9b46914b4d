"""What bench_peers.py measured: this project beside published kernels and beside the memory, read from its JSON.

bench_peers.py is not part of this repository: it imports sglang and vLLM, and stays with whoever has them installed. It
holds every backend's whole output against a float32 reference and gives a wrong one no time: any time may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csgmv import checks

OURS = "csgmv"
PEERS: Mapping[str, str] = {
    "s511": "sglang 0.5.11",
    "s523": "sglang 0.5.23",
    "s523_t": "0.5.23 tuned",
    "s523_sk": "0.5.23 split-K",
    "vllm": "vLLM 0.33",
}
NAMES: Mapping[str, str] = {"floor": "floor", "limit": "limit", "cublas": "cuBLAS", **PEERS, OURS: "csgmv"}
SMALL_CHUNK = 16  # what small batches get
_KERNELS = {"s": "shrink", "e": "expand"}
_SPLIT = tuple(_KERNELS)

Row = Mapping[str, Any]  # as in the file: what was run, and microseconds by backend


@dataclass(frozen=True)
class Comparison:
    """One launch, or the sum of several, by every backend that has a time.

    Attributes:
        labels: what was launched.
        us: microseconds by the names of NAMES.
    """

    labels: tuple[str, ...]
    us: Mapping[str, float]

    @property
    def best_peer(self) -> float | None:
        """Microseconds of the fastest peer."""
        return min((self.us[name] for name in PEERS if name in self.us), default=None)

    @property
    def ahead(self) -> float | None:
        """How many times as long as csgmv the fastest peer takes."""
        best = self.best_peer
        return None if best is None or OURS not in self.us else best / self.us[OURS]

    @property
    def over_floor(self) -> float | None:
        """How many times as long as the floor csgmv takes."""
        return self.us[OURS] / self.us["floor"] if {OURS, "floor"} <= self.us.keys() else None


@dataclass(frozen=True)
class Run:
    """One run of bench_peers.py: the rows of each suite that it ran. Those of WHOLE_MODELS are in milliseconds."""

    suites: Mapping[str, Sequence[Row]]

    def comparisons(self, suite: str) -> list[Comparison]:
        """The rows of a suite of kernels; of prefill a layer's eight calls, each backend at its best single chunk size.

        A backend that has not all eight times at any chunk size of prefill has none there. Of host shrink, expand, both
        added up, and both as csgmv's one call of add_lora, where the peers' time is that of both.
        """
        rows = self.suites[suite]
        if suite == "host":
            calls = [Comparison((kernel,), _named(rows[0], f"_{end}")) for end, kernel in _KERNELS.items()]
            both = {name: us + calls[1].us[name] for name, us in calls[0].us.items()}
            found = [*calls, Comparison(("both",), both)]
            if "csgmv_pair" in rows[0]:
                found.append(Comparison(("both, add_lora",), both | {OURS: rows[0]["csgmv_pair"]}))
            return found
        if suite != "prefill":
            return [Comparison((f"{row['tokens']} × {row['adapters']}", row["layer"]), _named(row)) for row in rows]
        chunks = self.best_chunks()
        at = {(row["layer"], row["chunk"]): row for row in rows}
        return [
            Comparison((layer, kernel), {n: at[layer, chunk][f"{n}_{end}"] for n, chunk in chunks.items()})
            for end, kernel in _KERNELS.items()
            for layer in dict.fromkeys(row["layer"] for row in rows)
        ]

    def best_chunks(self) -> dict[str, int]:
        """For each backend in prefill that has all times of a chunk size, the one with the least sum over all calls."""
        sums = {name: self._chunk_sums(name, _SPLIT) for name in NAMES}
        return {name: min(by_chunk, key=by_chunk.__getitem__) for name, by_chunk in sums.items() if by_chunk}

    def prefill_sums(self) -> list[Comparison]:
        """The eight calls of prefill added up; then with csgmv's as four calls of add_lora, the peers' as they were."""
        found = []
        for how, ends in (("shrink + expand", _SPLIT), ("add_lora", ("pair",))):
            sums = {name: self._chunk_sums(name, ends if name == OURS else _SPLIT) for name in NAMES}
            if not sums[OURS] and ends != _SPLIT:
                continue
            # A call of add_lora need not move h: the floor of eight calls is not its floor.
            sums = {name: by_chunk for name, by_chunk in sums.items() if ends == _SPLIT or name in (*PEERS, OURS)}
            best = {name: min(by_chunk.values()) for name, by_chunk in sums.items() if by_chunk}
            small = {name: by_chunk[SMALL_CHUNK] for name, by_chunk in sums.items() if SMALL_CHUNK in by_chunk}
            found += [Comparison((f"sum, {how}", "best chunk size"), best)]
            found += [Comparison((f"sum, {how}", f"chunk size {SMALL_CHUNK}"), small)] if small else []
        return found

    def _chunk_sums(self, name: str, ends: Sequence[str]) -> dict[int, float]:
        """Microseconds of all calls of prefill by one backend, for each chunk size at which none is missing."""
        by_chunk: dict[int, list[Row]] = {}
        for row in self.suites["prefill"]:
            by_chunk.setdefault(row["chunk"], []).append(row)
        fields = [f"{name}_{end}" for end in ends]
        return {
            chunk: sum(row[field] for row in rows for field in fields)
            for chunk, rows in by_chunk.items()
            if all(field in row for row in rows for field in fields)
        }


def _named(row: Row, ending: str = "") -> dict[str, float]:
    """The times of a row by backend."""
    return {name: row[name + ending] for name in NAMES if name + ending in row}


_US = checks.number()
_COUNT = checks.integer(1)
_LAYER = checks.text(r"[a-z][a-z0-9_]{0,29}", "a layer's name")


def _fields(names: Sequence[str], *endings: str) -> dict[str, checks.Check]:
    return {name + ending: _US for name in names for ending in endings}


_BACKENDS = (*PEERS, OURS)
# Per suite: what tells its rows apart, what each must have beside, and what it may have.
_SUITES: Mapping[str, tuple[Mapping[str, checks.Check], Mapping[str, checks.Check], Mapping[str, checks.Check]]] = {
    "prefill": (
        {"layer": _LAYER, "chunk": _COUNT},
        _fields(["floor"], "_s", "_e"),
        _fields(["limit", "cublas", *_BACKENDS], "_s", "_e") | {"csgmv_pair": _US},
    ),
    "mixed": (
        {"tokens": _COUNT, "adapters": _COUNT, "layer": _LAYER},
        _fields(["floor"], ""),
        _fields(_BACKENDS, "") | {f"{name}_chunk": _COUNT for name in _BACKENDS},
    ),
    "decode": (
        {"tokens": _COUNT, "adapters": _COUNT, "layer": _LAYER},
        _fields(["floor"], ""),
        _fields(_BACKENDS, ""),
    ),
    "host": ({}, {"torch.empty": _US}, _fields(_BACKENDS, "_s", "_e") | {"csgmv_pair": _US}),
    "e2e": (
        {"batch": _COUNT, "length": _COUNT},
        _fields(["peft_mixed", "torch_bmm"], ""),
        _fields(["base", "csgmv", "csgmv_no_adapter", "base_beside_no_adapter", "rel_err_vs_peft"], ""),
    ),
}
SUITES = tuple(_SUITES)
WHOLE_MODELS = "e2e"


def _row_faults(suite: str) -> checks.Check:
    identity, needed, possible = _SUITES[suite]

    def halves(value: Any, path: str) -> Iterator[str]:
        for name in possible.keys() & value.keys():
            other = name[:-1] + {"s": "e", "e": "s"}.get(name[-1], "")
            if name.endswith(("_s", "_e")) and other not in value:
                yield f"{path}.{other}: missing, though {name} is there"

    return checks.then(checks.record(possible, **identity, **needed), halves)


def _suite_faults(suite: str) -> checks.Check:
    identity = _SUITES[suite][0]

    def same_calls(rows: Any, path: str) -> Iterator[str]:
        seen = [tuple(row[name] for name in identity) for row in rows]
        for index, each in enumerate(seen):
            if each in seen[:index]:
                yield f"{path}[{index}]: the same launch as {path}[{seen.index(each)}]"
        if suite == "prefill":
            layers, chunks = ({each[i] for each in seen} for i in (0, 1))
            lacking = sorted({(layer, chunk) for layer in layers for chunk in chunks} - set(seen))
            yield from (f"{path}: no row of layer {layer} and chunk {chunk}" for layer, chunk in lacking)

    return checks.then(checks.array(_row_faults(suite), least=1), same_calls)


def read(path: Path) -> Run:
    """One run, from the file that `bench_peers.py --json` wrote.

    Raises:
        ValueError: with every fault of the file, each with its place.
        OSError: the file cannot be read.
    """
    try:
        document = checks.parse(path.read_text(encoding="utf-8"))
        faults = list(checks.record({suite: _suite_faults(suite) for suite in SUITES})(document, "$"))
        if not faults and not document:
            faults = [f"$: expected one or more of {', '.join(SUITES)}, got none"]
    except (ValueError, RecursionError) as error:
        faults = [f"expected what bench_peers.py --json writes ({error})"]
    if faults:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in faults))
    return Run({suite: document[suite] for suite in SUITES if suite in document})


def together(paths: Sequence[Path]) -> list[Run]:
    """One run or two, from files of which each may hold some of the suites: what comes again is of the second run.

    Raises:
        ValueError: a file is malformed, a suite comes a third time, or two runs are of different suites or launches.
        OSError: a file cannot be read.
    """
    found: dict[str, list[tuple[Path, Sequence[Row]]]] = {}
    for path in paths:
        for suite, rows in read(path).suites.items():
            found.setdefault(suite, []).append((path, rows))
    most = max(map(len, found.values()))
    for suite, given in found.items():
        if len(given) > 2:
            raise ValueError(f"--peers: expected a suite in one file or two, got {suite} in {len(given)}")
        launches = [[tuple(row[name] for name in _SUITES[suite][0]) for row in rows] for _, rows in given]
        if len(given) < most:
            raise ValueError(f"--peers: expected a second run of {suite} as of the others, got one in {given[0][0]}")
        if launches[0] != launches[-1]:
            raise ValueError(f"{given[-1][0]}: expected the same launches of {suite} as in {given[0][0]}")
    suites = [suite for suite in SUITES if suite in found]
    return [Run({suite: found[suite][number][1] for suite in suites}) for number in range(most)]
