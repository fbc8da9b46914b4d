"""What a page is put together from, and how numbers are written on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from csgmv.reporting.canvas import Picture


class Card(NamedTuple):
    """One headline figure."""

    value: str
    label: str
    note: str = ""


class Verdict(NamedTuple):
    """One thing to trust the results by, or not."""

    good: bool
    text: str


class Table(NamedTuple):
    """Rows under a header; `folded` ones are opened by a click."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


class Section(NamedTuple):
    """A part of the page, with one sentence on what it is good for."""

    title: str
    lead: str
    cards: Sequence[Card] = ()
    verdicts: Sequence[Verdict] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def times(ratio: float | None) -> str:
    """'1.50×'; a dash where there is none, as in what follows."""
    return "-" if ratio is None else f"{ratio:.2f}×"


def percent(share: float | None) -> str:
    """'35 %'."""
    return "-" if share is None else f"{100 * share:.0f} %"


def us(microseconds: float | None) -> str:
    """'1,234.50'."""
    return "-" if microseconds is None else f"{microseconds:,.2f}"


def of(count: int, whole: int, noun: str) -> str:
    """'2 of 305 keys'."""
    return f"{count:,} of {whole:,} {noun}"
