"""Compiled modules give the bits of eager ones, in one graph that serves batches of any size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from batches import DEVICE, DTYPES
from csgmv import AddLoraConfig, ExpandConfig, Segments, ShrinkConfig, add_lora, lora_expand, lora_shrink

DTYPE = DTYPES[-1] if DEVICE == "cpu" else torch.bfloat16
RANKS, MAX_RANK, INPUT_DIM, OFFSETS = [16, 7, 12], 16, 64, (0, 16, 48)
SPLIT = ShrinkConfig(block_m=16, block_n=16, block_k=32, split_k=2)
WHOLE = ExpandConfig(block_m=16, block_n=32, block_k=16, num_stages=2, maxnreg=128)
# More tokens, fewer, of fewer adapters, of one, of none; but for the last no single row, for which torch has a graph.
OPTIONS = ({}, {"tuned": True}, {"apart": True}, {"padded": True, "batch_invariant": True})
BATCHES = ([0, 1, 2] * 5, [0, -1] * 11, [2] * 40, [0, 1, 2, -1] * 9, [1] * 7, [-1] * 5, [0, -1, -1], [0, 1, 2] * 30)


@pytest.fixture(autouse=True)
def afresh() -> None:
    """No graphs from another test."""
    torch._dynamo.reset()


def segments_of(ids: list[int], chunk_size: int = 16) -> Segments:
    return Segments.from_tokens(ids, RANKS, [1.0, 0.5, -2.0], chunk_size=chunk_size, device=DEVICE)


def cut(tensor: torch.Tensor, at: int) -> list[torch.Tensor]:
    """A tensor's two slices along its second dimension, each in memory of its own."""
    return [tensor[:, :at].contiguous(), tensor[:, at:].contiguous()]


class Layers(torch.nn.Module):
    """All three operations, among others; rows that no adapter touches are given, not left uninitialised."""

    def __init__(self, *, tuned: bool = False, apart: bool = False, **how: Any) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        lora_a = torch.randn(len(RANKS), 2 * MAX_RANK, INPUT_DIM, generator=draw).to(DEVICE, DTYPE)
        lora_b = torch.randn(len(RANKS), OFFSETS[-1], MAX_RANK, generator=draw).to(DEVICE, DTYPE)
        self.lora_a, self.lora_b = torch.nn.Parameter(lora_a, False), torch.nn.Parameter(lora_b, False)
        self.configs = (SPLIT, WHOLE, AddLoraConfig(SPLIT, WHOLE)) if tuned else (None, None, None)
        self.how, self.apart = how, apart

    def forward(
        self, x: torch.Tensor, base_output: torch.Tensor, out: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, ...]:
        """All results."""
        shrink, expand, both = self.configs
        a, b = self.lora_a, self.lora_b
        if self.apart:
            a, b = tuple(cut(a, MAX_RANK)), tuple(cut(b, OFFSETS[1]))
        h = lora_shrink(x * 2, a, segments, 2, config=shrink, **self.how)
        alone = base_output.clone()
        lora_expand(h, b, segments, OFFSETS, self.sliced(alone), config=expand, **self.how)
        given = lora_shrink(x, a, segments, 2, out=out, config=shrink, **self.how)
        add_lora(self.sliced(base_output), x, a, b, segments, OFFSETS, config=both, **self.how)
        return alone + 1, given, base_output, base_output * 2

    def sliced(self, output: torch.Tensor) -> Any:
        """The output, or parts of it, which may be strided."""
        return (output[:, : OFFSETS[1]], output[:, OFFSETS[1] :]) if self.apart else output


def agree(module: Layers, compiled: Any, tokens: int, segments: Segments) -> None:
    """Compiled and eager give the same bits, and the tensors that were given are the ones returned."""
    draw = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, INPUT_DIM, generator=draw).to(DEVICE, DTYPE)
    base = torch.randn(tokens, OFFSETS[-1], generator=draw).to(DEVICE, DTYPE)
    mine = base.clone(), torch.zeros(tokens, 2 * MAX_RANK, device=DEVICE, dtype=DTYPE)
    theirs = base.clone(), torch.zeros_like(mine[1])
    with torch.no_grad():
        expected, got = module(x, *theirs, segments), compiled(x, *mine, segments)
    assert got[2] is mine[0]
    assert got[1] is mine[1]
    for one, other in zip((*got, *mine), (*expected, *theirs)):
        assert torch.equal(one, other)
    if max(segments.least_tokens, tokens) and segments.num_segments:
        assert not torch.equal(base, mine[0])


