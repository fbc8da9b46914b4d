"""A picture of whole models' times: a panel a model, a bar for each way to serve each batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csgmv.e2e import results
from csgmv.e2e.results import Batch, Report, Subject
from csgmv.reporting import canvas
from csgmv.reporting.canvas import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    results.OURS: "#1f6f8b",
    results.DEFAULTS: "#d08a2e",
    results.NONE: "#8fb8c6",
    results.BMM: "#9aa3aa",
    results.PEFT: "#b9a5c9",
}
_WIDEST = 2.0  # multiples of the bare model that a panel shows: what takes longer runs out of it
_ROW_INCHES, _PANEL_INCHES = 0.2, 0.6  # of a bar; of a panel's title and axis
_CAPTION = (
    "The shorter a bar, the nearer the batch is to the bare model's time (red), which the memory's speed lets no "
    "batch with adapters reach: the mark on the bars is the floor. Bars that run out of the picture have their number."
)


def end_to_end(report: Report) -> Picture:
    """Multiples of the bare model's time."""
    heights = [sum(len(_bars(batch)) + 1 for batch in subject.batches) for subject in report.subjects]
    inches = [_PANEL_INCHES + _ROW_INCHES * height for height in heights]
    figure = canvas.blank(sum(inches) + 0.3)
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=inches)[:, 0]
    for panel, subject in zip(panels, report.subjects):
        _draw(panel, subject)
    panels[-1].set_xlabel("times the bare model's time", fontsize=8, color=canvas.INK)
    return canvas.picture("end-to-end", _CAPTION, figure)


def _bars(batch: Batch) -> list[tuple[str, str, float | None]]:
    """What is drawn of a batch: way, its label, its multiple of the bare model's time; None without a time."""
    bare = batch.ms(results.BARE)
    found = []
    for way, small in results.COLUMNS:
        timed = batch.find(way, small)
        if timed is not None and (not small or timed is not batch.find(way)):
            label = f"{way}, chunk {results.SMALL_CHUNK}" if small else way
            found.append((way, label, timed.ms / bare if timed.ms and bare else None))
    return found


def _draw(panel: Axes, subject: Subject) -> None:
    place, labels = 0, {}
    for batch in subject.batches:
        bars = _bars(batch)
        first = place
        for way, label, multiple in bars:
            labels[place] = f"{batch.rows} × {batch.tokens}   {label}" if place == first else label
            panel.barh(place, multiple or 0, 0.8, color=_COLOURS[way])
            text = "no time" if multiple is None else f"{multiple:.2f}×"
            inside = multiple is not None and multiple > _WIDEST - 0.15
            at = min(multiple or 0, _WIDEST)
            panel.annotate(
                text,
                (at, place),
                (-3 if inside else 3, 0),
                textcoords="offset points",
                va="center",
                ha="right" if inside else "left",
                fontsize=7,
                color="white" if inside else canvas.INK,
            )
            place += 1
        if bare := batch.ms(results.BARE):
            floor = 1 + batch.floor_ms / bare
            panel.plot([floor, floor], [first - 0.45, place - 0.55], color=canvas.INK, linewidth=1.2)
        place += 1
    panel.axvline(1, color=canvas.ALARM, linewidth=1.2)
    panel.set_yticks([*labels], [*labels.values()])
    panel.set_ylim(place - 1.4, -0.6)
    panel.set_xlim(0, _WIDEST)
    panel.xaxis.set_major_formatter("{x:g}×")
    canvas.plain(panel)
    canvas.title(panel, subject.caption)
