"""What the page says of a chapter: cards, verdicts, pictures and tables, a function a section.

A further section is a further function in SECTIONS.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable

from csgmv import kernel_hash, records, show
from csgmv.reporting import borrowing, dots, maps
from csgmv.reporting.elements import Card, Section, Table, Verdict, of, percent, times, us
from csgmv.reporting.findings import Chapter, Finding, dimensions, key_text

LONG_US = 8.0  # floors from which a launch should come near the memory's speed; shorter ones wait for latencies
_NOISY = 0.05  # of the default's time, from which a key is worth a second look
_WORST = 10  # rows of the tables of what is worst


def _speedups(findings: Iterable[Finding]) -> list[float]:
    return [finding.speedup for finding in findings if finding.speedup is not None]


def _slowest_batch(finding: Finding) -> float | None:
    """The least default ÷ winner over the batches of a baked row; None without one, or where the default never ran."""
    ratios = [
        batch.default_us / batch.winner_us
        for batch in (finding.result.batches if finding.baked is not None else ())
        if batch.default_us is not None and batch.winner_us is not None
    ]
    return min(ratios, default=None)


def headline(chapter: Chapter) -> Section:
    """The figures that say most."""
    findings = chapter.findings
    baked = [finding for finding in findings if finding.baked is not None]
    gains = _speedups(findings)
    slowest = [ratio for ratio in map(_slowest_batch, findings) if ratio is not None]
    floors = [finding for finding in findings if finding.floor_us(chapter.bandwidth) >= LONG_US]
    shares = [finding.share(chapter.bandwidth) for finding in floors]
    measured = sum(len(finding.result.screened) for finding in findings)
    batches = sum(len(finding.result.batches) for finding in findings)
    cards = [
        Card(f"{len(findings):,}", "keys", f"timed on {batches:,} batches"),
        Card(f"{len(baked):,}", "rows baked", f"{len(findings) - len(baked):,} keep the default"),
        Card(times(statistics.median(gains) if gains else None), "median speed-up", "over the default, of all keys"),
        Card(times(min(gains, default=None)), "least speed-up", f"largest: {times(max(gains, default=None))}"),
        Card(times(min(slowest, default=None)), "slowest batch", "of any baked row, over the default"),
        Card(
            percent(statistics.median(shares) if shares else None),
            "of the floor",
            f"median of the {len(floors):,} keys whose floor is {LONG_US:g} µs or more",
        ),
        Card(f"{measured:,}", "candidates measured", f"{_total(findings, 'pruned'):,} pruned"),
        Card(
            f"{_total(findings, 'failed'):,}",
            "candidates failed",
            f"in {of(_keys_with(findings, 'failed'), len(findings), 'keys')}",
        ),
    ]
    return Section("At a glance", "", cards=cards)


def _total(findings: Iterable[Finding], what: str) -> int:
    return sum(sum(finding.record[what].values()) for finding in findings)


def _keys_with(findings: Iterable[Finding], what: str) -> int:
    return sum(bool(finding.record[what]) for finding in findings)


def _exact(finding: Finding) -> float:
    """The largest error as a share of the tolerance."""
    accuracy = finding.record["accuracy"]
    return accuracy["max_error"] / accuracy["tolerance"] if accuracy["tolerance"] else 0.0


def checks(chapter: Chapter) -> Section:
    """What would make one distrust the results."""
    findings, today = chapter.findings, kernel_hash.kernel_hash()
    whole = len(findings)
    stale = sum(not kernel_hash.same_kernels(finding.run["kernel_hash"], today) for finding in findings)
    slower = [(ratio, finding, batch) for finding in findings for batch, ratio in finding.slower_batches()]
    noisy = sum((finding.noise or 0) > _NOISY for finding in findings)
    spilling = sum(bool(finding.baked and finding.winner and finding.winner["spills"]) for finding in findings)
    failed = _keys_with(findings, "failed")
    alone = sum(finding.result.default is None for finding in findings)
    verdicts = [
        Verdict(
            not stale,
            f"{of(stale, whole, 'rows')} were measured with other kernels than those installed"
            + ("; csgmv tune --stale measures them again." if stale else "."),
        ),
        Verdict(
            not slower,
            f"{of(len(slower), sum(len(finding.result.batches) for finding in findings), 'batches')} are slower with "
            "the baked row than with the default by more than the noise.",
        ),
        Verdict(
            not noisy,
            f"{of(noisy, whole, 'keys')} have a noise above {percent(_NOISY)} of the default's time; the median is "
            f"{_noise(findings)}.",
        ),
        Verdict(
            True,
            "Every candidate agreed with the float32 reference before it was timed; the largest error took "
            f"{percent(max(map(_exact, findings)))} of the tolerance.",
        ),
        Verdict(not failed, f"{of(failed, whole, 'keys')} had candidates that failed."),
        Verdict(not spilling, f"{of(spilling, whole, 'keys')} have a baked row whose registers spill."),
    ]
    if alone:
        verdicts.append(Verdict(True, f"{of(alone, whole, 'keys')} have no speed-up, since the default does not run."))
    rows = [
        [
            key_text(finding.key),
            f"{batch.tokens:,} × {batch.adapters}",
            us(batch.default_us),
            us(batch.winner_us),
            times(ratio),
        ]
        for ratio, finding, batch in sorted(slower, key=lambda each: each[0])
    ]
    header = ("key", "tokens × adapters", "default µs", "row µs", "speed-up")
    tables = [Table("Batches that lose", header, rows, folded=len(rows) > 2 * _WORST)] if rows else []
    return Section("Can it be trusted?", "What is marked is worth a look.", verdicts=verdicts, tables=tables)


def _noise(findings: Iterable[Finding]) -> str:
    noises = [finding.noise for finding in findings if finding.noise is not None]
    return f"{100 * statistics.median(noises):.1f} %" if noises else "-"


def speedup(chapter: Chapter) -> Section:
    """Default against table, by layer and chunk size."""
    chunk_sizes = sorted({finding.key.chunk_size for finding in chapter.findings})
    rows = []
    for op in chapter.ops:
        for name, found in chapter.layers(op).items():
            by_size = [_speedups(each for each in found if each.key.chunk_size == size) for size in chunk_sizes]
            cells = [f"{times(statistics.median(some))} ({times(min(some))})" if some else "-" for some in by_size]
            rows.append([op, name, str(len(found)), *cells])
    header = ["operation", "layer", "keys", *(f"chunk {size}" for size in chunk_sizes)]
    by_op = itertools.chain.from_iterable(maps.speedup_maps(chapter, op) for op in chapter.ops)
    return Section(
        "Speed-up over the default",
        "The built-in default config against what the table serves, both timed at full length, interleaved.",
        pictures=[*dots.speedups(chapter), *by_op],
        tables=[Table("Median speed-up of a layer's keys, the least in brackets", header, rows)],
    )


def floor(chapter: Chapter) -> Section:
    """Time against the bytes that must move."""
    bandwidth = chapter.bandwidth
    long = [finding for finding in chapter.findings if finding.floor_us(bandwidth) >= LONG_US]
    worst = sorted(long, key=lambda finding: finding.share(bandwidth))[:_WORST]
    rows = [
        [
            key_text(finding.key),
            us(finding.floor_us(bandwidth)),
            us(finding.served_us),
            percent(finding.share(bandwidth)),
        ]
        for finding in worst
    ]
    caption = f"The farthest from the floor, of those whose floor is {LONG_US:g} µs or more"
    return Section(
        "Share of the floor",
        "The floor is the time that the bytes take which must move (inputs read once, outputs written once, "
        "base_output also read; every adapter of max_rank), at "
        f"{bandwidth.bytes_per_s / 1e12:.3g} TB/s: {bandwidth.source}.",
        pictures=dots.shares(chapter),
        tables=[Table(caption, ("key", "floor µs", "µs", "of floor"), rows)] if rows else [],
    )


def landscape(chapter: Chapter) -> Section:
    """What the search saw."""
    sweeps = itertools.chain.from_iterable(maps.sweeps(chapter, op) for op in chapter.ops)
    return Section(
        "Landscape of the sweeps",
        "Every candidate's time in screening, by tile and warps; what else a config has (depth, stages, split, "
        "registers) is at its best for each cell.",
        pictures=[*maps.where_winners_lie(chapter), *sweeps],
    )


def search(chapter: Chapter) -> Section:
    """What became of every config that was considered."""
    by_op = {op: [finding for finding in chapter.findings if finding.key.op == op] for op in chapter.ops}
    counts: dict[tuple[str, str], Counter[str]] = {}

    def count(fate: str, reason: str, op: str, number: int) -> None:
        counts.setdefault((fate, reason), Counter())[op] += number

    for op, found in by_op.items():
        for finding in found:
            stopped = sum(early for *_, early in finding.record["candidates"])
            count("measured", "to the end", op, len(finding.record["candidates"]) - stopped)
            count("measured", "stopped early, as slower", op, stopped)
            count("measured", "again at full length, as finalists", op, len(finding.record["finalists"]))
            if lent := len(borrowing.losses(finding)):
                count("measured", "at full length, as rows of other keys", op, lent)
            for fate in ("pruned", "failed"):
                for reason, number in finding.record[fate].items():
                    count(fate, reason, op, number)
    rows = [
        [fate, reason, *(f"{counted[op]:,}" for op in by_op), f"{counted.total():,}"]
        for (fate, reason), counted in sorted(
            counts.items(), key=lambda item: (("measured", "pruned", "failed").index(item[0][0]), -item[1].total())
        )
    ]
    if not any(fate == "failed" for fate, _ in counts):
        rows.append(["failed", "none", *("0" for _ in by_op), "0"])
    return Section(
        "What was tried, pruned and failed",
        "Pruned configs were never compiled: the device cannot run them, or the model of bytes and waves expects "
        "better of others.",
        tables=[Table("Configs by fate and reason", ("fate", "reason", *by_op, "all"), rows)],
    )


def environment(chapter: Chapter) -> Section:
    """Where and with what it was measured."""
    runs: dict[tuple[tuple[str, str], ...], int] = {}
    for finding in chapter.findings:
        run = tuple((name, str(value)) for name, value in finding.run.items())
        runs[run] = runs.get(run, 0) + 1
    header = [f"{count:,} {'key' if count == 1 else 'keys'}" for count in runs.values()]
    names = dict.fromkeys(name for run in runs for name, _ in run)
    rows = [[name.replace("_", " "), *(dict(run)[name] for run in runs)] for name in names]
    return Section(
        "Environment",
        "The tuning runs that the keys come from; l2 says how launches were timed.",
        tables=[Table(f"{chapter.gpu}, Triton {chapter.triton}", ["", *header], rows)],
    )


_KEYS = (
    "op",
    "dimensions",
    "dtype",
    "chunk",
    "segments",
    "tokens × adapters",
    "default µs",
    "table µs",
    "speed-up",
    "noise",
    "slowest batch",
    "of floor",
    "tried / pruned / failed",
    "config (what differs from the default)",
)


def _row(chapter: Chapter, finding: Finding) -> list[str]:
    key, record = finding.key, finding.record
    deciding = finding.result.batches[: finding.result.tuned_on]
    return [
        key.op,
        dimensions(key),
        key.dtype,
        str(key.chunk_size),
        show.bucket_text(key.segment_bucket),
        ", ".join(f"{batch.tokens:,} × {batch.adapters}" for batch in deciding),
        us(finding.result.default and finding.result.default.p50_us),
        us(finding.served_us),
        times(finding.speedup),
        "-" if finding.noise is None else f"{100 * finding.noise:.1f} %",
        times(_slowest_batch(finding)),
        percent(finding.share(chapter.bandwidth)),
        f"{len(record['candidates'])} / {sum(record['pruned'].values())} / {sum(record['failed'].values())}",
        show.config_text(key.op, finding.baked),
    ]


def keys(chapter: Chapter) -> Section:
    """Every key."""
    least = sorted(chapter.findings, key=lambda finding: finding.speedup or float("inf"))[:_WORST]
    tables = [Table(f"The {len(least)} least gains", _KEYS, [_row(chapter, finding) for finding in least])]
    for op in chapter.ops:
        found = [finding for finding in chapter.findings if finding.key.op == op]
        rows = [_row(chapter, finding) for finding in found]
        tables.append(Table(f"{op}: all {len(found):,} keys", _KEYS, rows, folded=True))
    return Section(
        "Keys",
        "Times are medians in µs, where two batches are named the geometric mean over both; the slowest batch is the "
        f"least speed-up on any batch that looks up the key; a row is baked if it saves more than the noise and "
        f"{percent(records.LEAST_GAIN)}.",
        tables=tables,
    )


SECTIONS: tuple[Callable[[Chapter], Section], ...] = (
    headline,
    checks,
    speedup,
    floor,
    borrowing.section,
    landscape,
    search,
    environment,
    keys,
)
