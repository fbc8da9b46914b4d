"""Whole numbers and flags among the arguments, checked by their names; standard library only."""

from __future__ import annotations

import operator
from typing import Any


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number within bounds, of whatever class has an index; True and 1.0 are none.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if number < least or (most is not None and number > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {wanted}, got {number}")
    return number


def flag(name: str, value: object) -> bool:
    """True or False; 1 and 0, which equal them, pass too, since plans and memos take them for the same.

    Raises:
        TypeError: naming the argument, what was expected and what came.
    """
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)
