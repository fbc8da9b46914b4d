"""The page's section on whole models: what `csgmv bench --e2e` measured on the chapter's GPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from csgmv.e2e import results
from csgmv.e2e.results import Batch, Report
from csgmv.reporting import bars
from csgmv.reporting.elements import Card, Section, Table, Verdict, of, times
from csgmv.reporting.findings import Chapter

_MARK, _IDLE_MARK = 1.15, 1.02  # of the bare model's time: with adapters in a prompt's batch, and without any


def of_chapter(report: Report | None, chapter: Chapter) -> Section | None:
    """The section, if the report is of this chapter's GPU and Triton version."""
    if report is None or (report.gpu, report.triton) != (chapter.gpu, chapter.triton):
        return None
    return section(report)


def section(report: Report) -> Section:
    """Cards, verdicts, the picture and the tables."""
    batches = [batch for subject in report.subjects for batch in subject.batches]
    ours = [*_multiples(batches, results.OURS)]
    idle = [*_multiples(batches, results.NONE)]
    gains = [gain for batch in batches if (gain := batch.gain(over_small=True, small=False)) is not None]
    wrong = sum(timed.ms is None for batch in batches for timed in batch.timed)
    cards = [
        Card(times(max(ours, default=None)), "of the bare model's time", "csgmv, the slowest batch"),
        Card(times(max(idle, default=None)), "without adapters", "MultiLoRA around a batch that uses none"),
        Card(
            times(statistics.geometric_mean(gains) if gains else None),
            "by the table",
            f"geometric mean over default configs at chunk size {results.SMALL_CHUNK}",
        ),
    ]
    prompts = [*_multiples([batch for batch in batches if batch.tokens > 1], results.OURS)]
    verdicts = [
        Verdict(
            not wrong,
            f"{of(wrong, sum(len(batch.timed) for batch in batches), 'results')} were wrong and have no time.",
        ),
        Verdict(
            all(multiple <= _MARK for multiple in prompts),
            f"{of(sum(multiple > _MARK for multiple in prompts), len(prompts), 'batches of prompts')} take more than "
            f"{_MARK:.2f}× the bare model's time.",
        ),
        Verdict(
            all(multiple <= _IDLE_MARK for multiple in idle),
            f"{of(sum(multiple > _IDLE_MARK for multiple in idle), len(idle), 'batches')} without adapters take more "
            f"than {_IDLE_MARK:.2f}×.",
        ),
    ]
    tables = []
    for subject in report.subjects:
        tables.append(Table(subject.caption, *results.times_table(subject)))
        tables.append(Table("What the table is worth there", *results.worth_table(subject)))
    tables.append(Table("How this was measured", ("",), [[report.note()]]))
    lead = (
        "One batch through a whole transformers model, its rows with different adapters, beside the bare model; each "
        "way's results were compared with a float32 reference first."
    )
    return Section("End to end", lead, cards, verdicts, [bars.end_to_end(report)], tables)


def _multiples(batches: list[Batch], way: str) -> Iterator[float]:
    """Of the bare model's time."""
    for batch in batches:
        bare, served = batch.ms(results.BARE), batch.ms(way)
        if bare and served:
            yield served / bare
