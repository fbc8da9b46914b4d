"""What to tune: which keys, and the batches that each is timed on."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from csgmv import dispatch, fallback, rules, workload
from csgmv.models import LayerShape
from csgmv.segments import Segments

TOKENS = (1, 8, 32, 128, 512, 2048, 8192, 30720)
ADAPTERS = (1, 8, 32)  # in a batch; all its tokens have one of their own where there are fewer
_USUAL_ADAPTERS = 8  # of several batches with as many tokens, the one nearest to this stands for them
_RAGGED_FROM = 32  # tokens an adapter
_APART = 4  # times the tokens from which a key's fullest batch is another case than its sparsest
_PREFILL = 16384  # tokens from which a batch is one of prompts: stretches of _PROMPT rows have one adapter
_PROMPT = 512
_SHORT = 32  # tokens below which it is not: such a launch waits for latencies alone


class Batch(NamedTuple):
    """Rows in random order, but that prompts' rows are neighbours in the longest batches. Few rows an adapter are dealt
    evenly, as decoding requests are; many follow Zipf's law.
    """

    tokens: int
    adapters: int
    num_segments: int


class Task(NamedTuple):
    """A key and the batches that look it up.

    Attributes:
        key: what the config is stored under.
        batches: first the fullest and the sparsest one, where these are far apart.
        tuned_on: a config's time is the geometric mean over so many of the batches.
    """

    key: rules.Key
    batches: tuple[Batch, ...]
    tuned_on: int = 1

    @property
    def deciding(self) -> tuple[Batch, ...]:
        """The batches that configs are compared on."""
        return self.batches[: self.tuned_on]


@dataclass(frozen=True)
class Plan:
    """What one run of the tuner is asked for.

    Attributes:
        layers: the shapes to tune.
        max_rank: rank of every adapter timed.
        chunk_sizes: of the segments; each has keys of its own.
        tokens: batch sizes.
        adapters: numbers of adapters in a batch, each with each number of tokens; empty for 1, 8 and 32, or as many as
            there are tokens. More adapters than tokens are left out. Where several numbers are asked for, a batch of
            one adapter and several tokens has no key made for it alone: it is timed with the key that would serve it.
        dtype: of every tensor.
        ops: any of "shrink", "expand", "add_lora".
    """

    layers: Sequence[LayerShape]
    max_rank: int
    chunk_sizes: Sequence[int] = rules.CHUNK_SIZES
    tokens: Sequence[int] = TOKENS
    adapters: Sequence[int] = ()
    dtype: torch.dtype = torch.bfloat16
    ops: Sequence[str] = rules.OPS

    def tasks(self) -> list[Task]:
        """One task a key, each part of an `add_lora` before it.

        Raises:
            ValueError: nothing to tune, or a number that no launch could have.
        """
        found: dict[rules.Key, list[Batch]] = {}
        guests: list[tuple[rules.Key, Batch]] = []
        for key, batch in self._every():
            if fault := next(rules.key_faults(key), None):
                raise ValueError(fault)
            if self._opens(batch):
                found.setdefault(key, []).append(batch)
            else:
                guests.append((key, batch))
        if not found:
            raise ValueError("plan: expected at least one layer, chunk size, number of tokens and op, got none")
        own = {key: list(batches) for key, batches in found.items()}
        strangers: dict[rules.Key, list[Batch]] = {}
        shapes: dict[rules.Key, dict[rules.Key, None]] = defaultdict(dict)
        for key in found:
            shapes[key._replace(segment_bucket=1)][key] = None
        for key, batch in guests:
            if key in own:
                own[key].append(batch)
            elif server := next(fallback.lenders(key, fallback.by_layer(shapes[key._replace(segment_bucket=1)])), None):
                strangers.setdefault(server, []).append(batch)
        return [_task(key, own[key], strangers.get(key, [])) for key in found]

    def _opens(self, batch: Batch) -> bool:
        return _several(batch) or set(self.adapters) == {1}

    def _every(self) -> Iterator[tuple[rules.Key, Batch]]:
        for chunk_size in self.chunk_sizes:
            batches = [(t, a, _segments(t, a, chunk_size)) for t in self.tokens for a in self._adapters(t)]
            for layer in self.layers:
                for tokens, adapters, segments in batches:
                    for op in rules.OPS:
                        if op in self.ops:
                            yield self._key(op, layer, segments), Batch(tokens, adapters, segments.num_segments)

    def _adapters(self, tokens: int) -> list[int]:
        if not self.adapters:
            return _usual_adapters(tokens)
        return [count for count in self.adapters if count <= tokens]

    def _key(self, op: str, layer: LayerShape, segments: Segments) -> rules.Key:
        widths = layer.slice_widths
        if op == "shrink":
            return dispatch.shrink_key(layer.input_dim, self.max_rank, len(widths), self.dtype, segments)
        if op == "expand":
            return dispatch.expand_key(widths, self.max_rank, self.dtype, segments)
        return dispatch.add_lora_key(layer.input_dim, widths, self.max_rank, self.dtype, segments)


def _usual_adapters(tokens: int) -> list[int]:
    return sorted({min(count, tokens) for count in ADAPTERS})


@dataclass(frozen=True)
class Keys:
    """What one run of the tuner is asked for, key by key: of any dimensions, ranks and dtypes.

    Attributes:
        keys: those to tune, as `csgmv.misses.read` finds them.
        known: what some of them are timed on; the others on the batches of a plan that asks for the usual ones.
    """

    keys: Sequence[rules.Key]
    known: Mapping[rules.Key, Task] = field(default_factory=dict)

    def tasks(self) -> list[Task]:
        """One task a key, each `add_lora` after the others.

        Raises:
            ValueError: nothing to tune, or a key that no launch could have.
        """
        if not self.keys:
            raise ValueError("keys: expected at least one, got none")
        for key in self.keys:
            if fault := rules.key_fault(key):
                raise ValueError(fault)
        ordered = sorted(dict.fromkeys(self.keys), key=lambda key: key.op == "add_lora")
        return [
            self.known.get(key) or _task(key, _looking_up(key.chunk_size, key.segment_bucket), ()) for key in ordered
        ]


@functools.cache
def _looking_up(chunk_size: int, bucket: int) -> list[Batch]:
    """Batches whose launches look up keys of this chunk size and bucket.

    Those of a plan that asks for the usual ones; where none of these does so with several adapters, batches made for
    it: one of segments as full as they get, and where that is few enough adapters one of a row a segment.
    """
    usual = [(tokens, adapters) for tokens in TOKENS for adapters in _usual_adapters(tokens)]
    found = list(_in_bucket(usual, chunk_size, bucket))
    if any(_several(batch) for batch in found):
        return found
    full = [
        (bucket * chunk_size * quarters // 4, adapters)
        for adapters in dict.fromkeys((min(_USUAL_ADAPTERS, bucket), 1))
        for quarters in (4, 3, 2)
    ]
    sparse = [(bucket, bucket)] if bucket <= max(ADAPTERS) else []
    made = [next(_in_bucket(full, chunk_size, bucket)), *_in_bucket(sparse, chunk_size, bucket)]
    return [*dict.fromkeys(found + made)]


def _in_bucket(sizes: Iterable[tuple[int, int]], chunk_size: int, bucket: int) -> Iterator[Batch]:
    """Of batches of so many tokens and adapters those that have such a bucket's number of segments."""
    for tokens, adapters in sizes:
        if adapters <= tokens:
            batch = Batch(tokens, adapters, _segments(tokens, adapters, chunk_size).num_segments)
            if rules.segment_bucket(batch.num_segments) == bucket:
                yield batch


