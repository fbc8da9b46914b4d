"""Random numbers in GPU memory that many tensors are views of, made once instead of for every key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

_ALIGNED = 256  # elements; torch's own allocations begin at multiples of 512 bytes
_BLOCK = 1 << 26  # elements drawn at a time


class Arena:
    """Standard normal numbers, as many as the most that were asked for at a time. They are drawn anew as it grows."""

    def __init__(self, device: torch.device, seed: int, outgrown: Callable[[], object] = lambda: None) -> None:
        """Nothing is allocated yet. `outgrown` is called before memory is: what was cut so far is to be let go of."""
        self._device, self._seed, self._outgrown = device, seed, outgrown
        self._numbers: dict[torch.dtype, torch.Tensor] = {}

    def cut(
        self, dtype: torch.dtype, copies: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> list[dict[str, torch.Tensor]]:
        """Tensors of these shapes, `copies` times over, none of which overlap. The next cut overlaps all of them."""
        sizes = {name: -(-math.prod(shape) // _ALIGNED) * _ALIGNED for name, shape in shapes.items()}
        numbers = self._at_least(dtype, copies * sum(sizes.values()))
        tensors, start = [], 0
        for _ in range(copies):
            one = {}
            for name, shape in shapes.items():
                one[name] = numbers[start : start + math.prod(shape)].view(shape)
                start += sizes[name]
            tensors.append(one)
        return tensors

    def _at_least(self, dtype: torch.dtype, size: int) -> torch.Tensor:
        numbers = self._numbers.get(dtype)
        if numbers is None or numbers.numel() < size:
            self._outgrown()
            self._numbers.pop(dtype, None)
            generator = torch.Generator(self._device).manual_seed(self._seed)
            numbers = torch.empty(size, dtype=dtype, device=self._device)
            for block in numbers.split(_BLOCK):
                # drawn in float32: a CPU has no generator for every dtype
                block.copy_(torch.randn(block.shape, generator=generator, device=self._device))
            self._numbers[dtype] = numbers
        return numbers
