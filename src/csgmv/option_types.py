"""What the options of commands may be, as argparse asks: each says what was expected and what came."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number within bounds."""
    wanted = f"a whole number from {least} {'on' if most is None else f'to {most}'}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return number

    return read


def number(least: float = 0.0, most: float = math.inf) -> Callable[[str], float]:
    """A finite number within bounds."""
    wanted = f"a number from {least:g} {'on' if math.isinf(most) else f'to {most:g}'}"

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and least <= found <= most):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return found

    return read


def version(text: str) -> str:
    """Of Triton: numbers with dots between them, and perhaps more."""
    return _matching(text, r"[0-9]+(\.[0-9]+)+[A-Za-z0-9.+_-]*", "a version such as 3.6.0")


def architecture(text: str) -> str:
    """A compute capability."""
    return _matching(text, r"[0-9]+\.[0-9]+", "X.Y, such as 9.0")


def _matching(text: str, pattern: str, wanted: str) -> str:
    if not re.fullmatch(pattern, text):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return text