def _several(batch: Batch) -> bool:
    """Of several adapters, or of the one that its only token has."""
    return batch.adapters > 1 or batch.tokens == 1


def _task(key: rules.Key, own: Sequence[Batch], strangers: Sequence[Batch]) -> Task:
    """The key's batches, those that decide first."""
    fullest = max(own, key=lambda batch: (batch.tokens, -abs(math.log2(batch.adapters / _USUAL_ADAPTERS)), batch))
    sparsest = min(own, key=lambda batch: (batch.tokens / batch.num_segments, -batch.tokens, batch))
    if fullest.tokens < _SHORT:
        deciding = [sparsest]
    else:
        deciding = [fullest, sparsest] if fullest.tokens >= _APART * sparsest.tokens else [fullest]
    others = sorted({*own, *strangers} - {*deciding})
    return Task(key, (*deciding, *others), len(deciding))


@functools.lru_cache(maxsize=128)
def adapter_ids(tokens: int, adapters: int, seed: int = 0) -> tuple[int, ...]:
    """The adapter of each token of a Batch: rows have to be gathered."""
    if tokens >= _RAGGED_FROM * adapters and adapters > 1:
        stretch = _PROMPT if tokens >= _PREFILL else 1
        return tuple(workload.adapter_ids("zipf", tokens, adapters, seed, stretch))
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    return tuple((order % adapters).tolist())


def _segments(tokens: int, adapters: int, chunk_size: int) -> Segments:
    """The segments of a batch, whose number does not depend on the order of its rows."""
    if tokens < 1 or adapters < 1:
        raise ValueError(f"tokens, adapters: expected positive numbers, got {tokens} and {adapters}")
    rows = Counter(adapter_ids(tokens, adapters))
    return Segments.from_sequences(
        [rows[adapter] for adapter in range(adapters)],
        list(range(adapters)),
        [1] * adapters,
        [1.0] * adapters,
        chunk_size=chunk_size,
        device=torch.device("cpu"),
    )


def parts(key: rules.Key) -> tuple[rules.Key, rules.Key]:
    """The keys of an `add_lora` key's two kernels when launched by themselves."""
    return key._replace(op="shrink", slice_widths=()), rules.expand_part(key)


def family(key: rules.Key) -> rules.Key:
    """What keys have in common whose configs mostly share binaries: operation, slices, rank and dtype.

    The rest are integers that a kernel takes at run time.
    """
    return key._replace(input_dim=0, slice_widths=(), chunk_size=1, segment_bucket=1)
