"""The pictures of a page on raw results, drawn by matplotlib; each at the size in which the page shows it."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from csgmv.reporting.findings import Chapter, Finding
from csgmv.reporting.landscape import Landscape, Place, landscapes, winners

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_WIDTH = 9.6  # inches, of which the page gives each 96 pixels
_DPI = 192  # two pixels of the picture for one of the page
_PANELS = 16  # rows of panels in one picture, which more layers than these continue in a further one
_GAINS = ("#eef6f4", "#9fd0c6", "#3f9a96", "#1f6f8b", "#123f5a")  # from no gain to the largest one
_LOSSES = ("#1f6f8b", "#6fb3b8", "#cfe3df", "#f3ead9", "#e3b58a")  # from the fastest on
_COUNTS = ("#e4eff2", "#7db4c4", "#1f6f8b", "#123f5a")
_OP_COLOURS = {"shrink": "#1f6f8b", "expand": "#d08a2e", "add_lora": "#6a4c93"}
_UNMEASURED = "#f1f3f5"
_GREY, _INK, _ALARM = "#b4bcc3", "#2b333b", "#c0392b"
_MOST_SLOWDOWN = 2.0  # where the landscapes' colours end
_TALLEST = 300  # inches, which are nearly as many pixels as a picture can have
_SPEEDUPS = (
    "A line is a layer, a dot one of its keys: the farther to the right of the red line, the more the table's config "
    "saves; dots on the line keep the default."
)
_MAP = (
    "{}, a panel a layer: each number says how many times faster than the default the table's config is, darker for "
    "more; grey: no such key was tuned."
)
_SHARES = (
    "A dot is a key: the higher, the nearer the launch comes to the speed of the memory (red); launches whose floor is "
    "a few µs are short of it because they wait for latencies, long ones should not be."
)
_SWEEPS = (
    "{}, the keys of each layer timed on the fewest and on the most tokens (tokens × adapters in the title): how many "
    "percent slower the best candidate at each tile (block_m×block_n) and number of warps is than the fastest, in "
    "screening; red: the winner at full length, which of near ties may be another; grey: not measured."
)
_WINNERS = (
    "The number of keys whose winner lies at each tile (block_m×block_n) and number of warps: where many lie at an "
    "edge, the space that is searched may end too early."
)

Item = TypeVar("Item")


class Picture(NamedTuple):
    """A PNG, named for a file; `pixels` (width, height) are those that it takes on the page. The caption helps read."""

    name: str
    caption: str
    png: bytes
    pixels: tuple[int, int]


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, min(height, _TALLEST)), layout="constrained")


def _colours(shades: Sequence[str]) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("csgmv", list(shades)).with_extremes(bad=_UNMEASURED, under="#eab8ad")


def _picture(name: str, caption: str, figure: Figure) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Picture(name, caption, file.getvalue(), (width, height))


def _plain(panel: Axes) -> None:
    panel.tick_params(labelsize=8, colors=_INK, length=0)
    panel.spines[:].set_visible(False)


def _title(panel: Axes, text: str) -> None:
    panel.set_title(text, fontsize=8.5, loc="left", color=_INK, parse_math=False)


def _heat(
    panel: Axes,
    columns: Sequence[object],
    rows: Sequence[object],
    values: Mapping[tuple[int, int], float],
    shown: Callable[[float], str],
    colours: Colormap,
    norm: Normalize,
) -> None:
    """Cells by (column, row) from the lower left, each with its value in it; grey where there is none."""
    matrix = [[values.get((x, y), math.nan) for x in range(len(columns))] for y in range(len(rows))]
    panel.pcolormesh(matrix, cmap=colours, norm=norm, edgecolors="white", linewidth=1)
    for (x, y), value in values.items():
        red, green, blue, _ = colours(norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        colour = "white" if dark else _INK
        panel.text(x + 0.5, y + 0.5, shown(value), ha="center", va="center", fontsize=7, color=colour)
    slanted = max(map(len, map(str, columns))) > 4
    panel.set_xticks([at + 0.5 for at in range(len(columns))], [*map(str, columns)], rotation=90 if slanted else 0)
    panel.set_yticks([at + 0.5 for at in range(len(rows))], [*map(str, rows)])
    _plain(panel)


def _grid(figure: Figure, rows: int, used: Sequence[tuple[int, int]], sharex: Literal["all", "col"]) -> list[Axes]:
    """Panels in two columns at the places (row, column) used; only the lowest of a column names its columns."""
    panels = figure.subplots(rows, 2, squeeze=False, sharex=sharex, sharey=True)
    for row, column in itertools.product(range(rows), range(2)):
        if (row, column) not in used:
            panels[row, column].set_axis_off()
        panels[row, column].tick_params(labelbottom=(row + 1, column) not in used)
    return [panels[place] for place in used]


def _height(rows: int, cells: int) -> float:
    """Inches of so many rows of panels with a title and so many cells one above the other."""
    return rows * (0.3 + 0.24 * cells)


def _percent_slower(slowdown: float) -> str:
    return f"{100 * (slowdown - 1):.0f}"


def _parts(items: Iterable[Item], most: int) -> list[list[Item]]:
    """A picture's share each."""
    every = list(items)
    return [every[first : first + most] for first in range(0, len(every), most)]


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number + 1}"


