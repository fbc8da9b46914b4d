"""Checks of parsed JSON, put together from small ones; each yields every fault it finds as 'JSON path: fault'.

Standard library only: `records` builds its schema from these, and the codegen loads both by path.
"""

from __future__ import annotations

import datetime
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Check = Callable[[Any, str], Iterator[str]]  # (a value, its JSON path) → its faults


class _Object(dict[str, Any]):
    """A JSON object that remembers which names were given to it more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]


def parse(text: str) -> Any:
    """JSON as the standard has it, ready for a check.

    Raises:
        ValueError: not JSON; NaN and Infinity, which Python would let pass, included.
        RecursionError: nested too deeply.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    return json.loads(text, object_pairs_hook=_Object, parse_constant=refuse)


def expected(what: str, value: object, path: str) -> str:
    """The fault of a value that is not what it should be."""
    return f"{path}: expected {what}, got {reprlib.repr(value)}"


def member(path: str, name: str) -> str:
    """The JSON path of an object's member."""
    return f"{path}.{name}" if name.isidentifier() and name.isascii() else f"{path}[{reprlib.repr(name)}]"


def anything(_value: Any, _path: str) -> Iterator[str]:
    """No fault in any value."""
    yield from ()


def boolean(value: Any, path: str) -> Iterator[str]:
    """One of true and false."""
    if not isinstance(value, bool):
        yield expected("true or false", value, path)


def date(value: Any, path: str) -> Iterator[str]:
    """A day that exists, as YYYY-MM-DD, so that dates sort as text."""
    try:
        right = datetime.date.fromisoformat(value).isoformat() == value
    except (TypeError, ValueError):
        right = False
    if not right:
        yield expected("a date as YYYY-MM-DD", value, path)


def phrase(value: Any, path: str) -> Iterator[str]:
    """One line for people."""
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 500:
        yield expected("1 to 500 printable characters", value, path)


def text(pattern: str, what: str) -> Check:
    """A string that matches as a whole."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            yield expected(what, value, path)

    return check


def integer(least: int, most: int = 2**31 - 1) -> Check:
    """An integer within bounds; true and 1.0 are none."""

    def check(value: Any, path: str) -> Iterator[str]:
        if type(value) is not int or not least <= value <= most:
            yield expected(f"an integer from {least} to {most}", value, path)

    return check


def number(above: float = 0.0, *, or_equal: bool = False, most: float = 1e9) -> Check:
    """A finite number, integer or not."""

    def check(value: Any, path: str) -> Iterator[str]:
        right = type(value) in (int, float) and above <= value <= most
        if not right or (value == above and not or_equal):
            yield expected(f"a number {'from' if or_equal else 'above'} {above:g} up to {most:g}", value, path)

    return check


def exactly(wanted: object) -> Check:
    """One value of one type."""

    def check(value: Any, path: str) -> Iterator[str]:
        if type(value) is not type(wanted) or value != wanted:
            yield expected(repr(wanted), value, path)

    return check


def one_of(*wanted: object) -> Check:
    """One of a few values, each of one type."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not any(type(value) is type(one) and value == one for one in wanted):
            yield expected(f"one of {', '.join(map(repr, wanted))}", value, path)

    return check


def or_null(inner: Check) -> Check:
    """What `inner` allows, or null."""

    def check(value: Any, path: str) -> Iterator[str]:
        if value is not None:
            yield from inner(value, path)

    return check


def array(item: Check, least: int = 0) -> Check:
    """An array of any length from `least`, every element alike."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, list) or len(value) < least:
            yield expected(f"an array of {least} or more" if least else "an array", value, path)
        else:
            for index, element in enumerate(value):
                yield from item(element, f"{path}[{index}]")

    return check


def entries(*items: Check) -> Check:
    """An array of fixed length, each place with a check of its own."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, list) or len(value) != len(items):
            yield expected(f"an array of {len(items)}", value, path)
        else:
            for index, (item, element) in enumerate(zip(items, value)):
                yield from item(element, f"{path}[{index}]")

    return check


def _members(value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield expected("an object", value, path)
    for name in getattr(value, "repeated", ()):
        yield f"{member(path, name)}: given more than once"


def record(optional: Mapping[str, Check] | None = None, /, **members: Check) -> Check:
    """An object with just these members: none missing but optional ones, none unknown."""
    known = {**members, **(optional or {})}

    def check(value: Any, path: str) -> Iterator[str]:
        yield from _members(value, path)
        if not isinstance(value, dict):
            return
        for name in value:
            if name not in known:
                yield f"{member(path, name)}: unknown field"
        for name, inner in known.items():
            if name in value:
                yield from inner(value[name], member(path, name))
            elif name in members:
                yield f"{member(path, name)}: missing"

    return check


def mapping(names: Check, values: Check) -> Check:
    """An object with any members of one kind."""

    def check(value: Any, path: str) -> Iterator[str]:
        yield from _members(value, path)
        for name, inner in value.items() if isinstance(value, dict) else ():
            yield from names(name, member(path, name))
            yield from values(inner, member(path, name))

    return check


def then(shape: Check, *more: Check) -> Check:
    """What can only be asked of a value whose shape is right."""

    def check(value: Any, path: str) -> Iterator[str]:
        yield from list(shape(value, path)) or (fault for rule in more for fault in rule(value, path))

    return check
