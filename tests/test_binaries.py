"""After a warm-up no call that it covers compiles; and what it does not cover it says."""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

import csgmv
from batches import assert_close, make_batch
from csgmv import (
    Segments,
    add_lora,
    binaries,
    chunk_sizes,
    expand,
    launch,
    lora_expand,
    lora_shrink,
    reference,
    rules,
    shrink,
    warmup_command,
)
from csgmv.integrations.adapter_slots import AdapterSlots
from csgmv.integrations.peft_config import Size
from csgmv.integrations.row_batches import RowBatch
from csgmv.integrations.wrapped_linear import Serving, SharedInput
from csgmv.models import LayerShape
from fake_gpu import FakeGPU, fake_gpu

CPU = torch.device("cpu")
QKV, DOWN, ODD = LayerShape("qkv", 64, (32, 16, 16)), LayerShape("down", 96, (64,)), LayerShape("odd", 24, (7, 33))
MAX_TOKENS, MAX_LORAS, MAX_RANK = 2300, 60, 16
WARM = {"max_rank": MAX_RANK, "max_tokens": MAX_TOKENS, "max_loras": MAX_LORAS}


class Kind(NamedTuple):
    """What a server decides once."""

    dtype: torch.dtype = torch.float16
    chunk_sizes: tuple[int, ...] | None = None
    padded: bool = False
    batch_invariant: bool = False
    apart: tuple[str, ...] = ()

    @property
    def how(self) -> dict[str, bool]:
        """What the operations are told."""
        return {"padded": self.padded, "batch_invariant": self.batch_invariant}


KINDS = (
    Kind(),
    Kind(torch.float32, (24, 128), padded=True),
    Kind(chunk_sizes=(16, 64), batch_invariant=True),
    Kind(padded=True, apart=("lora_a", "lora_b", "base_output")),
    Kind(chunk_sizes=(16,), apart=("lora_a", "h")),
)


def calls_of(kind: Kind, layers: tuple[LayerShape, ...]) -> list[binaries.Call]:
    sizes = kind.chunk_sizes or chunk_sizes.possible(MAX_TOKENS, MAX_LORAS, CPU)
    batches = binaries._batches(sizes, MAX_TOKENS, MAX_LORAS, CPU)
    return [
        call
        for layer in layers
        for call in binaries._calls(layer, MAX_RANK, kind.dtype, rules.OPS, batches, CPU, kind.how, kind.apart)
    ]


@functools.cache
def compiled(kind: Kind) -> frozenset[tuple[Any, ...]]:
    """The binaries that are compiled ahead for the three layers, on a GPU whose table has a row for every key."""
    with fake_gpu() as gpu:
        assert binaries._compile(calls_of(kind, (QKV, DOWN, ODD)), 2, None) == len(gpu.compiled)
        assert not gpu.launched
        return frozenset(gpu.compiled)


def make(op: str, layer: LayerShape, kind: Kind, segments: Segments, rows: int, wider: int = 0) -> None:
    """One call; `wider` says how many columns lie between rows of x and of base_output."""
    loras, slices, output_dim = segments.lora_ranks.numel(), len(layer.slice_widths), sum(layer.slice_widths)
    offsets = tuple(sum(layer.slice_widths[:i]) for i in range(slices + 1))
    empty = functools.partial(torch.empty, dtype=kind.dtype)
    x, base = empty(rows, layer.input_dim + wider)[:, : layer.input_dim], empty(rows, output_dim + wider)
    lora_a, lora_b = empty(loras, slices * MAX_RANK, layer.input_dim), empty(loras, output_dim, MAX_RANK)
    h, out, ranks = empty(rows, slices * MAX_RANK), None, [MAX_RANK] * slices
    if "lora_a" in kind.apart:
        lora_a = tuple(part.contiguous() for part in lora_a.split(ranks, dim=1))
    if "lora_b" in kind.apart:
        lora_b = tuple(part.contiguous() for part in lora_b.split(layer.slice_widths, dim=1))
    if "h" in kind.apart:
        h = out = tuple(part.contiguous() for part in h.split(ranks, dim=1))
    if "base_output" in kind.apart:
        base = tuple(empty(rows, width + wider) for width in layer.slice_widths)
    if op == "shrink":
        lora_shrink(x, lora_a, segments, slices, out=out, **kind.how)
    elif op == "expand":
        lora_expand(h, lora_b, segments, offsets, base, **kind.how)
    else:
        add_lora(base, x, lora_a, lora_b, segments, offsets, **kind.how)


