"""Batches as vLLM hands them to its LoRA operators, and what these should make of them, in plain float32 torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from batches import DEVICE, NAN
from csgmv.integrations.vllm_metadata import Metadata

RANKS, SCALINGS = (16, 5, 0, 12), (0.5, -2.0, 1.0, 3.0)
IDS = (3, -1, 0, 0, 3, 1, -1, 0) + (1,) * 19 + (0, -1, 3, 3)  # slot 2 has no rows; slot 1 has more than one chunk


class Meta:
    """The tensors of a LoRAKernelMeta: static, longer than the batch, refilled for each."""

    def __init__(self, max_loras: int = len(RANKS), max_tokens: int = 64) -> None:
        like = {"dtype": torch.int32, "device": DEVICE}
        self.mapping = torch.full((max_tokens,), 2**30, **like)
        self.indices = torch.full((max_tokens,), 2**30, **like)
        self.counts = torch.zeros(max_loras + 1, **like)
        self.starts = torch.zeros(max_loras + 2, **like)
        self.ids = torch.full((max_loras + 1,), -1, **like)
        self.no_lora, self.active = torch.tensor([True]), torch.tensor([0], dtype=torch.int32)

    def refill(self, ids: Sequence[int]) -> Meta:
        """What a new batch leaves in them: groups by rising slot, -1 first, and after them -1, 0 and 0."""
        mapping = torch.tensor(ids, dtype=torch.int32)
        slots, counts = torch.unique(mapping, return_counts=True)
        for tensor, filler, values in (
            (self.mapping, None, mapping),
            (self.indices, None, mapping.argsort(stable=True)),
            (self.counts, 0, counts),
            (self.starts, 0, torch.cat((torch.zeros(1), counts.cumsum(0)))),
            (self.ids, -1, slots),
        ):
            if filler is not None:
                tensor.fill_(filler)
            tensor[: len(values)].copy_(values)
        self.no_lora.fill_(bool((mapping == -1).all()))
        self.active.fill_(len(slots))
        return self

    def arguments(self, tokens: int, *, specialised: bool = True) -> tuple[torch.Tensor, ...]:
        """What both operators take between their tensors and their options."""
        active = self.active if specialised else torch.tensor([len(self.ids)], dtype=torch.int32)
        mapping, indices = self.mapping[:tokens], self.indices[:tokens]
        return mapping, indices, self.counts, self.starts, self.ids, self.no_lora, active

    def metadata(self, tokens: int) -> Metadata:
        """The tensors that are on the device."""
        return Metadata(self.mapping[:tokens], self.indices[:tokens], self.counts, self.starts, self.ids)


def weights(
    widths: Sequence[int], input_dim: int = 40, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A and B of each slice as vLLM stacks them: zeros beyond an adapter's rank, its scaling folded into B."""
    draw = torch.Generator().manual_seed(seed)
    stacked: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for width in widths:
        a = torch.randn(len(RANKS), 1, max(RANKS), input_dim, generator=draw) / input_dim**0.5
        b = torch.randn(len(RANKS), 1, width, max(RANKS), generator=draw) / 4
        for slot, (rank, scaling) in enumerate(zip(RANKS, SCALINGS)):
            a[slot, 0, rank:] = 0
            b[slot, 0, :, rank:] = 0
            b[slot] *= scaling
        for tensors, made in zip(stacked, (a, b)):
            tensors.append(made.to(DEVICE, dtype))
    return stacked


def some_x(tokens: int, input_dim: int = 40, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Inputs, with NaN between the rows."""
    x = torch.full((tokens, input_dim + 8), NAN)
    x[:, :input_dim] = torch.randn(tokens, input_dim, generator=torch.Generator().manual_seed(1))
    return x.to(DEVICE, dtype)[:, :input_dim]


def shrunk(x: torch.Tensor, a: Sequence[torch.Tensor], ids: Sequence[int]) -> torch.Tensor:
    """float32 [num_slices, num_tokens, rank], zero in rows without an adapter."""
    h = torch.zeros(len(a), len(ids), a[0].shape[-2], device=x.device)
    for row, slot in enumerate(ids):
        if slot >= 0:
            for i, each in enumerate(a):
                h[i, row] = x[row].float() @ each[slot].reshape(each.shape[-2:]).float().T
    return h


def expanded(
    h: torch.Tensor, b: Sequence[torch.Tensor], ids: Sequence[int], output: torch.Tensor, start: int, add: bool
) -> torch.Tensor:
    """The output in float32, rows without an adapter and other columns as they were."""
    result = output.float()
    for row, slot in enumerate(ids):
        column = start
        for i, each in enumerate(b):
            width = each.shape[-2]
            if slot >= 0:
                delta = h[i, row].float() @ each[slot].reshape(each.shape[-2:]).float().T
                result[row, column : column + width] = delta + (result[row, column : column + width] if add else 0)
            column += width
    return result


def poison_fresh_memory(monkeypatch: Any) -> None:
    """torch.empty gives NaN, or a number that is no row, slot or rank: whatever is read before it is written shows."""
    empty, strided = torch.empty, torch.empty_strided

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(NAN if tensor.is_floating_point() else 2**30)

    monkeypatch.setattr(torch, "empty", lambda *size, **how: poisoned(empty(*size, **how)))
    monkeypatch.setattr(torch, "empty_strided", lambda *size, **how: poisoned(strided(*size, **how)))
