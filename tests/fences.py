"""Fenced memory: a tensor within guard bands, all of it NaN of a kind that no kernel computes, until it is written.

A store too far shows in the band, one too many inside shows as well, and whatever reads what nobody wrote becomes NaN.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from csgmv import launch

# Quiet NaNs whose payload neither the hardware's nor numpy's own have.
_POISON = {
    torch.float16: (torch.int16, 0x7E5A),
    torch.bfloat16: (torch.int16, 0x7FDA),
    torch.float32: (torch.int32, 0x7FC5A5A5),
}
_BAND = 4096  # elements, and at least two rows


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers, which are equal where they are the same."""
    return tensor.view(_POISON[tensor.dtype][0])


class Fenced:
    """A tensor in fenced memory.

    Attributes:
        tensor: of the given shape; its rows (all but the last dimension) may be further apart than they are long.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str, *, extra: int = 0, shift: int = 0
    ) -> None:
        """`extra` elements lie between rows, and the tensor begins `shift` elements after a multiple of 128 bytes."""
        stride = (shape[-1] if shape else 1) + extra
        rows = math.prod(shape[:-1])
        band = -(-max(_BAND, 2 * stride if rows > 1 else 0) // 64) * 64
        number, poison = _POISON[dtype]
        self._storage = torch.full((band + shift + rows * stride + band,), poison, dtype=number, device=device)
        first = band + shift
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size if len(strides) > 1 else stride)
        self._view = lambda flat: flat.as_strided(tuple(shape), tuple(strides), first)
        self.tensor: torch.Tensor = self._view(self._storage.view(dtype))
        self.keep()

    def keep(self) -> None:
        """From here on `intact` and `changed` compare with what is here now."""
        self._kept = self._storage.clone()

    def before(self) -> torch.Tensor:
        """The tensor as it was kept."""
        return self._view(self._kept.view(self.tensor.dtype))

    def restore(self) -> None:
        """What was kept is back."""
        self._storage.copy_(self._kept)

    def meant(self) -> torch.Tensor:
        """Which elements of the tensor have been given a number: bool, of its shape."""
        return bits(self.tensor) != _POISON[self.tensor.dtype][1]

    def intact(self, written: torch.Tensor | None = None) -> bool:
        """Whether all that was kept is still there, in the tensor, between its rows and around it.

        Args:
            written: bool, of the tensor's shape: which elements may have changed; None for none.
        """
        differs = self._storage != self._kept
        if written is not None:
            self._view(differs).masked_fill_(written, False)
        return not bool(differs.any())


@contextlib.contextmanager
def fresh_memory() -> Iterator[list[Fenced]]:
    """What the operations allocate meanwhile is fenced: h, partials and stages, in the order of their allocation.

    The list only grows; who looks at it may clear it.
    """
    made: list[Fenced] = []
    empty_strided = torch.empty_strided

    def fresh(dtype: torch.dtype, device: torch.device) -> Callable[[int], torch.Tensor]:
        def new(count: int) -> torch.Tensor:
            made.append(Fenced((count,), dtype, device))
            return made[-1].tensor

        return new

    def strided(shape: Sequence[int], stride: Sequence[int], **how: Any) -> torch.Tensor:
        if how.get("dtype") not in _POISON:
            return empty_strided(shape, stride, **how)
        made.append(Fenced(shape, how["dtype"], how["device"]))
        assert made[-1].tensor.stride() == tuple(stride)
        return made[-1].tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "fresh", fresh)
        patch.setattr(launch, "plans", {})  # they keep what allocates for them
        patch.setattr(torch, "empty_strided", strided)
        yield made