def speedups(chapter: Chapter) -> list[Picture]:
    """A line a layer, a dot a key: the default's time over the table's, coloured by chunk size."""
    from matplotlib import ticker

    layers = {f"{op}  {name}": found for op in chapter.ops for name, found in chapter.layers(op).items()}
    chunk_sizes = sorted({finding.key.chunk_size for finding in chapter.findings})
    palette = _colours(("#f2b25c", "#3f9a96", "#123f5a"))
    made = []
    for number, names in enumerate(_parts(layers, 4 * _PANELS)):
        figure = _figure(_WIDTH, 1.0 + 0.27 * len(names))
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
        panel.axvline(1, color=_ALARM, linewidth=1.2, label="the default")
        panel.set_xscale("log", base=2)
        panel.set_xlim(min(0.95, panel.get_xlim()[0]), None)
        panel.xaxis.set_major_locator(ticker.LogLocator(base=2, subs=(1.0, 1.5)))
        panel.xaxis.set_major_formatter("{x:g}×")
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.grid(axis="x", color="#e3e7ea", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel("speed-up over the default (logarithmic)", fontsize=8, color=_INK)
        _plain(panel)
        figure.legend(loc="outside upper left", ncols=len(chunk_sizes) + 1, fontsize=8, frameon=False)
        made.append(_picture(_numbered("speed-up", number), _SPEEDUPS, figure))
    return made


def speedup_maps(chapter: Chapter, op: str) -> list[Picture]:
    """A panel a layer: the speed-up at each chunk size (rows) and number of segments (columns)."""
    from matplotlib.colors import LogNorm

    layers = chapter.layers(op)
    keys = [finding.key for found in layers.values() for finding in found]
    chunk_sizes = sorted({key.chunk_size for key in keys}, reverse=True)
    buckets = sorted({key.segment_bucket for key in keys})
    most = max((finding.speedup or 1 for finding in chapter.findings), default=1)
    colours, norm = _colours(_GAINS), LogNorm(1, max(1.5, most))
    made = []
    for number, names in enumerate(_parts(layers, 2 * _PANELS)):
        rows = -(-len(names) // 2)
        figure = _figure(_WIDTH, 0.5 + _height(rows, len(chunk_sizes)))
        panels = _grid(figure, rows, [divmod(index, 2) for index in range(len(names))], "all")
        for panel, name in zip(panels, names):
            values = {
                (buckets.index(finding.key.segment_bucket), chunk_sizes.index(finding.key.chunk_size)): finding.speedup
                for finding in layers[name]
                if finding.speedup is not None
            }
            _heat(panel, buckets, chunk_sizes, values, "{:.1f}".format, colours, norm)
            _title(panel, name)
        figure.supxlabel("segments", fontsize=8, color=_INK)
        figure.supylabel("chunk size", fontsize=8, color=_INK)
        made.append(_picture(_numbered(f"speed-up-{op}", number), _MAP.format(op), figure))
    return made


def shares(chapter: Chapter) -> list[Picture]:
    """A panel an operation, a dot a key: the floor's share of the time, against the floor itself."""
    from matplotlib.ticker import NullLocator

    figure = _figure(_WIDTH, 3.3)
    panels = figure.subplots(1, len(chapter.ops), squeeze=False, sharex=True, sharey=True)[0]
    for panel, op in zip(panels, chapter.ops):
        found = [finding for finding in chapter.findings if finding.key.op == op]
        floors = [finding.floor_us(chapter.bandwidth) for finding in found]
        defaults = [
            (floor, 100 * floor / finding.result.default.p50_us)
            for floor, finding in zip(floors, found)
            if finding.result.default is not None
        ]
        panel.scatter(*(zip(*defaults) if defaults else ((), ())), s=14, color=_GREY, linewidths=0, label="default")
        tuned = [100 * finding.share(chapter.bandwidth) for finding in found]
        panel.scatter(floors, tuned, s=16, color=_OP_COLOURS[op], alpha=0.8, linewidths=0, label="table")
        panel.axhline(100, color=_ALARM, linewidth=1.2)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:.0f} %")
        panel.set_ylim(0, None)
        panel.grid(color="#e3e7ea", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.set_xlabel("floor, µs (logarithmic)", fontsize=8, color=_INK)
        panel.xaxis.set_minor_locator(NullLocator())
        _plain(panel)
        _title(panel, op)
        panel.legend(loc="upper left", fontsize=8, frameon=False, borderaxespad=0.8)
    panels[0].set_ylabel("share of the floor", fontsize=8, color=_INK)
    return [_picture("floor", _SHARES, figure)]


class _Axes(NamedTuple):
    """The tiles and numbers of warps that occur in some landscapes, sorted."""

    tiles: list[tuple[int, int]]
    warps: list[int]

    @classmethod
    def of(cls, everywhere: Iterable[Place]) -> _Axes:
        there = set(everywhere)
        tiles = sorted({(place.block_m, place.block_n) for place in there})
        return cls(tiles, sorted({place.num_warps for place in there}))

    def at(self, place: Place) -> tuple[int, int]:
        return self.tiles.index((place.block_m, place.block_n)), self.warps.index(place.num_warps)

    @property
    def columns(self) -> list[str]:
        return [f"{block_m}×{block_n}" for block_m, block_n in self.tiles]


def _examples(found: Sequence[Finding]) -> list[Finding]:
    """Of a layer the keys timed on the fewest and on the most tokens; of several that with the most candidates."""

    def size(finding: Finding) -> tuple[int, int]:
        return finding.record["tokens"], len(finding.result.screened)

    fewest = min(found, key=lambda finding: (size(finding)[0], -size(finding)[1]))
    return list({id(finding): finding for finding in (fewest, max(found, key=size))}.values())


def _example_text(layer: str, finding: Finding) -> str:
    tokens, adapters = finding.record["tokens"], finding.record["adapters"]
    return f"{layer}, chunk {finding.key.chunk_size}, {tokens:,} × {adapters}"


def _sweep_rows(chapter: Chapter, op: str) -> list[list[tuple[str, Landscape]]]:
    """The panels of sweeps, each with its title: a layer's examples beside each other, of add_lora their kernels."""
    rows = []
    for name, found in chapter.layers(op).items():
        swept = [finding for finding in found if finding.result.screened]
        parts = [(_example_text(name, finding), landscapes(finding)) for finding in _examples(swept)] if swept else []
        if op == "add_lora":
            rows += [
                [(f"shrink of {text}", both["shrink"]), (f"expand of {text}", both["expand"])] for text, both in parts
            ]
        elif parts:
            rows.append([(text, found[op]) for text, found in parts])
    return rows


def sweeps(chapter: Chapter, op: str) -> list[Picture]:
    """Landscapes of some keys of each layer: percent that each place is slower than the fastest candidate."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    every = _sweep_rows(chapter, op)
    every_place = {place for row in every for _, found in row for place in found.everywhere}
    warps = _Axes.of(every_place).warps
    axes = [_Axes.of(every_place)] * 2
    if op == "add_lora":  # the kernel of a column has tiles of its own
        axes = [_Axes.of(place for row in every for place in row[at][1].everywhere) for at in range(2)]
        axes = [each._replace(warps=warps) for each in axes]
    colours, norm = _colours(_LOSSES), Normalize(1, _MOST_SLOWDOWN)
    made = []
    for number, rows in enumerate(_parts(every, _PANELS)):
        figure = _figure(_WIDTH, 0.75 + _height(len(rows), len(warps)))
        used = [(at, column) for at, row in enumerate(rows) for column in range(len(row))]
        for panel, (at, column) in zip(_grid(figure, len(rows), used, "col"), used):
            title, found = rows[at][column]
            there = axes[column]
            values = {there.at(place): slowdown for place, slowdown in found.slowdowns.items()}
            _heat(panel, there.columns, warps, values, _percent_slower, colours, norm)
            if found.winner:
                corner = there.at(found.winner)
                panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_ALARM, linewidth=1.8, clip_on=False))
            _title(panel, title)
        figure.supylabel("warps", fontsize=8, color=_INK)
        made.append(_picture(_numbered(f"landscape-{op}", number), _SWEEPS.format(op), figure))
    return made


def where_winners_lie(chapter: Chapter) -> list[Picture]:
    """A panel a kernel: how many keys' winners lie at each tile and number of warps."""
    from matplotlib.colors import LogNorm

    counted = winners(chapter.findings)
    if not counted:
        return []
    axes = _Axes.of(place for counts in counted.values() for place in counts)
    rows = -(-len(counted) // 2)
    figure = _figure(_WIDTH, 0.75 + _height(rows, len(axes.warps)))
    panels = _grid(figure, rows, [divmod(index, 2) for index in range(len(counted))], "all")
    for panel, (name, counts) in zip(panels, counted.items()):
        values = {axes.at(place): float(count) for place, count in counts.items()}
        norm = LogNorm(1, max(2, *counts.values()))
        _heat(panel, axes.columns, axes.warps, values, "{:.0f}".format, _colours(_COUNTS), norm)
        _title(panel, name)
    figure.supylabel("warps", fontsize=8, color=_INK)
    return [_picture("winners", _WINNERS, figure)]
