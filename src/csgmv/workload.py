"""A layer's tensors for one batch, and each operation on them: run, checked against the reference, its bytes counted.

Bench, demo, the tuner and `bench --host` measure these. Weights beyond an adapter's rank, and what h holds there, are
NaN: a kernel that touches them shows at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import csgmv
from csgmv import dispatch, reference, rules
from csgmv.segments import Segments

DISTRIBUTIONS = ("even", "zipf", "one")
# Largest error of a right result, relative to the largest value of it: a rounding of the output, and one of h.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}


def adapter_ids(distribution: str, num_tokens: int, num_adapters: int, seed: int = 0, stretch: int = 1) -> list[int]:
    """The adapter of each token.

    `even`: adapters take turns. `zipf`: adapter k has 1/(k+1) of adapter 0's share, in random order (of stretches of
    tokens that stay neighbours), and at least one token if there are enough. `one`: adapter 0 has every token, the
    others are loaded and idle.
    """
    if distribution == "one":
        return [0] * num_tokens
    if distribution == "even":
        return [token % num_adapters for token in range(num_tokens)]
    if distribution != "zipf":
        raise ValueError(f"distribution: expected one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    shares = [1 / (adapter + 1) for adapter in range(num_adapters)]
    spare = max(0, num_tokens - num_adapters)  # tokens beyond each adapter's first
    counts = [1 + int(spare * share / sum(shares)) for share in shares]
    counts[0] += max(0, num_tokens - sum(counts))
    ids = [adapter for adapter, count in enumerate(counts) for _ in range(count)][:num_tokens]
    order = torch.randperm(-(-num_tokens // stretch), generator=torch.Generator().manual_seed(seed))
    return [adapter for at in order.tolist() for adapter in ids[at * stretch : (at + 1) * stretch]]


def moved_bytes(
    op: str, input_dim: int, slice_widths: Sequence[int], active: Sequence[tuple[int, int]], itemsize: int
) -> int:
    """Bytes that an operation must move at least: its inputs read once, base_output read and written once.

    Args:
        op: "shrink", "expand" or "add_lora" (whose h may stay on the chip).
        input_dim, slice_widths: the layer's dimensions.
        active: (rank, rows) of every adapter that has rows.
        itemsize: bytes of an element of every tensor.
    """
    slices, output_dim = len(slice_widths), sum(slice_widths)
    rows = sum(count for _, count in active)
    x = rows * input_dim
    lora_a = sum(slices * rank * input_dim for rank, _ in active)
    h = sum(slices * rank * count for rank, count in active)
    lora_b = sum(rank * output_dim for rank, _ in active)
    base_output = 2 * rows * output_dim
    if op == "add_lora":
        return itemsize * (x + lora_a + lora_b + base_output)
    return itemsize * (x + lora_a + h if op == "shrink" else h + lora_b + base_output)


@dataclass(frozen=True, eq=False)
class Workload:
    """One layer, one batch.

    Attributes:
        ids: [num_tokens], an adapter or None.
        ranks: [num_adapters].
        slice_widths: columns of base_output of each slice.
        segments: the same batch, gathered.
        x: [num_tokens, input_dim].
        lora_a: [num_adapters, num_slices · max_rank, input_dim], packed.
        lora_b: [num_adapters, output_dim, max_rank].
        h: [num_tokens, num_slices · max_rank], what a shrink of x gives.
        base_output: [num_tokens, output_dim].
    """

    ids: Sequence[int | None]
    ranks: Sequence[int]
    slice_widths: tuple[int, ...]
    segments: Segments
    x: torch.Tensor
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    h: torch.Tensor
    base_output: torch.Tensor

    @property
    def slice_offsets(self) -> tuple[int, ...]:
        """Where each slice of the output begins, and the last one ends."""
        return tuple(sum(self.slice_widths[:i]) for i in range(len(self.slice_widths) + 1))

    def key(self, op: str) -> rules.Key:
        """What the operation's config is looked up under."""
        rank, dtype, segments = max(self.ranks), self.x.dtype, self.segments
        if op == "shrink":
            return dispatch.shrink_key(self.x.shape[1], rank, len(self.slice_widths), dtype, segments)
        if op == "expand":
            return dispatch.expand_key(self.slice_widths, rank, dtype, segments)
        return dispatch.add_lora_key(self.x.shape[1], self.slice_widths, rank, dtype, segments)

    def run(self, op: str, config: Any = None, base_output: torch.Tensor | None = None) -> torch.Tensor:
        """Launch the operation, by the table (None) or by a config of its class.

        What it adds to is `base_output`, or the workload's own.
        """
        base = self.base_output if base_output is None else base_output
        if op == "shrink":
            return csgmv.lora_shrink(self.x, self.lora_a, self.segments, len(self.slice_widths), config=config)
        if op == "expand":
            return csgmv.lora_expand(self.h, self.lora_b, self.segments, self.slice_offsets, base, config=config)
        return csgmv.add_lora(base, self.x, self.lora_a, self.lora_b, self.segments, self.slice_offsets, config=config)

    def expected(self, op: str) -> torch.Tensor:
        """The operation's result by the float32 reference; NaN where shrink leaves h as it was."""
        if op == "shrink":
            return reference.lora_shrink(self.x, self.lora_a, self.segments, len(self.slice_widths))
        inputs = (self.lora_b, self.segments, self.slice_offsets)
        if op == "expand":
            return reference.lora_expand(self.h, *inputs, self.base_output)
        return reference.add_lora(self.base_output, self.x, self.lora_a, *inputs)

    def error(self, op: str, config: Any = None, expected: torch.Tensor | None = None) -> float:
        """Largest difference from the float32 reference, relative to the reference's largest value.

        NaN where the result holds one; infinite where a row without an adapter was touched. `expected` is the
        reference's result where it is known already.
        """
        got = self.run(op, config, self.base_output.clone())
        want = self.expected(op) if expected is None else expected
        if op == "shrink":
            valid = ~want.isnan()
            got, want = got[valid], want[valid]
        else:
            lone = [row for row, adapter in enumerate(self.ids) if adapter is None or self.ranks[adapter] == 0]
            if not torch.equal(got[lone], self.base_output[lone]):
                return math.inf
        if want.numel() == 0:
            return 0.0
        return ((got.float() - want).abs().max() / want.abs().max()).item()

    def moved_bytes(self, op: str) -> int:
        """Bytes that the operation must move at least."""
        rows = [0] * len(self.ranks)
        for adapter in self.ids:
            if adapter is not None:
                rows[adapter] += 1
        active = [(rank, count) for rank, count in zip(self.ranks, rows) if rank and count]
        return moved_bytes(op, self.x.shape[1], self.slice_widths, active, self.x.element_size())