def compare(backend: Any, batches: Sequence[list[int]], **options: Any) -> None:
    module = Layers(**options)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for ids in batches:
        agree(module, compiled, len(ids), segments_of(ids))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_bits_as_eager(backend: str, options: dict[str, Any]) -> None:
    """In one graph, whatever the arguments; what is changed in place is what is returned."""
    compare(backend, BATCHES[:3], **options)


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_bits_as_eager_by_inductor(options: dict[str, Any]) -> None:
    """As above, as generated code; once there is a graph for any size and one for a single row, nothing compiles."""
    module = Layers(**options)
    compiled = torch.compile(module, backend="inductor", fullgraph=True)
    for ids in (*BATCHES[:2], [2]):
        agree(module, compiled, len(ids), segments_of(ids))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for ids in (*BATCHES, [2], [-1]):
            agree(module, compiled, len(ids), segments_of(ids))


@pytest.mark.gpu
def test_refilled_segments_by_inductor() -> None:
    """Of a batch in fixed buffers generated code sees nothing but these: one graph, the bits of eager calls."""
    module = Layers(tuned=True)
    compiled = torch.compile(module, backend="inductor", fullgraph=True)
    static = Segments.allocate(12, len(RANKS), chunk_size=16, device=DEVICE)
    static.update_from_tokens([1, 2] * 3, RANKS, [1.0, 0.5, 3.0])
    agree(module, compiled, 12, static)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for ids in ([0, 1, 2] * 4, [2] * 11, [0], [1, -1]):
            static.update_from_tokens(ids, RANKS, [1.0, 0.5, 3.0])
            agree(module, compiled, 12, static)


def test_sizes_of_a_batch_need_no_graphs_of_their_own() -> None:
    """The first graph is for its batch's sizes, the second for all; a single row is torch's own exception."""
    counter = CompileCounter()
    module = Layers()
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    counts = []
    for ids in (*BATCHES, [2], [-1]):
        agree(module, compiled, len(ids), segments_of(ids))
        counts.append(counter.frame_count)
    assert counts == [1, *[2] * (len(BATCHES) - 1), 3, 3]
    for chunk_size in (32, 64, 16, 128):  # the first that differs makes it a variable too
        agree(module, compiled, 70, segments_of([0] * 70, chunk_size))
    assert counter.frame_count == 4


def test_dynamic_from_the_start() -> None:
    """With dynamic=True one graph serves all, if no two sizes of the first batch happen to be equal (duck sizing)."""
    counter = CompileCounter()
    module = Layers()
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for ids in (BATCHES[3], *BATCHES):
        agree(module, compiled, len(ids), segments_of(ids, 16 if len(ids) % 2 else 32))
    assert counter.frame_count == 1


def test_segments_in_fixed_buffers() -> None:
    """Refilling them is nothing that a graph sees."""
    counter = CompileCounter()
    module = Layers()
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    static = Segments.allocate(12, len(RANKS), chunk_size=16, device=DEVICE)
    for ids in ([0, 1, 2] * 4, [2] * 11, [0], [1, -1]):
        static.update_from_tokens(ids, RANKS, [1.0, 0.5, 3.0])
        agree(module, compiled, 12, static)
    assert counter.frame_count == 1


def test_a_batch_is_cut_from_its_buffer_once() -> None:
    """For all layers and calls; another batch of the same sizes is another one."""
    from csgmv import operators

    module = Layers()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    before = operators._of_buffer.cache_info().misses
    for number, adapter in enumerate((0, 1, 2), start=1):
        batch = segments_of([adapter] * 9)
        for _ in range(2):
            agree(module, compiled, 9, batch)
        assert operators._of_buffer.cache_info().misses == before + number


def test_segments_of_the_users_own() -> None:
    """Tensors that are no parts of one buffer, as an integration has them."""
    module = Layers()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for ids in BATCHES[:3]:
        made = segments_of(ids)
        tensors = [tensor.clone() for tensor in made.tensors]
        agree(module, compiled, len(ids), Segments(*tensors, 16, made.num_segments, len(ids)))


def test_errors_come_from_the_checks() -> None:
    """At run time, as in an eager call."""
    module = Layers()
    x = torch.zeros(3, INPUT_DIM, device=DEVICE, dtype=DTYPE)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="segments: expected those of at most 3 tokens, got 5"):
        compiled(x, x[:, :48].contiguous(), x[:, :32].contiguous(), segments_of([0] * 5))


