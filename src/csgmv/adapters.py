"""Rank and scaling of each adapter slot, and the reading of a caller's lists and tensors."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

import torch

from csgmv import rules

Integers = Union[Sequence[int], torch.Tensor]
Floats = Union[Sequence[float], torch.Tensor]


@dataclass(frozen=True)
class Adapters:
    """Rank and scaling of each adapter slot, each on the host (checked) or on a GPU (never looked at)."""

    ranks: torch.Tensor
    scalings: torch.Tensor

    @classmethod
    def read(cls, lora_ranks: Integers, scalings: Floats) -> Adapters:
        """Takes lists or tensors, both [num_loras], and leaves them where they are.

        Raises:
            TypeError: not numbers, or ranks that are not whole.
            ValueError: not one-dimensional, lengths differ, a rank outside 0 … 256, a scaling that is not finite.
        """
        ranks = read_integers("lora_ranks", lora_ranks, host=False, most=rules.MAX_RANK)
        scales = _vector("scalings", scalings, "f", torch.float32)
        if scales.is_complex() or scales.dtype == torch.bool:
            raise TypeError(f"scalings: expected real numbers, got {scales.dtype}")
        if not scales.is_cuda:
            scales = scales.float()
            finite = scales.isfinite()
            if not finite.all():
                raise ValueError(f"scalings: expected finite float32 numbers, got {scales[~finite][0].item()}")
        if ranks.numel() != scales.numel():
            raise ValueError(f"scalings: expected one per slot of lora_ranks ({ranks.numel()}), got {scales.numel()}")
        return cls(ranks, scales)

    @property
    def num_loras(self) -> int:
        """Number of slots."""
        return self.ranks.numel()

    def host_ranks(self) -> torch.Tensor:
        """The ranks, to tell on the host which slots are empty; where they are on the GPU, as if none were."""
        return torch.ones(self.num_loras, dtype=torch.int64, device="cpu") if self.ranks.is_cuda else self.ranks

    def largest_rank(self) -> int:
        """The largest rank; 0 where there is none, or where they are on the GPU."""
        return 0 if self.ranks.is_cuda or not self.num_loras else int(self.ranks.max())

    def device(self, device: torch.device | str | None, *others: torch.Tensor) -> torch.device:
        """The device that an argument `device` means: None is the GPU of a given tensor, else the current one, if any.

        Raises:
            ValueError: a given tensor is on another GPU.
        """
        given = [tensor.device for tensor in (*others, self.ranks, self.scalings) if tensor.is_cuda]
        if device is None:
            place = given[0] if given else torch.device("cuda" if torch.cuda.is_available() else "cpu")
        else:
            place = torch.device(device)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        for other in given:
            if other != place:
                raise ValueError(f"device: expected every tensor on {place} or on the host, got one on {other}")
        return place


def read_integers(
    name: str, values: object, *, host: bool = True, least: int = 0, most: int | None = None
) -> torch.Tensor:
    """A list or tensor [n] of whole numbers as a tensor: int64 if it is on the host, else as and where it is.

    None in a list reads as -1. `host` forbids the GPU. Only numbers on the host are held against least and most.

    Raises:
        TypeError, ValueError: it is something else; the message begins with the name.
    """
    tensor = _vector(name, values, "q", torch.int64)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{name}: expected whole numbers, got {tensor.dtype}")
    if tensor.is_cuda:
        if host:
            raise TypeError(f"{name}: expected a list or a tensor on the host, got one on {tensor.device}")
        return tensor
    tensor = tensor.long()
    if tensor.numel():
        low, high = (int(bound) for bound in tensor.aminmax())
        if low < least or (most is not None and high > most):
            wanted = f"{least} or more" if most is None else f"{least} … {most}"
            raise ValueError(f"{name}: expected {wanted}, got {low if low < least else high}")
    return tensor


def _vector(name: str, values: object, typecode: str, dtype: torch.dtype) -> torch.Tensor:
    """One-dimensional numbers as a tensor; a list is read by way of an array, a tenth of what torch.tensor takes."""
    if isinstance(values, torch.Tensor) or hasattr(values, "__array__"):
        tensor = torch.as_tensor(values)
        if tensor.ndim != 1:
            raise ValueError(f"{name}: expected one dimension, got shape {list(tensor.shape)}")
        return tensor
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"{name}: expected a list or tensor of numbers, got {type(values).__name__}")
    try:
        numbers = array(typecode, values)
    except (TypeError, OverflowError) as error:
        if None in values and typecode == "q":
            return _vector(name, [-1 if value is None else value for value in values], typecode, dtype)
        kind = "whole numbers" if typecode == "q" else "numbers"
        raise TypeError(f"{name}: expected a list or tensor of {kind} ({error})") from None
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype, device="cpu")
