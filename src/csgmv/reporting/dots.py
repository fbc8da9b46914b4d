"""Pictures with a dot a key: what tuning gained, and how near launches come to the memory's speed."""

from __future__ import annotations

from csgmv.reporting import canvas
from csgmv.reporting.canvas import Picture
from csgmv.reporting.findings import Chapter

_OP_COLOURS = {"shrink": "#1f6f8b", "expand": "#d08a2e", "add_lora": "#6a4c93"}
_SPEEDUPS = (
    "A line is a layer, a dot one of its keys: the farther to the right of the red line, the more the table's config "
    "saves; dots on the line keep the default."
)
_SHARES = (
    "A dot is a key: the higher, the nearer the launch comes to the speed of the memory (red); launches whose floor is "
    "a few µs are short of it because they wait for latencies, long ones should not be."
)


def speedups(chapter: Chapter) -> list[Picture]:
    """A line a layer, a dot a key: the default's time over the table's, coloured by chunk size."""
    from matplotlib import ticker

    layers = {f"{op}  {name}": found for op in chapter.ops for name, found in chapter.layers(op).items()}
    chunk_sizes = sorted({finding.key.chunk_size for finding in chapter.findings})
    palette = canvas.colours(("#f2b25c", "#3f9a96", "#123f5a"))
    made = []
    for number, names in enumerate(canvas.parts(layers, 4 * canvas.PANELS)):
        figure = canvas.blank(1.0 + 0.27 * len(names))
        panel = figure.subplots()
        for index, chunk_size in enumerate(chunk_sizes):
            shift = (index + 0.5) / len(chunk_sizes) - 0.5
            dots = [
                (finding.speedup, line + 0.62 * shift)
                for line, name in enumerate(names)
                for finding in layers[name]
                if finding.key.chunk_size == chunk_size and finding.speedup is not None
            ]
            colour = palette(index / max(1, len(chunk_sizes) - 1))
            xs, ys = zip(*dots) if dots else ((), ())
            panel.scatter(xs, ys, s=16, color=[colour], alpha=0.85, linewidths=0, label=f"chunk size {chunk_size}")
        for line in range(1, len(names), 2):
            panel.axhspan(line - 0.5, line + 0.5, color="#f6f8f9", zorder=-2)
        panel.axvline(1, color=canvas.ALARM, linewidth=1.2, label="the default")
        panel.set_xscale("log", base=2)
        panel.set_xlim(min(0.95, panel.get_xlim()[0]), None)
        panel.xaxis.set_major_locator(ticker.LogLocator(base=2, subs=(1.0, 1.5)))
        panel.xaxis.set_major_formatter("{x:g}×")
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.grid(axis="x", color="#e3e7ea", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel("speed-up over the default (logarithmic)", fontsize=8, color=canvas.INK)
        canvas.plain(panel)
        figure.legend(loc="outside upper left", ncols=len(chunk_sizes) + 1, fontsize=8, frameon=False)
        made.append(canvas.picture(canvas.numbered("speed-up", number), _SPEEDUPS, figure))
    return made


def shares(chapter: Chapter) -> list[Picture]:
    """A panel an operation, a dot a key: the floor's share of the time, against the floor itself."""
    from matplotlib.ticker import NullLocator

    figure = canvas.blank(3.3)
    panels = figure.subplots(1, len(chapter.ops), squeeze=False, sharex=True, sharey=True)[0]
    for panel, op in zip(panels, chapter.ops):
        found = [finding for finding in chapter.findings if finding.key.op == op]
        floors = [finding.floor_us(chapter.bandwidth) for finding in found]
        defaults = [
            (floor, 100 * floor / finding.result.default.p50_us)
            for floor, finding in zip(floors, found)
            if finding.result.default is not None
        ]
        panel.scatter(
            *(zip(*defaults) if defaults else ((), ())), s=14, color=canvas.GREY, linewidths=0, label="default"
        )
        tuned = [100 * finding.share(chapter.bandwidth) for finding in found]
        panel.scatter(floors, tuned, s=16, color=_OP_COLOURS[op], alpha=0.8, linewidths=0, label="table")
        panel.axhline(100, color=canvas.ALARM, linewidth=1.2)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:.0f} %")
        panel.set_ylim(0, None)
        panel.grid(color="#e3e7ea", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.set_xlabel("floor, µs (logarithmic)", fontsize=8, color=canvas.INK)
        panel.xaxis.set_minor_locator(NullLocator())
        canvas.plain(panel)
        canvas.title(panel, op)
        panel.legend(loc="upper left", fontsize=8, frameon=False, borderaxespad=0.8)
    panels[0].set_ylabel("share of the floor", fontsize=8, color=canvas.INK)
    return [canvas.picture("floor", _SHARES, figure)]
