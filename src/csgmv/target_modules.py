"""What PEFT's target_modules may be: module names, a regular expression, or a word for all; standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Union

Targets = Union[str, Sequence[str]]  # a regular expression for whole paths of modules, or how these end
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the one that makes logits


def is_all_linear(targets: object) -> bool:
    """Whether it is that word, in any case; among names it is a name, as PEFT takes it."""
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


def regex_fault(pattern: str) -> str | None:
    """Why this is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return None


def check(name: str, targets: object) -> None:
    """Raises TypeError or ValueError, naming the argument, unless these are names, or an expression that compiles."""
    wanted = f"{name}: expected names or a regular expression"
    if isinstance(targets, str):
        if fault := regex_fault(targets):
            raise ValueError(f"{wanted}, got {targets!r}: {fault}")
    elif not isinstance(targets, Sequence) or not all(isinstance(each, str) for each in targets):
        raise TypeError(f"{wanted}, got {targets!r}")
