"""A picture of what bench_peers.py measured: how near csgmv and the best peer come to the memory's speed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from csgmv.peers import OURS, Comparison, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "prefill": "Prefill: a layer's eight calls, 30,720 tokens, one adapter, each at its best chunk size",
    "mixed": "Mixed: shrink + expand, Zipf-distributed requests (tokens × adapters), each at its best chunk size",
    "decode": "Decode: shrink + expand, rows dealt evenly (tokens × adapters)",
}
_COLOURS = {"csgmv": "#1f6f8b", "best peer": "#b9c2c9"}
_ROW_INCHES = 0.27
_PANEL_INCHES = 0.75  # title and axis
_BAR = 0.38  # of a row


def draw(run: Run, where: str) -> Figure:
    """A panel a suite, two bars a row: the floor's share of the time of csgmv, and of the fastest peer.

    In shares, small launches and large ones are read alike; the floor itself is the line at 100 %. Each bar has its
    time beside it. Host times have no floor and are left out. `where`: GPU and versions, for the title.

    Raises:
        ValueError: matplotlib is not installed, or there is no suite to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot: needs matplotlib: pip install 'csgmv[plot]'") from None
    panels = {suite: run.comparisons(suite) for suite in _TITLES if suite in run.suites}
    if not panels:
        raise ValueError(f"--plot: expected one of the suites {', '.join(_TITLES)}, got none")
    heights = [len(rows) * _ROW_INCHES + _PANEL_INCHES for rows in panels.values()]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(f"Share of the memory's speed that LoRA kernels reach\n{where}", fontsize=10)
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for panel, (suite, rows) in zip(axes, panels.items()):
        panel.set_title(_TITLES[suite], fontsize=9, loc="left")
        _draw_panel(panel, rows)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw_panel(panel: Axes, rows: list[Comparison]) -> None:
    bars = {"csgmv": [row.us.get(OURS) for row in rows], "best peer": [row.best_peer for row in rows]}
    for number, (name, times) in enumerate(bars.items()):
        places = [index + (number - 0.5) * _BAR for index in range(len(rows))]
        shares = [100 * row.us["floor"] / us if us else 0.0 for row, us in zip(rows, times)]
        panel.barh(places, shares, _BAR, color=_COLOURS[name], label=name)
        for place, share, us in zip(places, shares, times):
            text = "no time" if us is None else f"{us:.1f} µs"
            panel.annotate(
                text, (share, place), (3, 0), textcoords="offset points", va="center", fontsize=6, color="#444444"
            )
    panel.axvline(100, color="#c0392b", linewidth=1, label="floor")
    panel.set_yticks(range(len(rows)), [" ".join(row.labels) for row in rows], fontsize=7)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(0, max(112, 1.1 * panel.get_xlim()[1]))
    panel.xaxis.set_major_formatter("{x:.0f} %")
    panel.tick_params(axis="x", labelsize=7)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)


def svg(run: Run, where: str) -> str:
    """`draw` as SVG, the same bytes for the same times.

    Raises:
        ValueError: as `draw`.
    """
    figure = draw(run, where)
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "csgmv", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
