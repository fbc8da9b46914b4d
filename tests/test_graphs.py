"""A CUDA graph captured with static Segments replays with whatever they are refilled with: the bits of eager calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from batches import DEVICE, Batch, assert_close, make_batch
from csgmv import (
    AddLoraConfig,
    ExpandConfig,
    Segments,
    ShrinkConfig,
    add_lora,
    lora_expand,
    lora_shrink,
    reference,
    rules,
)

pytestmark = pytest.mark.gpu

TOKENS, MAX_RANK, INPUT_DIM, WIDTHS, CHUNK_SIZE = 90, 16, 192, [64, 32], 16
SPLIT = ShrinkConfig(block_m=16, block_n=16, block_k=32, split_k=3, num_stages=2)
EXPAND = ExpandConfig(block_m=16, block_n=32, block_k=16, num_stages=2)
GROUPED = AddLoraConfig(ShrinkConfig(block_m=64, block_k=64), ExpandConfig(block_m=64, block_k=16, num_stages=1))
WAYS: dict[str, dict[str, Any]] = {
    "the table's": {},
    "split-K": {"config": AddLoraConfig(SPLIT, EXPAND)},
    "split-K, overlapped": {"config": AddLoraConfig(SPLIT, EXPAND, overlap=True)},
    "tiles of several segments": {"config": GROUPED},
    "batch_invariant": {"batch_invariant": True},
}
# Ids of each row and ranks of each slot; captured with the first, replayed with more segments, fewer, one, of one row
# too, of fewer rows than x has, and none; then with the first again.
REFILLS: dict[str, tuple[list[int], list[int]]] = {
    "captured": ([0, 1] * 20 + [-1] * 50, [16, 5, 12]),
    "more": ([0, 1, 2] * 30, [16, 16, 3]),
    "fewer": ([2] * 33 + [-1] * 57, [1, 0, 16]),
    "one": ([-1] * 70 + [1] * 16 + [-1] * 4, [16, 9, 4]),
    "one row": ([2], [16, 9, 7]),
    "a slot of rank 0": ([0, 1, 2] * 30, [8, 0, 16]),
    "fewer slots": ([1, 0] * 45, [16, 2]),
    "none": ([-1] * TOKENS, [16, 5, 12]),
    "no rows": ([], []),
    "captured, again": ([0, 1] * 20 + [-1] * 50, [16, 5, 12]),
}


@contextlib.contextmanager
def unsynchronised() -> Iterator[None]:
    """Whatever would wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Static:
    """Tensors that stay where they are, and an operation on them; `output` is what it changes."""

    def __init__(self, op: str, how: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
        self.op, self.how = op, dict(how)
        if isinstance(how.get("config"), AddLoraConfig) and op != "add_lora":
            self.how["config"] = getattr(how["config"], op)
        self.tensors = make_batch([MAX_RANK] * 3, MAX_RANK, INPUT_DIM, WIDTHS, TOKENS, dtype=dtype)
        self.segments = Segments.allocate(TOKENS, 3, chunk_size=CHUNK_SIZE, device=DEVICE)
        self.segments.update_from_tokens([0] * TOKENS, [MAX_RANK], [1.0])
        self.h = torch.empty(TOKENS, len(WIDTHS) * MAX_RANK, dtype=dtype, device=DEVICE)
        self.output = self.h if op == "shrink" else self.tensors.base_output
        self.before = torch.randn(self.output.shape, generator=torch.Generator().manual_seed(9)).to(self.output)

    def take(self, other: Batch) -> None:
        """Other adapters and other inputs in the same place."""
        mine = self.tensors
        for name in ("x", "lora_a", "lora_b"):
            getattr(mine, name).copy_(getattr(other, name))
        if self.op != "shrink":  # whose output h is
            self.h.copy_(torch.randn(self.h.shape, generator=torch.Generator().manual_seed(8)))

    def call(self) -> None:
        """The operation, as it is."""
        mine, offsets = self.tensors, self.tensors.slice_offsets
        if self.op == "shrink":
            lora_shrink(mine.x, mine.lora_a, self.segments, len(WIDTHS), out=self.h, **self.how)
        elif self.op == "expand":
            lora_expand(self.h, mine.lora_b, self.segments, offsets, mine.base_output, **self.how)
        else:
            add_lora(mine.base_output, mine.x, mine.lora_a, mine.lora_b, self.segments, offsets, **self.how)

    def result(self, run: Callable[[], object]) -> torch.Tensor:
        """What is in `output` after a run."""
        self.output.copy_(self.before)
        run()
        return self.output.clone()

    def expected(self) -> torch.Tensor:
        """The reference's result, float32."""
        mine, offsets = self.tensors, self.tensors.slice_offsets
        if self.op == "shrink":
            h = reference.lora_shrink(mine.x, mine.lora_a, self.segments, len(WIDTHS))
            return torch.where(h.isnan(), self.before.float(), h)
        if self.op == "expand":
            return reference.lora_expand(self.h, mine.lora_b, self.segments, offsets, self.before)
        return reference.add_lora(self.before, mine.x, mine.lora_a, mine.lora_b, self.segments, offsets)


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A call as a graph; it is made once before, so that nothing is compiled while capturing."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def weights(ranks: Sequence[int], dtype: torch.dtype, seed: int) -> Batch:
    """Weights with NaN beyond each rank, and an x."""
    ranks = [*ranks, *[0] * (3 - len(ranks))]
    return make_batch(
        ranks if any(ranks) else [MAX_RANK] * 3, MAX_RANK, INPUT_DIM, WIDTHS, TOKENS, dtype=dtype, seed=seed
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("op", rules.OPS)
def test_replays_have_the_bits_of_eager_calls(op: str, way: str) -> None:
    """With other segments, other ranks and scalings, other weights: as eager, which is as the reference is.

    Rows without an adapter, and columns of h past an adapter's rank, keep what they had.
    """
    dtype = torch.bfloat16 if way == "the table's" else torch.float16
    static = Static(op, WAYS[way], dtype)
    graph = None
    for seed, (name, (ids, ranks)) in enumerate(REFILLS.items()):
        static.take(weights(ranks, dtype, seed))
        scalings = [0.5 - seed, 2.0, -1.25][: len(ranks)]
        with unsynchronised():
            static.segments.update_from_tokens(ids, ranks, scalings)
        if graph is None:
            graph = captured(static.call)
        eager, replayed = static.result(static.call), static.result(graph.replay)
        assert torch.equal(replayed.view(torch.int16), eager.view(torch.int16)), name
        assert_close(replayed, static.expected(), dtype)
        assert torch.equal(replayed, static.before) == (name in ("none", "no rows")), name


@pytest.mark.parametrize("op", rules.OPS)
def test_one_graph_for_all_kinds_of_refills(op: str) -> None:
    """By sequences, by tokens, with all of it on the host or on the GPU: none waits for the GPU, nor does a replay."""
    static = Static(op, {"config": AddLoraConfig(SPLIT, EXPAND)})
    static.take(weights([16, 16, 16], torch.float16, 1))
    ids, ranks, scalings = [2] * 40 + [0] * 17 + [-1] * 3 + [1] * 30, [16, 16, 16], [1.0, -0.5, 3.0]
    on_gpu = [torch.tensor(values, device=DEVICE) for values in (ids, ranks, scalings)]
    kinds: list[Callable[[], None]] = [
        lambda: static.segments.update_from_tokens(ids, ranks, scalings),
        lambda: static.segments.update_from_sequences([40, 17, 3, 30], [2, 0, None, 1], ranks, scalings),
        lambda: static.segments.update_from_tokens(on_gpu[0], ranks, scalings),
        lambda: static.segments.update_from_tokens(*on_gpu),
    ]
    for refill in kinds:  # the first use of torch's own kernels may wait
        refill()
    graph = captured(static.call)
    static.segments.update_from_tokens([], [], [])
    results = []
    with unsynchronised():
        for refill in kinds:
            refill()
            results.append(static.result(graph.replay))
            static.segments.update_from_tokens([], [], [])
    static.segments.update_from_tokens(ids, ranks, scalings)
    eager = static.result(static.call)
    assert not torch.equal(eager, static.before)
    assert all(torch.equal(result, eager) for result in results)


def test_graphs_at_once() -> None:
    """Two graphs of all operations, replayed on two streams at the same time: each has its h and stage for itself."""
    statics = [Static("add_lora", {}) for _ in range(2)]

    def whole(static: Static) -> None:
        mine, segments, offsets = static.tensors, static.segments, static.tensors.slice_offsets
        h = lora_shrink(mine.x, mine.lora_a, segments, len(WIDTHS), config=SPLIT)
        lora_expand(h, mine.lora_b, segments, offsets, mine.base_output, config=EXPAND)
        config = AddLoraConfig(SPLIT, EXPAND)
        add_lora(mine.base_output, mine.x, mine.lora_a, mine.lora_b, segments, offsets, config=config)

    ready = []
    for seed, static in enumerate(statics):
        static.take(weights([16, 4, 7], torch.float16, seed))
        static.segments.update_from_tokens([0, 1, 2] * 30, [16, 4, 7], [1.0, -0.5, 2.0])
        call = functools.partial(whole, static)
        ready.append((static, captured(call).replay, static.result(call), torch.cuda.Stream()))
    results = []
    torch.cuda.synchronize()
    for *_, stream in ready:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
    for _ in range(50):
        for static, replay, wanted, stream in ready:
            with torch.cuda.stream(stream):
                results.append((static.result(replay), wanted))
    torch.cuda.synchronize()
    assert all(torch.equal(got, wanted) for got, wanted in results)


def refills() -> list[tuple[list[int], list[int], list[float]]]:
    """Ids, ranks and scalings, no two with the same result."""
    return [
        ([slot] * (TOKENS - step), [16, 16, 16], [1.0 + step, 2.0, -float(step)])
        for step, slot in enumerate([0, 1, 2] * 5)
    ]


@pytest.mark.parametrize("replay", [False, True], ids=["eager", "replayed"])
def test_refilled_again_before_the_first_copy_is_done(replay: bool) -> None:
    """With the stream held up: refill, launch, refill at once, launch; each launch sees the refill before it."""
    static = Static("add_lora", {"config": AddLoraConfig(SPLIT, EXPAND)})
    static.take(weights([16, 16, 16], torch.float16, 2))
    run: Callable[[], object] = captured(static.call).replay if replay else static.call
    wanted, outputs = [], []
    for batch in refills():
        static.segments.update_from_tokens(*batch)
        wanted.append(static.result(static.call))
    assert len({tuple(each.flatten().tolist()) for each in wanted}) == len(wanted)
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    with unsynchronised():
        for batch in refills():
            static.segments.update_from_tokens(*batch)
            outputs.append(static.result(run))
    assert not torch.cuda.current_stream().query(), "the copies were done before the next refill: nothing is shown"
    for got, want in zip(outputs, wanted):
        assert torch.equal(got, want)


def test_refilled_on_another_stream() -> None:
    """Copies on one stream, kernels on another, ordered by events and held up: each launch sees its own refill."""
    static = Static("add_lora", {"config": AddLoraConfig(SPLIT, EXPAND)})
    static.take(weights([16, 16, 16], torch.float16, 3))
    copies, kernels = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()

    def run() -> list[torch.Tensor]:
        outputs = []
        for batch in refills():
            copies.wait_stream(kernels)  # where the launch before may still read
            with torch.cuda.stream(copies):
                static.segments.update_from_tokens(*batch)
            kernels.wait_stream(copies)
            with torch.cuda.stream(kernels):
                outputs.append(static.result(static.call))
        return outputs

    wanted = []
    for batch in refills():
        static.segments.update_from_tokens(*batch)
        wanted.append(static.result(static.call))
    torch.cuda.synchronize()
    run()  # memory of these streams' own is there from now on
    torch.cuda.synchronize()
    with torch.cuda.stream(kernels):
        torch.cuda._sleep(500_000_000)
    with unsynchronised():
        outputs = run()
    assert not copies.query(), "the copies were done before the next refill: nothing is shown"
    torch.cuda.synchronize()
    for got, want in zip(outputs, wanted):
        assert torch.equal(got, want)