@st.composite
def batches(draw: st.DrawFn, kind: Kind) -> tuple[Segments, int]:
    """Segments of any batch that `WARM` allows, made in any way, and the number of its rows."""
    chunk_size = draw(st.sampled_from(kind.chunk_sizes)) if kind.chunk_sizes else None
    loras = draw(st.integers(1, MAX_LORAS))
    if draw(st.booleans()):
        rows = draw(st.integers(1, MAX_TOKENS))
        return Segments.allocate(rows, loras, chunk_size=chunk_size, device="cpu"), rows
    ranks = draw(st.lists(st.integers(0, MAX_RANK), min_size=loras, max_size=loras))
    lens, left = [], MAX_TOKENS
    for _ in range(draw(st.integers(1, 12))):
        lens.append(draw(st.integers(0, left)))
        left -= lens[-1]
    ids = draw(st.lists(st.integers(-1, loras - 1), min_size=len(lens), max_size=len(lens)))
    return Segments.from_sequences(lens, ids, ranks, [1.0] * loras, chunk_size=chunk_size, device="cpu"), sum(lens)


@settings(deadline=None)  # the first launch of a kind takes longer than the next
@given(st.sampled_from(KINDS), st.sampled_from(rules.OPS), st.sampled_from((QKV, DOWN, ODD)), st.data())
def test_launches_ask_for_what_was_compiled(kind: Kind, op: str, layer: LayerShape, data: st.DataObject) -> None:
    """Any batch within the bounds, any operation and layer, whether or not its Segments chose their chunk size."""
    segments, rows = data.draw(batches(kind))
    ahead = compiled(kind)
    with fake_gpu() as gpu:
        make(op, layer, kind, segments, rows)
        assert {each.binary for each in gpu.launched} <= ahead
        assert gpu.launched or not rows or not segments.num_segments


