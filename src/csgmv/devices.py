"""Which device an argument `device` means."""

from __future__ import annotations

import functools

import torch


def read(given: object) -> torch.device:
    """The CPU, or a GPU of this machine with its number.

    Args:
        given: a torch.device or what torch takes for one; "cuda" means the current GPU.

    Raises:
        TypeError, ValueError: naming the argument `device`, what was expected and what came.
    """
    if not isinstance(given, (torch.device, str, int)) or isinstance(given, bool):
        raise TypeError(f"device: expected a torch.device or its name, got {given!r}")
    place = _place(given)
    return torch.device("cuda", torch.cuda.current_device()) if place is None else place


@functools.lru_cache(maxsize=64, typed=True)
def _place(given: torch.device | str | int) -> torch.device | None:
    """None is the current GPU; anything else stays what it is, and so is asked once."""
    try:
        place = torch.device(given)
    except (RuntimeError, ValueError):
        raise ValueError(f"device: expected a GPU or the CPU, got {given!r}") from None
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if place.index is None and count:
            return None
        if place.index is None or place.index >= count:
            raise ValueError(f"device: expected one of this machine's GPUs (torch finds {count}), got {place}")
        return place
    if place.type != "cpu":
        raise ValueError(f"device: expected a GPU or the CPU, got {given!r}")
    return torch.device("cpu")
