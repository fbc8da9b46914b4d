"""Heat maps: speed-ups by chunk size and segments, and what the search saw by tile and warps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from csgmv.reporting import canvas
from csgmv.reporting.canvas import Picture
from csgmv.reporting.findings import Chapter, Finding
from csgmv.reporting.landscape import Landscape, Place, landscapes, winners

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

T = TypeVar("T")

_GAINS = ("#eef6f4", "#9fd0c6", "#3f9a96", "#1f6f8b", "#123f5a")  # from no gain to the largest one
_LOSSES = ("#1f6f8b", "#6fb3b8", "#cfe3df", "#f3ead9", "#e3b58a")  # from the fastest on
_COUNTS = ("#e4eff2", "#7db4c4", "#1f6f8b", "#123f5a")
_MOST_SLOWDOWN = 2.0  # where the landscapes' colours end
_SWEPT = 12  # layers of an operation that have landscapes; a page of hundreds takes minutes, and nobody looks at them
_MAPPED = 24  # layers of an operation that have maps of their speed-ups, for the same reason
_MAP = (
    "{}, a panel for {}: each number says how many times faster than the default the table's config is, darker for "
    "more; grey: no such key was tuned."
)
_SWEEPS = (
    "{}, the keys of {} timed on the fewest and on the most tokens (tokens × adapters in the title): how many "
    "percent slower the best candidate at each tile (block_m×block_n) and number of warps is than the fastest, in "
    "screening; red: the winner at full length, which of near ties may be another; grey: not measured."
)
_WINNERS = (
    "The number of keys whose winner lies at each tile (block_m×block_n) and number of warps: where many lie at an "
    "edge, the space that is searched may end too early."
)


def _heat(
    panel: Axes,
    size: tuple[int, int],
    values: Mapping[tuple[int, int], float],
    shown: Callable[[float], str],
    colours: Colormap,
    norm: Normalize,
) -> None:
    """So many columns and rows of cells, by (column, row) from the lower left: each with its value, or grey without."""
    matrix = [[values.get((x, y), math.nan) for x in range(size[0])] for y in range(size[1])]
    panel.pcolormesh(matrix, cmap=colours, norm=norm, edgecolors="white", linewidth=1)
    for (x, y), value in values.items():
        red, green, blue, _ = colours(norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        colour = "white" if dark else canvas.INK
        panel.text(x + 0.5, y + 0.5, shown(value), ha="center", va="center", fontsize=7, color=colour)
    canvas.plain(panel)


def _name(panels: Sequence[Axes], columns: Sequence[object], rows: Sequence[object]) -> None:
    """Names the cells of panels that share their axes: once for all, since each naming goes through all of them."""
    panels[0].set_xticks([at + 0.5 for at in range(len(columns))], [*map(str, columns)])
    panels[0].set_yticks([at + 0.5 for at in range(len(rows))], [*map(str, rows)])
    for panel in panels:
        panel.tick_params(axis="x", labelrotation=90 if max(map(len, map(str, columns))) > 4 else 0)


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


def speedup_maps(chapter: Chapter, op: str) -> list[Picture]:
    """A panel a layer: the speed-up at each chunk size (rows) and number of segments (columns)."""
    from matplotlib.colors import LogNorm

    every = chapter.layers(op)
    most_keys = {*sorted(every, key=lambda name: -len(every[name]))[:_MAPPED]}
    layers = {name: found for name, found in every.items() if name in most_keys}
    which = "each layer" if layers == every else f"each of the {_MAPPED} layers of {len(every)} that have most keys"
    keys = [finding.key for found in layers.values() for finding in found]
    chunk_sizes = sorted({key.chunk_size for key in keys}, reverse=True)
    buckets = sorted({key.segment_bucket for key in keys})
    most = max((finding.speedup or 1 for finding in chapter.findings), default=1)
    colours, norm = canvas.colours(_GAINS), LogNorm(1, max(1.5, most))
    made = []
    for number, names in enumerate(canvas.parts(layers, 2 * canvas.PANELS)):
        rows = -(-len(names) // 2)
        figure = canvas.blank(0.5 + _height(rows, len(chunk_sizes)))
        panels = _grid(figure, rows, [divmod(index, 2) for index in range(len(names))], "all")
        for panel, name in zip(panels, names):
            values = {
                (buckets.index(finding.key.segment_bucket), chunk_sizes.index(finding.key.chunk_size)): finding.speedup
                for finding in layers[name]
                if finding.speedup is not None
            }
            _heat(panel, (len(buckets), len(chunk_sizes)), values, "{:.1f}".format, colours, norm)
            canvas.title(panel, name)
        _name(panels, buckets, chunk_sizes)
        figure.supxlabel("segments", fontsize=8, color=canvas.INK)
        figure.supylabel("chunk size", fontsize=8, color=canvas.INK)
        made.append(canvas.picture(canvas.numbered(f"speed-up-{op}", number), _MAP.format(op, which), figure))
    return made


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
    for name, swept in _spread([*_swept(chapter, op).items()], _SWEPT):
        parts = [(_example_text(name, finding), landscapes(finding)) for finding in _examples(swept)]
        if op == "add_lora":
            rows += [
                [(f"shrink of {text}", both["shrink"]), (f"expand of {text}", both["expand"])] for text, both in parts
            ]
        else:
            rows.append([(text, found[op]) for text, found in parts])
    return rows


def _swept(chapter: Chapter, op: str) -> dict[str, list[Finding]]:
    """By layer the keys whose candidates are known."""
    known = {
        name: [finding for finding in found if finding.result.screened] for name, found in chapter.layers(op).items()
    }
    return {name: found for name, found in known.items() if found}


def _spread(some: Sequence[T], most: int) -> list[T]:
    """So many of them at most, spread evenly, with the first and the last."""
    if len(some) <= most:
        return [*some]
    return [some[round(at * (len(some) - 1) / (most - 1))] for at in range(most)]


def sweeps(chapter: Chapter, op: str) -> list[Picture]:
    """Landscapes of some keys of each layer: percent that each place is slower than the fastest candidate."""
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    every, layers = _sweep_rows(chapter, op), len(_swept(chapter, op))
    which = "each layer" if layers <= _SWEPT else f"{_SWEPT} of {layers} layers"
    every_place = {place for row in every for _, found in row for place in found.everywhere}
    warps = _Axes.of(every_place).warps
    axes = [_Axes.of(every_place)] * 2
    if op == "add_lora":  # the kernel of a column has tiles of its own
        axes = [_Axes.of(place for row in every for place in row[at][1].everywhere) for at in range(2)]
        axes = [each._replace(warps=warps) for each in axes]
    colours, norm = canvas.colours(_LOSSES), Normalize(1, _MOST_SLOWDOWN)
    made = []
    for number, rows in enumerate(canvas.parts(every, canvas.PANELS)):
        figure = canvas.blank(0.75 + _height(len(rows), len(warps)))
        used = [(at, column) for at, row in enumerate(rows) for column in range(len(row))]
        panels = _grid(figure, len(rows), used, "col")
        for panel, (at, column) in zip(panels, used):
            title, found = rows[at][column]
            there = axes[column]
            values = {there.at(place): slowdown for place, slowdown in found.slowdowns.items()}
            _heat(panel, (len(there.tiles), len(warps)), values, _percent_slower, colours, norm)
            if found.winner:
                corner = there.at(found.winner)
                panel.add_patch(
                    Rectangle(corner, 1, 1, fill=False, edgecolor=canvas.ALARM, linewidth=1.8, clip_on=False)
                )
            canvas.title(panel, title)
        for column in {column for _, column in used}:
            _name([panel for panel, (_, its) in zip(panels, used) if its == column], axes[column].columns, warps)
        figure.supylabel("warps", fontsize=8, color=canvas.INK)
        made.append(canvas.picture(canvas.numbered(f"landscape-{op}", number), _SWEEPS.format(op, which), figure))
    return made


def where_winners_lie(chapter: Chapter) -> list[Picture]:
    """A panel a kernel: how many keys' winners lie at each tile and number of warps."""
    from matplotlib.colors import LogNorm

    counted = winners(chapter.findings)
    if not counted:
        return []
    axes = _Axes.of(place for counts in counted.values() for place in counts)
    rows = -(-len(counted) // 2)
    figure = canvas.blank(0.75 + _height(rows, len(axes.warps)))
    panels = _grid(figure, rows, [divmod(index, 2) for index in range(len(counted))], "all")
    for panel, (name, counts) in zip(panels, counted.items()):
        values = {axes.at(place): float(count) for place, count in counts.items()}
        norm = LogNorm(1, max(2, *counts.values()))
        _heat(panel, (len(axes.tiles), len(axes.warps)), values, "{:.0f}".format, canvas.colours(_COUNTS), norm)
        canvas.title(panel, name)
    _name(panels, axes.columns, axes.warps)
    figure.supylabel("warps", fontsize=8, color=canvas.INK)
    return [canvas.picture("winners", _WINNERS, figure)]
