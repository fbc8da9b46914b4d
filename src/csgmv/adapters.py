"""Rank and scaling of each adapter slot, and the reading of a caller's lists and tensors.

Numbers on the host become lists and arrays. A batch has a few hundred, and whoever prepares it has just done something
else, so that calls cost more than elements: a loop takes less time than one torch operation after another.
"""

from __future__ import annotations

import math
import reprlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, Union

import torch

from csgmv import devices, rules

Integers = Union[Sequence[int], torch.Tensor]
Floats = Union[Sequence[float], torch.Tensor]


@dataclass(frozen=True)
class Adapters:
    """Rank and scaling of each adapter slot, each on the host (checked) or on a GPU (never looked at).

    Attributes:
        ranks: int32 [num_loras] on the host, integers on a GPU.
        scalings: float32 [num_loras] on the host, floats on a GPU.
    """

    ranks: array[int] | torch.Tensor
    scalings: array[float] | torch.Tensor

    @classmethod
    def read(cls, lora_ranks: Integers, scalings: Floats) -> Adapters:
        """Takes lists or tensors, both [num_loras], and leaves what is on a GPU there.

        Raises:
            TypeError: not numbers, or ranks that are not whole.
            ValueError: not one-dimensional, lengths differ, a rank outside 0 … 256, a scaling that is not finite.
        """
        ranks: array[int] | torch.Tensor
        if on_gpu(lora_ranks):
            ranks = read_gpu_integers("lora_ranks", lora_ranks)
        else:
            ranks = array("i", [*read_integers("lora_ranks", lora_ranks, most=rules.MAX_RANK)])
        scales = _read_scalings(scalings)
        if len(ranks) != len(scales):
            raise ValueError(f"scalings: expected one per slot of lora_ranks ({len(ranks)}), got {len(scales)}")
        return cls(ranks, scales)

    @property
    def num_loras(self) -> int:
        """Number of slots."""
        return len(self.ranks)

    def host_ranks(self) -> Sequence[int]:
        """The ranks, to tell on the host which slots are empty; where they are on the GPU, as if none were."""
        return [1] * self.num_loras if isinstance(self.ranks, torch.Tensor) else self.ranks

    def largest_rank(self) -> int:
        """The largest rank; 0 where there is none, or where they are on the GPU."""
        return 0 if isinstance(self.ranks, torch.Tensor) else max(self.ranks, default=0)

    def device(self, device: torch.device | str | None, *others: torch.Tensor) -> torch.device:
        """The device that an argument `device` means: None is the GPU of a given tensor, else the current one, if any.

        Raises:
            TypeError, ValueError: it is none that this machine has, or a given tensor is on another GPU.
        """
        given = [tensor.device for tensor in (*others, self.ranks, self.scalings) if on_gpu(tensor)]
        if device is not None:
            place = devices.read(device)
        elif given:
            place = given[0]
        else:
            place = devices.read("cuda" if torch.cuda.is_available() else "cpu")
        for other in given:
            if other != place:
                raise ValueError(f"device: expected every tensor on {place} or on the host, got one on {other}")
        return place


def on_gpu(values: object) -> TypeGuard[torch.Tensor]:
    """Whether these are numbers that the host cannot look at without waiting."""
    return isinstance(values, torch.Tensor) and values.is_cuda


_BYTES = bytes(range(256))


def _small(values: list[Any], most: int | None) -> bytes | None:
    """The numbers as bytes, if they are that small and none exceeds `most`.

    A list of some hundred is checked so in half the time that an array takes, and then its lowest and highest number.
    """
    try:
        numbers = bytes(values)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if most is None or not numbers.translate(None, _BYTES[: most + 1]) else None


def read_integers(name: str, values: object, *, least: int = 0, most: int | None = None) -> Sequence[int]:
    """A list [n], or a tensor [n] on the host, of whole numbers. None in a list reads as -1.

    Raises:
        TypeError, ValueError: it is something else, or a number is out of range; the message begins with the name.
    """
    if type(values) is list and least <= 0 and (small := _small(values, most)) is not None:
        return small
    numbers: list[int] = _whole(name, values).tolist()
    _check_range(name, numbers, least, most)
    return numbers


