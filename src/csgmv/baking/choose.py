"""Validated results → all tables: a row per key, chunk sizes, defaults. Of a key's measurements the best one counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .. import records, rules
from ..fallback import Head
from .chunk_sizes import ChunkSizes, fastest
from .collect import Found
from .defaults import Defaults, on_average

Table = dict[Head, dict[rules.Key, "rules.Row | None"]]


class Duplicate(NamedTuple):
    """A key that was measured in several files."""

    head: Head
    key: rules.Key
    kept: str
    dropped: tuple[str, ...]


class Chosen(NamedTuple):
    """All tables in the order they are written in, the keys that several files have, and the results that count.

    `gpus` has each GPU's architecture and number of SMs, `defaults` each architecture's default rows.
    """

    table: Table
    chunk_sizes: dict[Head, ChunkSizes]
    duplicates: list[Duplicate]
    gpus: Mapping[str, tuple[str, int]] = {}
    defaults: Mapping[str, Defaults] = {}
    results: Sequence[records.Result] = ()


class Worth(NamedTuple):
    """Of two measurements of a key: the larger gain over its own default, then more samples, then the later date."""

    gain: float
    samples: int
    date: str


def worth(result: records.Result) -> Worth:
    """What decides between measurements of a key; the larger wins."""
    best = records.winner(result)
    return Worth(records.gain(result), best.samples if best else 0, result.date)


def _raced(result: records.Result) -> int:
    """Rows timed at full length beside the record's own."""
    return sum(len(race.times) for race in result.races)


def _order(head: Head) -> tuple[str, tuple[int, ...], str]:
    gpu, triton = head
    return gpu, rules.version_numbers(triton), triton


def choose(found: Iterable[Found]) -> Chosen:
    """Picks one row for each key, and one chunk size for each cell of batches.

    Of measurements that are equal in worth the one with more rows in its races counts, then that of the first file in
    the order of names.
    """
    measured: dict[Head, dict[rules.Key, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(found, key=lambda one: one.file):
        measured[one.result.gpu, one.result.triton][one.result.key].append(one)

    table: Table = {}
    chunk_sizes: dict[Head, ChunkSizes] = {}
    results: list[records.Result] = []
    duplicates = []
    for head in sorted(measured, key=_order):
        rows = table[head] = {}
        counted = []
        for key, rivals in sorted(measured[head].items()):
            kept = max(rivals, key=lambda rival: (worth(rival.result), _raced(rival.result)))
            rows[key] = records.baked_row(kept.result)
            counted.append(kept.result)
            if dropped := tuple(rival.file for rival in rivals if rival is not kept):
                duplicates.append(Duplicate(head, key, kept.file, dropped))
        chunk_sizes[head] = fastest(counted)
        results += counted
    return Chosen(table, chunk_sizes, duplicates, _gpus(results), on_average(results), results)


def _gpus(results: Iterable[records.Result]) -> dict[str, tuple[str, int]]:
    """Each GPU's architecture and SM count; of several that go by one name, what most results say."""
    said: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    for result in results:
        said[result.gpu][result.architecture, result.sm_count] += 1
    return {gpu: max(sorted(counts), key=counts.__getitem__) for gpu, counts in sorted(said.items())}
