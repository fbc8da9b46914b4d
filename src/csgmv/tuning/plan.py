"""What to tune: which keys, and the batch that each is timed on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from csgmv import dispatch, rules
from csgmv.models import LayerShape
from csgmv.segments import Segments

CHUNK_SIZES = (16, 32, 64, 128)
TOKENS = (1, 8, 32, 128, 512, 2048, 8192, 30720)
ADAPTERS = 8  # in a batch, unless it has fewer tokens


class Task(NamedTuple):
    """A key and the batch that stands for it: `tokens` rows in random order, dealt evenly to `adapters` adapters."""

    key: rules.Key
    tokens: int
    adapters: int
    num_segments: int


@dataclass(frozen=True)
class Plan:
    """What one run of the tuner is asked for.

    Attributes:
        layers: the shapes to tune.
        max_rank: rank of every adapter timed.
        chunk_sizes: of the segments; each has keys of its own.
        tokens: batch sizes. Of two that share a key (their numbers of segments fall into one bucket) the larger one
            is timed: a config chosen on full segments serves sparse ones better than the other way round.
        adapters: numbers of adapters in a batch; empty for the smaller of 8 and the number of tokens. More adapters
            than tokens are left out.
        dtype: of every tensor.
        ops: any of "shrink", "expand", "add_lora".
    """

    layers: Sequence[LayerShape]
    max_rank: int
    chunk_sizes: Sequence[int] = CHUNK_SIZES
    tokens: Sequence[int] = TOKENS
    adapters: Sequence[int] = ()
    dtype: torch.dtype = torch.bfloat16
    ops: Sequence[str] = rules.OPS

    def tasks(self) -> list[Task]:
        """One task a key, each part of an `add_lora` before it.

        Raises:
            ValueError: nothing to tune, or a number that no launch could have.
        """
        found: dict[rules.Key, Task] = {}
        for task in self._every():
            if fault := next(rules.key_faults(task.key), None):
                raise ValueError(fault)
            known = found.get(task.key)
            if known is None or (task.tokens, task.adapters) > (known.tokens, known.adapters):
                found[task.key] = task
        if not found:
            raise ValueError("plan: expected at least one layer, chunk size, number of tokens and op, got none")
        return list(found.values())

    def _every(self) -> Iterator[Task]:
        for chunk_size in self.chunk_sizes:
            batches = [(t, a, _segments(t, a, chunk_size)) for t in self.tokens for a in self._adapters(t)]
            for layer in self.layers:
                for tokens, adapters, segments in batches:
                    for op in rules.OPS:
                        if op in self.ops:
                            key = self._key(op, layer, segments)
                            yield Task(key, tokens, adapters, segments.num_segments)

    def _adapters(self, tokens: int) -> list[int]:
        if not self.adapters:
            return [min(ADAPTERS, tokens)]
        return [count for count in self.adapters if count <= tokens]

    def _key(self, op: str, layer: LayerShape, segments: Segments) -> rules.Key:
        widths = layer.slice_widths
        if op == "shrink":
            return dispatch.shrink_key(layer.input_dim, self.max_rank, len(widths), self.dtype, segments)
        if op == "expand":
            return dispatch.expand_key(widths, self.max_rank, self.dtype, segments)
        return dispatch.add_lora_key(layer.input_dim, widths, self.max_rank, self.dtype, segments)


def adapter_ids(tokens: int, adapters: int, seed: int = 0) -> list[int]:
    """The adapter of each token: as even as can be, in random order, so that rows have to be gathered."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    ids: list[int] = (order % adapters).tolist()
    return ids


def _segments(tokens: int, adapters: int, chunk_size: int) -> Segments:
    if tokens < 1 or adapters < 1:
        raise ValueError(f"tokens, adapters: expected positive numbers, got {tokens} and {adapters}")
    ids = torch.tensor(adapter_ids(tokens, adapters))
    return Segments.from_tokens(
        ids, [1] * adapters, [1.0] * adapters, chunk_size=chunk_size, device=torch.device("cpu")
    )


def parts(key: rules.Key) -> tuple[rules.Key, rules.Key]:
    """The keys of an `add_lora` key's two kernels when launched by themselves."""
    return key._replace(op="shrink", slice_widths=()), key._replace(op="expand", input_dim=0)