def read_runs(name: str, values: object, *, least: int, most: int) -> tuple[list[int], list[int]]:
    """As `read_integers`, as runs of equal numbers: how many times each comes, and the number."""
    numbers = _whole(name, values)
    if not len(numbers):
        return [], []
    tensor = torch.frombuffer(numbers, dtype=torch.int64) if isinstance(numbers, array) else numbers.long()
    distinct, counts = torch.unique_consecutive(tensor, return_counts=True)
    found: list[int] = distinct.tolist()
    _check_range(name, found, least, most)
    return counts.tolist(), found


def read_gpu_integers(name: str, values: torch.Tensor) -> torch.Tensor:
    """A tensor [n] of whole numbers on the GPU, as it is.

    Raises:
        TypeError, ValueError: it has another type or shape; the message begins with the name.
    """
    _check_tensor(name, values)
    _check_whole(name, values)
    return values


def _check_range(name: str, numbers: Sequence[int], least: int, most: int | None) -> None:
    """Raises ValueError, beginning with the name, if a number is less than least or more than most."""
    if not numbers:
        return
    distinct = set(numbers)  # far fewer than there are numbers: many sequences share an adapter
    low, high = min(distinct), max(distinct)
    if low < least or (most is not None and high > most):
        wanted = f"{least} or more" if most is None else f"{least} … {most}"
        raise ValueError(f"{name}: expected {wanted}, got {low if low < least else high}")


def _whole(name: str, values: object) -> array[int] | torch.Tensor:
    numbers = _vector(name, values, "q")
    if isinstance(numbers, torch.Tensor):
        _check_whole(name, numbers)
        _check_host(name, numbers)
    return numbers


def _read_scalings(scalings: object) -> array[float] | torch.Tensor:
    scales = _vector("scalings", scalings, "f")
    if isinstance(scales, torch.Tensor):
        if scales.is_complex() or scales.dtype == torch.bool:
            raise TypeError(f"scalings: expected real numbers, got {scales.dtype}")
        if scales.is_cuda:
            return scales
        _check_host("scalings", scales)
        scales = array("f", scales.float().tolist())
    if not math.isfinite(sum(scales)):  # no float32 numbers that are finite add up to a float that is not
        wrong = next(scale for scale in scales if not math.isfinite(scale))
        raise ValueError(f"scalings: expected finite float32 numbers, got {wrong}")
    return scales


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a strided tensor, got one of layout {tensor.layout}")
    if tensor.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {list(tensor.shape)}")


def _check_host(name: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise TypeError(f"{name}: expected a list or a tensor on the host, got one on {tensor.device}")


def _check_whole(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{name}: expected whole numbers, got {tensor.dtype}")


def _tensor(name: str, values: Any) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError) as error:  # such as an array of objects
        raise TypeError(
            f"{name}: expected a list or tensor of numbers, got {type(values).__name__} ({error})"
        ) from None
    _check_tensor(name, tensor)
    return tensor


def _vector(name: str, values: object, typecode: str) -> array[Any] | torch.Tensor:
    """One-dimensional numbers: a tensor as it is, a list as an array, which checks their types as it is made."""
    if type(values) is not list:
        if isinstance(values, torch.Tensor) or hasattr(values, "__array__"):
            return _tensor(name, values)
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray)):
            raise TypeError(f"{name}: expected a list or tensor of numbers, got {type(values).__name__}")
    try:
        return array(typecode, values)
    except (TypeError, OverflowError) as error:
        if typecode == "q" and any(value is None for value in values):
            return _vector(name, [-1 if value is None else value for value in values], typecode)
        kind = "whole numbers" if typecode == "q" else "numbers"
        raise TypeError(f"{name}: expected a list or tensor of {kind}, got {reprlib.repr(values)} ({error})") from None