@pytest.mark.parametrize(
    ("tuned", "refillable", "apart"), [(False, False, False), (True, True, False), (True, False, True)]
)
@pytest.mark.parametrize("name", ["lora_shrink", "lora_shrink_out", "lora_expand", "add_lora"])
def test_operators_are_what_they_declare(name: str, tuned: bool, refillable: bool, apart: bool) -> None:
    """By torch's own checks: schema, mutation, fakes, and being traced with symbolic sizes."""
    from csgmv import operators

    x = torch.randn(24, INPUT_DIM).to(DEVICE, DTYPE)
    a = torch.randn(2, 2 * MAX_RANK, INPUT_DIM).to(DEVICE, DTYPE)
    b = torch.randn(2, OFFSETS[-1], MAX_RANK).to(DEVICE, DTYPE)
    base, h = torch.randn(24, OFFSETS[-1]).to(DEVICE, DTYPE), torch.randn(24, 2 * MAX_RANK).to(DEVICE, DTYPE)
    a, b, base = (cut(a, MAX_RANK), cut(b, OFFSETS[1]), cut(base, OFFSETS[1])) if apart else ([a], [b], [base])
    h = cut(h, MAX_RANK) if apart else [h]
    # Every row has an adapter of full rank: what is left uninitialised cannot be compared.
    segments = Segments.allocate(24, 2, chunk_size=16, device=DEVICE)
    segments.update_from_tokens([0, 1, 1] * 8, [MAX_RANK] * 2, [1.0, 0.5])
    if not refillable:
        segments = Segments.from_tokens([0, 1, 1] * 8, [MAX_RANK] * 2, [1.0, 0.5], chunk_size=16, device=DEVICE)
    own, config = {
        "lora_shrink": ((x, a, 2), SPLIT),
        "lora_shrink_out": ((x, a, 2, h), SPLIT),
        "lora_expand": ((h, b, [*OFFSETS], base), WHOLE),
        "add_lora": ((base, x, a, b, [*OFFSETS]), AddLoraConfig(SPLIT, WHOLE)),
    }[name]
    given = *own, *operators._handed_over(segments, False, config if tuned else None, False)
    torch.library.opcheck(getattr(torch.ops.csgmv, name).default, given)


@pytest.mark.parametrize("config", [SPLIT, WHOLE, AddLoraConfig(SPLIT, WHOLE, overlap=True)])
def test_configs_come_through(config: Any) -> None:
    """As rows of integers, None and booleans included."""
    from csgmv import operators

    *_, row, _ = operators._handed_over(segments_of([0]), False, config, False)
    assert all(type(value) is int for value in row)
    again = operators._config(config.op, tuple(row))
    assert again == config
    assert repr(again) == repr(config)  # True equals 1


def test_batches_come_through() -> None:
    """All that the library makes Segments of, but for what fills the buffer up."""
    from csgmv import operators

    for made in (segments_of([]), segments_of([-1]), *map(segments_of, BATCHES)):
        handed = operators._handed_over(made, False, None, False)
        assert len(handed[0]) == 2
        again, _ = operators._taken_over("shrink", handed)
        for name, one, other in zip(("permutation", *"abcd"), again.tensors, made.tensors):
            assert one.dtype == other.dtype
            assert torch.equal(one[: len(other)] if name == "permutation" else one, other)
            assert len(one) - len(other) in range(4 if name == "permutation" else 1)
        for name in ("chunk_size", "num_segments", "num_tokens", "least_tokens", "largest_rank"):
            assert getattr(again, name) == getattr(made, name)


def test_an_eager_call_registers_nothing() -> None:
    """Neither the import nor a call comes by the operators."""
    code = (
        "import sys, torch, csgmv\n"
        "from csgmv import Segments, add_lora\n"
        f"d = {DEVICE!r}; like = dict(device=d, dtype=torch.float16)\n"
        "s = Segments.from_sequences([3], [0], [16], [1.0], device=d)\n"
        "add_lora(torch.zeros(3, 32, **like), torch.zeros(3, 32, **like), torch.zeros(1, 16, 32, **like),\n"
        "         torch.zeros(1, 32, 16, **like), s, (0, 32))\n"
        "assert 'csgmv.operators' not in sys.modules\n"
    )
    import csgmv

    path = [str(csgmv.__path__[0]).removesuffix("csgmv"), *sys.path]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], check=True)
