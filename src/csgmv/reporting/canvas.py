"""What the pictures of a page are drawn on: figures at the size in which the page shows them, saved as PNGs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

PANELS = 16  # rows of panels in one picture, which more layers than these continue in a further one
INK, GREY, ALARM = "#2b333b", "#b4bcc3", "#c0392b"
_UNMEASURED = "#f1f3f5"
_WIDTH = 9.6  # inches, of which the page gives each 96 pixels
_DPI = 192  # two pixels of the picture for one of the page
_TALLEST = 300  # inches, which are nearly as many pixels as a picture can have

Item = TypeVar("Item")


class Picture(NamedTuple):
    """A PNG, named for a file; `pixels` (width, height) are those that it takes on the page. The caption helps read."""

    name: str
    caption: str
    png: bytes
    pixels: tuple[int, int]


def blank(height: float) -> Figure:
    """An empty figure of the page's width, so many inches tall."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, min(height, _TALLEST)), layout="constrained")


def colours(shades: Sequence[str]) -> Colormap:
    """A scale from the first shade to the last; what was not measured is grey."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("csgmv", list(shades)).with_extremes(bad=_UNMEASURED)


def picture(name: str, caption: str, figure: Figure) -> Picture:
    """The figure as a PNG, the same bytes each time."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Picture(name, caption, file.getvalue(), (width, height))


def plain(panel: Axes) -> None:
    """Small letters, no frame."""
    panel.tick_params(labelsize=8, colors=INK, length=0)
    panel.spines[:].set_visible(False)


def title(panel: Axes, text: str) -> None:
    """A panel's title, in which no character has a meaning."""
    panel.set_title(text, fontsize=8.5, loc="left", color=INK, parse_math=False)


def parts(items: Iterable[Item], most: int) -> list[list[Item]]:
    """A picture's share each."""
    every = list(items)
    return [every[first : first + most] for first in range(0, len(every), most)]


def numbered(name: str, number: int) -> str:
    """The name of the picture of this number, from 0, of those that continue each other."""
    return name if number == 0 else f"{name}-{number + 1}"