def make(
    input_dim: int,
    slice_widths: Sequence[int],
    ids: Sequence[int | None],
    ranks: Sequence[int],
    *,
    dtype: torch.dtype,
    chunk_size: int | None,
    device: torch.device,
    seed: int = 0,
) -> Workload:
    """Random tensors of one layer for a batch: x and the adapters' contribution near 1, the base an eighth of that.

    Args:
        input_dim, slice_widths: the layer's dimensions.
        ids: adapter of each token, None for no adapter.
        ranks: rank of each adapter; the largest one is max_rank.
        dtype: of every tensor.
        chunk_size: most rows of a segment; None leaves it to Segments.
        device: where the tensors are made.
        seed: of the random numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        # drawn in float32: a CPU has no generator for every dtype, and the values are then the same for all of them
        return torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)

    slices, output_dim, max_rank = len(slice_widths), sum(slice_widths), max(ranks)
    lora_a = normal(len(ranks), slices * max_rank, input_dim, scale=input_dim**-0.5)
    lora_b = normal(len(ranks), output_dim, max_rank, scale=max_rank**-0.5)
    for adapter, rank in enumerate(ranks):
        lora_a[adapter, slices * rank :] = math.nan
        lora_b[adapter, :, rank:] = math.nan
    scalings = [0.5 + adapter % 4 / 4 for adapter in range(len(ranks))]
    segments = Segments.from_tokens(ids, ranks, scalings, chunk_size=chunk_size, device=device)
    x = normal(len(ids), input_dim)
    return Workload(
        ids=ids,
        ranks=ranks,
        slice_widths=tuple(slice_widths),
        segments=segments,
        x=x,
        lora_a=lora_a,
        lora_b=lora_b,
        h=reference.lora_shrink(x, lora_a, segments, slices).to(dtype),
        base_output=normal(len(ids), output_dim, scale=0.125),
    )
