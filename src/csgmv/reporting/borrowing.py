"""What rows of other keys cost: those that races timed beside a key's own winner."""

from __future__ import annotations

from csgmv import records, shares
from csgmv.reporting import canvas
from csgmv.reporting.canvas import Picture
from csgmv.reporting.elements import Section, Table
from csgmv.reporting.findings import Chapter, Finding

_CAPTION = (
    "Each operation's rows of other keys, those that lose least first: how far to the right a line stays low says how "
    "many of them are nearly as good as the key's own (red). What loses more than all of it is drawn at the top."
)
_MOST = 1.0  # the largest loss that is drawn as it is


def losses(finding: Finding) -> list[float]:
    """What each row of another key loses at a key, as a share of its own row's time."""
    result = finding.result
    own = {timing.row for timing in (*result.finalists, *filter(None, [result.default]))}
    return [slowdown - 1 for row, slowdown in records.at_length(result).items() if row not in own]


def section(chapter: Chapter) -> Section:
    """Losses by operation; of a folder of `csgmv spot-check`, those of the table's configs."""
    by_op = {
        op: sorted(loss for finding in chapter.findings if finding.key.op == op for loss in losses(finding))
        for op in chapter.ops
    }
    measured = {op: found for op, found in by_op.items() if found}
    title = "Rows of other keys"
    if not measured:
        return Section(title, "None was timed at these keys; csgmv cross does it.")
    rows = []
    for op, found in measured.items():
        told = shares.summed(found)
        assert told is not None
        keys = sum(finding.key.op == op and bool(losses(finding)) for finding in chapter.findings)
        figures = (shares.percent(loss) for loss in (told.median, told.percentile_95, told.worst))
        rows.append([op, f"{keys:,}", f"{told.keys:,}", *figures])
    return Section(
        title,
        "Rows that were found elsewhere, timed at full length in turn with the key's own winner: what launches that "
        "borrow them take longer.",
        pictures=[_curves(measured)],
        tables=[Table("Losses", ("operation", "keys", "rows timed", "median", "95 %", "worst"), rows)],
    )


def _curves(measured: dict[str, list[float]]) -> Picture:
    figure = canvas.blank(3.2)
    panel = figure.subplots()
    palette = canvas.colours(("#f2b25c", "#3f9a96", "#123f5a"))
    for index, (op, found) in enumerate(measured.items()):
        share = [100 * (number + 1) / len(found) for number in range(len(found))]
        colour = palette(index / max(1, len(measured) - 1))
        panel.step(share, [100 * min(loss, _MOST) for loss in found], where="pre", color=colour, label=op)
    panel.axhline(0, color=canvas.ALARM, linewidth=1.2, label="the key's own")
    panel.set_xlim(0, 100)
    panel.xaxis.set_major_formatter("{x:g} %")
    panel.yaxis.set_major_formatter("{x:g} %")
    panel.grid(color="#e3e7ea", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.set_xlabel("share of the rows", fontsize=8, color=canvas.INK)
    panel.set_ylabel("time lost", fontsize=8, color=canvas.INK)
    canvas.plain(panel)
    figure.legend(loc="outside upper left", ncols=len(measured) + 1, fontsize=8, frameon=False)
    return canvas.picture("borrowing", _CAPTION, figure)
