"""Rank and scaling of each adapter slot, and the reading of a caller's lists and tensors.

Numbers on the host become arrays. A batch has a few hundred, and whoever prepares it has just done something else, so
that the cost is the number of calls, not of elements: builtins are quicker to call than NumPy, and NumPy than torch.
"""

from __future__ import annotations

import math
import reprlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard, Union

import numpy as np
import torch
from numpy.typing import NDArray

from csgmv import devices, rules

Integers = Union[Sequence[int], torch.Tensor]
Floats = Union[Sequence[float], torch.Tensor]


@dataclass(frozen=True)
class Adapters:
    """Rank and scaling of each adapter slot, each on the host (checked) or on a GPU (never looked at).

    Attributes:
        ranks: integers [num_loras], on the host or a GPU.
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
        ranks, scales = _read_ranks(lora_ranks), _read_scalings(scalings)
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


class Read(NamedTuple):
    """Whole numbers as they were read.

    Attributes:
        numbers: int64 [n].
        low, high: the lowest and highest of them; 0 where there are none.
    """

    numbers: NDArray[np.int64]
    low: int
    high: int


def read_integers(name: str, values: object, *, least: int = 0, most: int | None = None) -> Read:
    """A list [n], or a tensor [n] on the host, of whole numbers. None in a list reads as -1.

    Raises:
        TypeError, ValueError: it is something else, or a number is out of range; the message begins with the name.
    """
    found = _vector(name, values, "q")
    if isinstance(found, torch.Tensor):
        numbers: NDArray[np.int64] = _whole_on_host(name, found).numpy()
    else:
        numbers = np.frombuffer(found, np.int64)
    if not len(numbers):
        return Read(numbers, 0, 0)
    low, high = int(numbers.min()), int(numbers.max())
    _check_range(name, low, high, least, most)
    return Read(numbers, low, high)


def read_gpu_integers(name: str, values: torch.Tensor) -> torch.Tensor:
    """A tensor [n] of whole numbers on the GPU, as it is.

    Raises:
        TypeError, ValueError: it has another type or shape; the message begins with the name.
    """
    _check_tensor(name, values)
    _check_whole(name, values)
    return values


def _read_ranks(lora_ranks: Integers) -> array[int] | torch.Tensor:
    if on_gpu(lora_ranks):
        return read_gpu_integers("lora_ranks", lora_ranks)
    ranks = _vector("lora_ranks", lora_ranks, "q")
    if isinstance(ranks, torch.Tensor):
        ranks = array("q", _whole_on_host("lora_ranks", ranks).tolist())
    if ranks:
        _check_range("lora_ranks", min(ranks), max(ranks), 0, rules.MAX_RANK)
    return ranks


def _read_scalings(scalings: Floats) -> array[float] | torch.Tensor:
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


def _check_range(name: str, low: int, high: int, least: int, most: int | None) -> None:
    """Raises ValueError, beginning with the name, if the lowest of some numbers is too low or the highest too high."""
    if low < least or (most is not None and high > most):
        wanted = f"{least} or more" if most is None else f"{least} … {most}"
        raise ValueError(f"{name}: expected {wanted}, got {low if low < least else high}")


def _whole_on_host(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As int64; raises TypeError, beginning with the name, for what is something else or elsewhere."""
    _check_whole(name, tensor)
    _check_host(name, tensor)
    return tensor.long()


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if tensor.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {list(tensor.shape)}")


def _check_host(name: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise TypeError(f"{name}: expected a list or a tensor on the host, got one on {tensor.device}")


def _check_whole(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{name}: expected whole numbers, got {tensor.dtype}")


def _vector(name: str, values: object, typecode: str) -> array[Any] | torch.Tensor:
    """One-dimensional numbers: a tensor as it is, a list as an array, which checks their types as it is made."""
    if type(values) is not list:
        if isinstance(values, torch.Tensor) or hasattr(values, "__array__"):
            tensor = torch.as_tensor(values)
            _check_tensor(name, tensor)
            return tensor
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray)):
            raise TypeError(f"{name}: expected a list or tensor of numbers, got {type(values).__name__}")
    try:
        return array(typecode, values)
    except (TypeError, OverflowError) as error:
        if None in values and typecode == "q":
            return _vector(name, [-1 if value is None else value for value in values], typecode)
        kind = "whole numbers" if typecode == "q" else "numbers"
        raise TypeError(f"{name}: expected a list or tensor of {kind}, got {reprlib.repr(values)} ({error})") from None