@pytest.mark.parametrize("op", rules.OPS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_batch_is_covered(kind: Kind, op: str) -> None:
    """As many segments as so many rows of so many adapters can make, of whatever chunk size."""
    for chunk_size in kind.chunk_sizes or (None, 16):
        segments = Segments.allocate(MAX_TOKENS, MAX_LORAS, chunk_size=chunk_size, device="cpu")
        ahead = compiled(kind)
        with fake_gpu() as gpu:
            make(op, QKV, kind, segments, MAX_TOKENS)
            assert gpu.launched
            assert {each.binary for each in gpu.launched} <= ahead


def test_what_a_models_layers_launch_together_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`MultiLoRA`'s q, k and v, and a layer by itself: nothing that a warm-up told so has not compiled."""
    kind = Kind(torch.float16, (16,), padded=True, apart=("lora_a", "lora_b", "base_output"))
    slots = AdapterSlots(3, CPU)
    slots.add_rows(2)
    for slot in range(3):
        slots.put(f"adapter {slot}", slot, {row: Size(MAX_RANK, 1.0) for row in range(2)})
    batch = RowBatch(slots, ["adapter 0", None, "adapter 2"], 16)
    serving, groups = Serving(0), []
    for row, layer in enumerate((QKV, DOWN)):
        like = torch.empty(layer.input_dim, 0, dtype=kind.dtype)
        groups.append((SharedInput(3, MAX_RANK, like, layer.slice_widths, row, serving), layer))
        for tokens in (1, 40):
            assert batch.segments(torch.Size((3, tokens, layer.input_dim)), row) is not None
    ahead = compiled(kind)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with fake_gpu() as gpu:
        for (shared, layer), tokens in itertools.product(groups, (1, 40)):
            x = torch.empty(3, tokens, layer.input_dim, dtype=kind.dtype)
            outputs = [torch.empty(3, tokens, width, dtype=kind.dtype) for width in layer.slice_widths]
            shared.add(outputs, x, batch, None)
            assert {each.binary for each in gpu.launched} <= ahead
        assert len(gpu.launched) == 8


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with fake_gpu() as fake:
        yield fake


def test_a_warm_up_launches_what_it_compiled(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the GPU, waiting for it: every binary is launched once at least, and no other."""
    waited: list[int] = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(len(gpu.launched)))
    monkeypatch.setattr(binaries, "_gpu", lambda _: CPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    done = csgmv.warmup(
        (QKV, ODD), max_rank=16, max_tokens=100, max_loras=3, dtype=torch.float16, chunk_sizes=(24, 64), padded=True
    )
    assert {each.binary for each in gpu.launched} == {*gpu.compiled}
    assert {each.way for each in gpu.launched} == {"long"}
    # 3 + 97 // 24 = 7 segments at most, which count as 8; and 3 + 97 // 64 = 4: the powers of two up to these
    assert done[:2] == (2 * 3 * (4 + 3), len(gpu.compiled))
    assert waited == [len(gpu.launched)]


@pytest.mark.parametrize(
    ("change", "wider"),
    [({"dtype": torch.float32}, 0), ({"padded": True}, 0), ({}, 8), ({}, 1)],
)
def test_what_is_said_not_to_be_covered_is_not(change: dict[str, Any], wider: int) -> None:
    """Another dtype or layout, and strides that Triton tells apart from those of contiguous rows."""
    assert not launched(Kind()._replace(**change), wider) <= compiled(Kind())


@pytest.mark.parametrize("wider", [16, 48])
def test_strides_that_triton_does_not_tell_apart_are_covered(wider: int) -> None:
    """x and base_output as parts of larger tensors: multiples of 16 elements as their widths are."""
    assert launched(Kind(), wider) <= compiled(Kind())


def launched(kind: Kind, wider: int) -> set[tuple[Any, ...]]:
    """The binaries of one add_lora."""
    segments = Segments.from_sequences([40], [0], [16], [1.0], chunk_size=16, device="cpu")
    with fake_gpu() as gpu:
        make("add_lora", QKV, kind, segments, 40, wider)
        return {each.binary for each in gpu.launched}


def test_a_context_that_compiles_ahead_does_not_touch_others(gpu: FakeGPU) -> None:
    """Launches of other threads, and later ones of this thread, go on as ever."""
    (call, *_) = calls = calls_of(Kind(chunk_sizes=(16,)), (DOWN,))
    binaries._compile(calls, 2, None)
    assert launch.compiled.get() is None
    assert not gpu.launched
    call()
    assert gpu.launched


def test_a_failure_leaves_nothing_behind(gpu: FakeGPU) -> None:
    """It comes through as it is, and the next warm-up and launch go on as ever."""
    (call, *_) = calls = calls_of(Kind(chunk_sizes=(16,)), (DOWN,))
    with pytest.raises(ZeroDivisionError):
        binaries._compile([call, lambda: 1 // 0], 2, None)
    call()
    assert gpu.launched
    assert binaries._compile(calls, 2, None) > 1


def test_triton_finds_what_was_compiled_in_parallel() -> None:
    """By its own count, for an H200: each binary once and ahead, none for the calls that are covered."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = pathlib.Path(__file__).parent / "compiled_ahead.py"
    ran = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["compiled"] == said["binaries"] > 6
    assert (said["launching"], said["others"]) == (0, 0)
    assert said["uncovered"] > 0
    assert said["in another process"] == said["binaries"]
    assert said["found on disk"] == [True] * said["binaries"]
    if hasattr(triton, "AsyncCompileMode"):
        assert said["threads"] == 2
        assert said["progress"] == [[done, said["binaries"]] for done in range(1, said["binaries"] + 1)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to compile for: interpreted kernels have no binaries."""
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        csgmv.warmup([QKV], **WARM)
    monkeypatch.setattr(binaries.launch, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="needs a GPU"):
        csgmv.warmup([QKV], **WARM)
    with pytest.raises(ValueError, match=r"^warmup needs a GPU, and torch finds none: "):
        command("--layer", "qkv:64:32+16+16", "--rank", "16", "--max-tokens", "8", "--max-loras", "2")


def command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    warmup_command.add_arguments(parser)
    return warmup_command.run(parser.parse_args(argv))


def test_the_command_hands_its_options_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says what it did."""
    seen: dict[str, Any] = {}

    def warmup(layers: list[LayerShape], **options: Any) -> binaries.Warmup:
        seen.update(layers=layers, **options)
        return binaries.Warmup(calls=72, binaries=9, seconds=4.25)

    monkeypatch.setattr(binaries, "warmup", warmup)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(binaries.launch, "INTERPRETED", False)
    layers = ("--layer", "qkv:64:32+16+16", "--layer", "o:64:64", "--layer", "again:64:64")
    sizes = ("--rank", "8", "--max-tokens", "512", "--max-loras", "4", "--chunk-sizes", "16", "64", "--threads", "3")
    options = ("--dtype", "float16", "--ops", "add_lora", "--padded", "--apart", "lora_a", "base_output")
    assert command(*layers, *sizes, *options) == 0
    assert [layer.name for layer in seen.pop("layers")] == ["qkv", "o"]
    assert seen == {
        "max_rank": 8,
        "max_tokens": 512,
        "max_loras": 4,
        "dtype": torch.float16,
        "ops": ["add_lora"],
        "chunk_sizes": [16, 64],
        "padded": True,
        "batch_invariant": False,
        "apart": ["lora_a", "base_output"],
        "threads": 3,
        "progress": None,
    }
    assert "9 binaries for 72 kinds of calls in 4.2 s" in capsys.readouterr().out


def test_progress_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Written over until it is complete, where standard output is not disturbed."""
    for done in (1, 2):
        warmup_command._show(done, 2)
    assert capsys.readouterr() == ("", "\r1/2 binaries\r2/2 binaries\n")


@pytest.mark.gpu
def test_nothing_compiles_after_a_warm_up(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """From nothing, in memory and on disk: Triton compiles all of it during the warm-up, and launches are right.

    One layer has rows in an H200's table, the other is as odd as can be. Batches are from one row to as many as there
    may be, of Segments that choose their own chunk size and of static ones.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "plans", {})
    for kernel in (shrink._shrink_kernel, shrink._sum_partials_kernel, expand._expand_kernel):
        monkeypatch.setattr(kernel, "device_caches", collections.defaultdict(kernel.create_binder))
    names: list[str] = []
    hook = "jit_post_compile_hook"
    monkeypatch.setattr(triton.knobs.runtime, hook, lambda **compiled: names.append(compiled["fn"].name))
    steps: list[tuple[int, int]] = []
    layers = LayerShape("o", 2048, (1024,)), LayerShape("odd", 72, (24, 7))
    bounds = {"max_rank": 64, "max_tokens": 100, "max_loras": 3}
    done = csgmv.warmup(layers, **bounds, progress=lambda *step: steps.append(step))
    assert len(names) == done.binaries
    assert steps == [(step, done.binaries) for step in range(1, done.binaries + 1)]
    assert {"_shrink_kernel", "_expand_kernel"} <= {*names}
    names.clear()
    launch.plans.clear()
    static = Segments.allocate(100, 3, device="cuda")
    for layer in layers:
        for tokens in (1, 2, 15, 16, 17, 40, 73, 100):
            batch = make_batch(
                [64, 8, 24], 64, layer.input_dim, [*layer.slice_widths], tokens, chunk_size=None, dtype=torch.bfloat16
            )
            inputs = batch.x, batch.lora_a, batch.lora_b
            want = reference.add_lora(batch.base_output, *inputs, batch.segments, batch.slice_offsets)
            static.update_from_tokens(torch.full((tokens,), 1), [64, 8, 24], [1.0] * 3)
            for segments in (batch.segments, static):
                h = lora_shrink(batch.x, batch.lora_a, segments, batch.num_slices)
                lora_expand(h, batch.lora_b, segments, batch.slice_offsets, batch.base_output.clone())
                add_lora(batch.base_output.clone(), *inputs, segments, batch.slice_offsets)
            got = add_lora(batch.base_output.clone(), *inputs, batch.segments, batch.slice_offsets)
            assert_close(got, want, torch.bfloat16)
    assert names == []


@pytest.mark.gpu
def test_a_stream_that_is_being_captured_is_refused() -> None:
    """Loading a binary would end the capture."""
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")  # an empty graph is warned of
        with pytest.raises(ValueError, match="expected a stream that is not being captured"):
            csgmv.warmup([QKV], **WARM)
