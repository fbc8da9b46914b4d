"""What tables of wrong arguments are made of: of a function what is right, of each of its parameters what is not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Case = tuple[Any, type[Exception], str]  # a wrong value; the error; what its message has, as a regular expression


@dataclass(frozen=True)
class From:
    """A wrong value made from the right ones."""

    make: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Subject:
    """A function that users call.

    Attributes:
        function: whose parameters are asked for.
        good: arguments that it takes, made anew.
        wrong: of each parameter at least one case.
        call: how it is called with arguments by name, if not as it is.
        no_wrong: parameters of which any value is right, and why.
    """

    function: Callable[..., Any]
    good: Callable[[], dict[str, Any]]
    wrong: Mapping[str, Sequence[Case]]
    call: Callable[..., Any] | None = None
    no_wrong: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> set[str]:
        """All but self."""
        return {*inspect.signature(self.function).parameters} - {"self"}

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """Calls the function."""
        return (self.call or self.function)(**arguments)


def tensors(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Copies of all that a call might have changed."""
    found = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    for name, value in arguments.items():
        if isinstance(value, tuple):
            found |= {f"{name}[{i}]": each for i, each in enumerate(value) if isinstance(each, torch.Tensor)}
        if hasattr(value, "tensors"):
            found |= {f"{name}.{number}": tensor for number, tensor in enumerate(value.tensors)}
    return {name: value.clone() for name, value in found.items()}


NOT_WHOLE: tuple[Any, ...] = (1.5, "16", None, True, [16])


def whole(name: str, *outside: int, optional: bool = False) -> list[Case]:
    """Cases of a parameter that is a whole number: of other types, and these out of its range."""
    typed: list[Case] = [
        (value, TypeError, f"^{name}: expected a whole number, got ")
        for value in NOT_WHOLE
        if not (optional and value is None)
    ]
    return typed + [(value, ValueError, f"^{name}: expected .*, got {value}") for value in outside]


def flag(name: str) -> list[Case]:
    """Cases of a parameter that is True or False."""
    return [(value, TypeError, f"^{name}: expected True or False, got ") for value in ("no", None, 2, 1.0)]


DEVICES: list[Case] = [
    ("nonsense", ValueError, "^device: expected a GPU or the CPU, got 'nonsense'"),
    ("meta", ValueError, "^device: expected a GPU or the CPU, got 'meta'"),
    ("cuda:99", ValueError, r"^device: expected one of this machine's GPUs \(torch finds \d+\), got cuda:99"),
    (1.5, TypeError, r"^device: expected a torch\.device or its name, got 1\.5"),
]
