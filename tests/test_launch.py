"""A call whose kind is known launches what Triton would have launched, and fails as it would have failed unknown."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import pathlib
import pickle
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from batches import assert_close, make_batch
from csgmv import (
    AddLoraConfig,
    ExpandConfig,
    Segments,
    ShrinkConfig,
    add_lora,
    arguments,
    launch,
    lora_expand,
    lora_shrink,
    reference,
    slices,
)
from fake_gpu import FakeGPU, Launched, fake_gpu

OPS = ("shrink", "expand", "add_lora")
WRONG_DEVICE = "cuda" if torch.cuda.is_available() else "meta"
BATCH = (torch.int32, torch.int32, torch.int32, torch.int32, torch.float32)  # dtypes of Segments.tensors
SHRINK = ShrinkConfig(block_m=16, block_n=16, block_k=32, split_k=1, num_stages=2)
EXPAND = ExpandConfig(block_m=16, block_n=32, block_k=16, num_stages=2)


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with fake_gpu() as fake:
        yield fake


def memory(*shape: int, dtype: torch.dtype, shift: int = 0, stride: int | None = None) -> torch.Tensor:
    """A tensor on the CPU that begins `shift` elements past a multiple of 64 bytes, its rows `stride` apart."""
    shape = tuple(max(0, size) for size in shape)  # changes may come together that take away more than there is
    strides = [*torch.empty(shape, device="meta").stride()]
    if stride is not None:
        strides[0] = stride
    size = shift + 1 + sum((n - 1) * each for n, each in zip(shape, strides)) if math.prod(shape) else shift
    return torch.zeros(size, dtype=dtype)[shift:].as_strided(shape, strides)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation, by all that can differ from one to the next. Bad values make a call that must fail."""

    op: str = "add_lora"
    dtype: torch.dtype = torch.float16
    x_dtype: torch.dtype | None = None  # None: as dtype, here and below
    a_dtype: torch.dtype | None = None
    b_dtype: torch.dtype | None = None
    base_dtype: torch.dtype | None = None
    rows: int = 40
    input_dim: int = 64
    max_rank: int = 16
    a_rank: int | None = None  # None: max_rank
    widths: tuple[Any, ...] = (32, 64)
    offset_type: type = int
    list_of_offsets: bool = False
    num_slices: int | None = None  # None: as many as there are widths
    a_loras: int = 3
    b_loras: int = 3
    x_extra: int = 0  # columns between rows of x or h
    x_columns: int = 0  # beyond input_dim or width, with the same stride
    base_extra: int = 0
    base_columns: int = 0  # beyond output_dim
    base_rows: int = 0  # beyond x's
    base_stride: int | None = None
    x_shift: int = 0
    a_shift: int = 0
    b_shift: int = 0
    base_shift: int = 0
    out_shift: int = 0
    apart: tuple[str, ...] = ()  # of lora_a, lora_b, base, h and out those whose slices are tensors of their own
    second_shift: int = 0  # of the second slice of these
    second_extra: int = 0  # columns between rows of base's second slice
    second_columns: int = 0  # beyond its width
    second_rows: int = 0  # beyond what it is to have, of base and weights
    second_dtype: torch.dtype | None = None
    one_slice_more: bool = False
    one_slice: bool = False  # a tuple of one tensor that holds all slices
    transposed: str = ""  # the tensor whose last dimension is not contiguous
    elsewhere: str = ""  # the tensor that is on another device
    no_tensor: str = ""  # the tensor that is a list
    out: bool = False
    out_rows: int = 0  # beyond x's
    out_columns: int = 0  # beyond width, with the same stride
    out_extra: int = 0
    out_dtype: torch.dtype | None = None
    chunk_size: int = 16
    num_segments: int = 4
    num_tokens: int = 40
    least_tokens: int = 40
    largest_rank: int = 16
    slots: int = 3
    segment_dtypes: tuple[torch.dtype, ...] = BATCH
    segment_shifts: tuple[int, ...] = (0, 0, 0, 0, 0)
    kind_of_segments: type = Segments
    padded: bool = False
    batch_invariant: bool = False
    config: Any = None  # or AddLoraConfig, of which shrink and expand take their part


def place(call: Call, name: str, tensor: torch.Tensor) -> Any:
    """The tensor, or what stands in its place."""
    if call.transposed == name:
        tensor = tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if call.no_tensor == name:
        return tensor.tolist()
    return tensor.to(WRONG_DEVICE) if call.elsewhere == name else tensor


def slices_of(placed: Any) -> tuple[Any, ...]:
    """The tensors that an operand consists of."""
    return placed if isinstance(placed, tuple) else (placed,)


def apart(call: Call, name: str, whole: torch.Tensor) -> tuple[Any, ...]:
    """The same in a tensor for each slice."""
    if call.one_slice:
        return (place(call, name, whole),)
    found = []
    for i, width in enumerate(call.widths):
        second = i == 1
        dtype = (call.second_dtype if second else None) or whole.dtype
        more, shift = call.second_rows * second, call.second_shift * second
        if name == "base":
            columns = width + call.second_columns * second
            stride = columns + call.base_extra + call.second_extra * second
            one = memory(whole.shape[0] + more, columns, dtype=dtype, shift=shift, stride=stride)
        elif name in ("h", "out"):
            one = memory(whole.shape[0] + more, call.max_rank, dtype=dtype, shift=shift)
        else:
            rows = width if name == "lora_b" else whole.shape[1] // len(call.widths)
            one = memory(whole.shape[0], rows + more, whole.shape[2], dtype=dtype, shift=shift)
        found.append(place(call, name, one))
    return (*found, *found[:1] * call.one_slice_more)


def prepared(call: Call) -> tuple[Callable[[], object], dict[int, str]]:
    """The call, ready to be made any number of times, and the names of its tensors by their pointers."""
    dtype, slices, output_dim = call.dtype, len(call.widths), sum(call.widths)
    num_slices = slices if call.num_slices is None else call.num_slices
    a_rank = call.max_rank if call.a_rank is None else call.a_rank
    a_shape, b_shape = (call.a_loras, slices * a_rank, call.input_dim), (call.b_loras, output_dim, call.max_rank)
    base_shape = call.rows + call.base_rows, output_dim + call.base_columns
    base_stride = base_shape[1] + call.base_extra if call.base_stride is None else call.base_stride
    x_stride, width, x_dtype = call.input_dim + call.x_extra, slices * call.max_rank, call.x_dtype or dtype
    out_shape = call.rows + call.out_rows, width + call.out_columns
    tensors = {
        "x": memory(call.rows, call.input_dim + call.x_columns, dtype=x_dtype, shift=call.x_shift, stride=x_stride),
        "h": memory(call.rows, width + call.x_columns, dtype=x_dtype, shift=call.x_shift, stride=width + call.x_extra),
        "lora_a": memory(*a_shape, dtype=call.a_dtype or dtype, shift=call.a_shift),
        "lora_b": memory(*b_shape, dtype=call.b_dtype or dtype, shift=call.b_shift),
        "base": memory(*base_shape, dtype=call.base_dtype or dtype, shift=call.base_shift, stride=base_stride),
        "out": memory(*out_shape, dtype=call.out_dtype or dtype, shift=call.out_shift, stride=width + call.out_extra),
    }
    sizes = call.rows, call.num_segments + 1, call.num_segments, call.slots, call.slots
    batch = [
        memory(size, dtype=each, shift=shift)
        for size, each, shift in zip(sizes, call.segment_dtypes, call.segment_shifts)
    ]
    batch[0] = place(call, "permutation", batch[0])
    counts = call.chunk_size, call.num_segments, call.num_tokens, call.least_tokens, call.largest_rank
    segments = call.kind_of_segments(*batch, *counts)
    x, h, a, b, base, out = placed = [
        apart(call, *each) if each[0] in call.apart else place(call, *each) for each in tensors.items()
    ]
    # Of what `make` keeps alive: other memory may be handed out again.
    sliced = [(f"{name} {i}", part) for name, each in zip(tensors, placed) for i, part in enumerate(slices_of(each))]
    names = {each.data_ptr(): name for name, each in sliced if isinstance(each, torch.Tensor)}
    names |= {each.data_ptr(): f"segments {i}" for i, each in enumerate(batch)}
    offsets: Any = tuple(call.offset_type(sum(call.widths[:i])) for i in range(slices + 1))
    offsets = list(offsets) if call.list_of_offsets else offsets
    config = call.config
    if isinstance(config, AddLoraConfig) and call.op != "add_lora":
        config = getattr(config, call.op)
    more = dict(padded=call.padded, config=config, batch_invariant=call.batch_invariant)

    def make() -> object:
        if call.op == "shrink":
            return lora_shrink(x, a, segments, num_slices, out=out if call.out else None, **more)
        if call.op == "expand":
            return lora_expand(h, b, segments, offsets, base, **more)
        return add_lora(base, x, a, b, segments, offsets, **more)

    return make, names


def outcome(gpu: FakeGPU, make: Callable[[], object], names: dict[int, str]) -> tuple[list[tuple[Any, ...]], set[str]]:
    """What was launched, fresh memory having no name, or what was raised; and by which ways."""
    gpu.launched.clear()
    try:
        make()
    except (TypeError, ValueError) as error:
        return [(type(error), str(error))], set()
    ways = {each.way for each in gpu.launched}
    return [(*each[1:3], [names.get(at, "fresh") for at in each.pointers], each.sizes) for each in gpu.launched], ways


def unknown(gpu: FakeGPU, make: Callable[[], object], names: dict[int, str]) -> list[tuple[Any, ...]]:
    """The outcome of the call where nothing is remembered and launches go Triton's own way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "plans", {})
        patch.setattr(launch, "SHORT_WAY", False)
        result, ways = outcome(gpu, make, names)
    assert ways <= {"long"}
    return result


def assert_as_if_unknown(calls: list[Call]) -> None:
    """Each call has the outcome that it would have by itself, by the short way once it was made before."""
    with fake_gpu() as gpu:
        ready = [prepared(call) for call in calls]
        expected = [unknown(gpu, *each) for each in ready]
        for known in (False, True):
            for each, wanted, call in zip(ready, expected, calls):
                got, ways = outcome(gpu, *each)
                assert got == wanted, call
                assert not known or ways <= {"short"}, call


def config(shrink: dict[str, Any] | None = None, expand: dict[str, Any] | None = None, **own: Any) -> AddLoraConfig:
    """SHRINK and EXPAND with some fields changed."""
    parts = dataclasses.replace(SHRINK, **(shrink or {})), dataclasses.replace(EXPAND, **(expand or {}))
    return AddLoraConfig(*parts, **own)


class OtherSegments(Segments):
    """Of another class, which is as good."""


class NoSegments:
    """Has all that Segments have, and is none."""

    def __init__(self, *values: Any) -> None:
        self.__dict__.update(zip([field.name for field in dataclasses.fields(Segments)], values))


ONE_ROW = {"rows": 1, "num_tokens": 1, "least_tokens": 1}
HALF, SINGLE, LONG = torch.bfloat16, torch.float32, torch.int64
SLICED = ("lora_a", "lora_b", "base", "h")  # and out, which has changes of its own
CHANGES: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": SINGLE},
    "other 16-bit dtype": {"dtype": HALF},
    "x of another dtype": {"x_dtype": HALF},
    "x too narrow": {"x_columns": -16},
    "x too wide": {"x_columns": 16, "x_extra": 16},
    "lora_a of another dtype": {"a_dtype": HALF},
    "lora_b of another dtype": {"b_dtype": HALF},
    "base of another dtype": {"base_dtype": HALF},
    "input_dim 1": {"input_dim": 1},
    "input_dim a multiple of 8": {"input_dim": 72},
    "input_dim another multiple of 16": {"input_dim": 80},
    "input_dim odd": {"input_dim": 61},
    "max_rank": {"max_rank": 32},
    "max_rank a multiple of 8": {"max_rank": 24},
    "max_rank odd": {"max_rank": 17},
    "lora_a of another rank": {"a_rank": 24},
    "slices": {"widths": (32, 32, 32)},
    "one slice": {"widths": (96,)},
    "num_slices": {"num_slices": 1},
    "num_slices out of range": {"num_slices": 8},
    "num_slices that do not divide": {"num_slices": 3},
    "widths": {"widths": (64, 32)},
    "widths multiples of 8": {"widths": (40, 56)},
    "widths odd": {"widths": (31, 65)},
    "last width odd": {"widths": (32, 65)},
    "widths and rank odd": {"widths": (32, 33), "max_rank": 17},
    "a width of 0": {"widths": (0, 96)},
    "no width at all": {"widths": (0, 0)},
    "offsets that are floats": {"offset_type": float},
    "offsets in a list": {"list_of_offsets": True},
    "adapters": {"a_loras": 4, "b_loras": 4},
    "fewer adapters than slots": {"a_loras": 2, "b_loras": 2},
    "lora_a of more adapters": {"a_loras": 4},
    "lora_b of more adapters": {"b_loras": 4},
    "x stride odd": {"x_extra": 3},
    "x stride a multiple of 8": {"x_extra": 8},
    "x stride another multiple of 16": {"x_extra": 16},
    "base stride odd": {"base_extra": 3},
    "base stride a multiple of 8": {"base_extra": 8},
    "base stride another multiple of 16": {"base_extra": 16},
    "base wider": {"base_columns": 16},
    "base too narrow": {"base_columns": -16, "base_extra": 16},
    "base with overlapping rows": {"base_stride": 16},
    "base of too many rows": {"base_rows": 1},
    "x unaligned": {"x_shift": 1},
    "lora_a unaligned": {"a_shift": 1},
    "lora_b unaligned": {"b_shift": 4},
    "base unaligned": {"base_shift": 1},
    "x transposed": {"transposed": "x"},
    "h transposed": {"transposed": "h"},
    "lora_a transposed": {"transposed": "lora_a"},
    "lora_b transposed": {"transposed": "lora_b"},
    "base transposed": {"transposed": "base"},
    "out": {"out": True},
    "x elsewhere": {"elsewhere": "x"},
    "h elsewhere": {"elsewhere": "h"},
    "lora_a elsewhere": {"elsewhere": "lora_a"},
    "lora_b elsewhere": {"elsewhere": "lora_b"},
    "base elsewhere": {"elsewhere": "base"},
    "segments elsewhere": {"elsewhere": "permutation"},
    "x no tensor": {"no_tensor": "x"},
    "lora_b no tensor": {"no_tensor": "lora_b"},
    "base no tensor": {"no_tensor": "base"},
    "chunk size": {"chunk_size": 64},
    "chunk size odd": {"chunk_size": 24},
    "segments": {"num_segments": 3},
    "many segments": {"num_segments": 100},
    "one segment": {"num_segments": 1},
    "no segments": {"num_segments": 0},
    "tokens": {"num_tokens": 7},
    "one row": ONE_ROW,
    "no rows": {"rows": 0, "num_tokens": 0, "least_tokens": 0},
    "more rows": {"rows": 48},
    "too few rows": {"rows": 39},
    "too large a rank": {"largest_rank": 17},
    "ranks not known": {"largest_rank": 0},
    "too many slots": {"slots": 4},
    "fewer slots": {"slots": 2},
    **{f"batch tensor {i} of another dtype": {"segment_dtypes": (*BATCH[:i], LONG, *BATCH[i + 1 :])} for i in range(5)},
    **{f"batch tensor {i} unaligned": {"segment_shifts": (0,) * i + (1,) + (0,) * (4 - i)} for i in range(5)},
    "a subclass of Segments": {"kind_of_segments": OtherSegments},
    "no Segments": {"kind_of_segments": NoSegments},
    "padded": {"padded": True},
    "batch_invariant": {"batch_invariant": True},
    "batch_invariant with a config": {"batch_invariant": True, "config": config()},
    "batch_invariant with too high tiles": {"batch_invariant": True, "config": config({"block_m": 32})},
    "config of another operation": {"config": 3},
    "config not hashable": {"config": [3]},
    "config": {"config": config()},
    **{f"{name} apart": {"apart": (name,)} for name in SLICED},
    "all apart": {"apart": SLICED},
    "apart, one slice": {"apart": SLICED, "widths": (96,)},
    "apart, one tensor for two slices": {"apart": SLICED, "one_slice": True},
    **{f"{name} apart, one tensor for two slices": {"apart": (name,), "one_slice": True} for name in SLICED},
    "apart, three slices": {"apart": SLICED, "widths": (32, 32, 32)},
    "apart, odd widths": {"apart": SLICED, "widths": (31, 65)},
    "apart, widths multiples of 8": {"apart": SLICED, "widths": (40, 56)},
    "apart, a width of 0": {"apart": SLICED, "widths": (0, 96)},
    "apart, a slice too many": {"apart": SLICED, "one_slice_more": True},
    **{f"{name} apart, a slice too many": {"apart": (name,), "one_slice_more": True} for name in SLICED},
    **{f"{name} apart, one no tensor": {"apart": (name,), "no_tensor": name} for name in SLICED},
    **{f"{name} apart, transposed": {"apart": (name,), "transposed": name} for name in SLICED},
    **{f"{name} apart, elsewhere": {"apart": (name,), "elsewhere": name} for name in SLICED},
    **{f"second {name} of other {what}": {"apart": (name,), **changed} for name in SLICED for what, changed in {
        "alignment": {"second_shift": 1}, "dtype": {"second_dtype": HALF}, "rows": {"second_rows": 1}}.items()},
    "second base of an odd stride": {"apart": ("base",), "second_extra": 3},
    "second base of a stride that is a multiple of 8": {"apart": ("base",), "second_extra": 8},
    "second base wider": {"apart": ("base",), "second_columns": 16},
    "second base too narrow": {"apart": ("base",), "second_columns": -16, "second_extra": 16},
    **{f"shrink {name}": {"config": config({name: value})} for name, value in {
        "block_m": 64, "block_n": 32, "block_k": 64, "column_tiles": 2, "split_k": 2, "num_warps": 8, "num_stages": 3,
        "maxnreg": 128}.items()},
    **{f"expand {name}": {"config": config(None, {name: value})} for name, value in {
        "block_m": 64, "block_n": 64, "block_k": 32, "column_tiles": 2, "num_warps": 8, "num_stages": 3,
        "maxnreg": 128, "prefetch": True}.items()},
    "shrink sliced_k": {"config": config({"block_k": 64, "sliced_k": True})},
    "more splits": {"config": config({"split_k": 3})},
    "overlap": {"config": config(overlap=True)},
}  # fmt: skip
OUT_CHANGES: dict[str, dict[str, Any]] = {
    "allocated": {"out": False},
    "unaligned": {"out_shift": 1},
    "of another dtype": {"out_dtype": HALF},
    "of too many rows": {"out_rows": 1},
    "of too many columns": {"out_columns": 16, "out_extra": 16},
    "of too few columns": {"out_columns": -16},
    "not contiguous": {"out_extra": 16},
    "transposed": {"transposed": "out"},
    "elsewhere": {"elsewhere": "out"},
    "no tensor": {"no_tensor": "out"},
    "apart": {"apart": ("out",)},
    "apart, a slice too many": {"apart": ("out",), "one_slice_more": True},
    "apart, elsewhere": {"apart": ("out",), "elsewhere": "out"},
    "apart, partials": {"apart": ("out",), "config": config({"split_k": 2})},
    **{f"second of other {what}": {"apart": ("out",), **changed} for what, changed in {
        "alignment": {"second_shift": 1}, "dtype": {"second_dtype": HALF}, "rows": {"second_rows": 1}}.items()},
    "one row": ONE_ROW,
    "partials": {"config": config({"split_k": 2})},
}  # fmt: skip


def firsts(op: str) -> tuple[Call, ...]:
    """Calls to change: by the table, by a config, and with partials and a rank that is walked in steps."""
    return Call(op), Call(op, config=config()), Call(op, config=config({"split_k": 2}), max_rank=64)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_ingredient_counts(change: dict[str, Any], op: str) -> None:
    """After a call, one that differs in a single thing: the right binary, grid, pointers and sizes, or the right error.

    With and without a config; and after the same for a batch of one row, of which less is asked.
    """
    for first in firsts(op):
        other = dataclasses.replace(first, **change)
        assert_as_if_unknown([first, other])
        assert_as_if_unknown([dataclasses.replace(other, **ONE_ROW), other])
        if "apart" in change:
            assert_as_if_unknown([dataclasses.replace(first, apart=change["apart"]), other])


def test_weights_that_stay_are_those_of_each_copy() -> None:
    """What is kept of them is where they are, which of a copy is elsewhere."""
    weights = slices.Stationary((torch.zeros(2, 4, 8), torch.zeros(2, 4, 8)))
    for other in (copy.deepcopy(weights), pickle.loads(pickle.dumps(weights)), slices.Stationary(weights)):
        assert type(other) is slices.Stationary
        assert [*other.kind[1][:2]] == [each.data_ptr() for each in other]
        assert slices.kind_of_weights(other) == slices.kind_of_weights(tuple(other))


def test_the_changes_leave_nothing_out(gpu: FakeGPU) -> None:
    """Of every kernel, each argument that Triton specialises, each constant and each option differs between two calls.

    But for three: partials are always fresh memory of float32, the kernel that sums them has tiles of one height, and
    an option that is there or not is never False.
    """
    outs = [{"out": True, **change} for change in OUT_CHANGES.values()]
    for op, change in itertools.product(OPS, [*CHANGES.values(), *outs]):
        for first in firsts(op):
            with contextlib.suppress(TypeError, ValueError):
                prepared(dataclasses.replace(first, **change))[0]()
    found: dict[tuple[str, str], set[Any]] = {}
    for kernel, _, *ingredients in (each.binary for each in gpu.launched):
        for name, kind in itertools.chain(*ingredients):
            found.setdefault((kernel, name), set()).add(kind)
    assert {kind for kind, _ in found["_expand_kernel", "lora_b"]} == {"*fp16", "*bf16", "*fp32"}
    not_specialised = {("i32", None)}
    assert {each for each, kinds in found.items() if len(kinds) == 1 and kinds != not_specialised} == {
        ("_sum_partials_kernel", "partials"),
        ("_sum_partials_kernel", "BLOCK_M"),
        ("_expand_kernel", "launch_pdl"),
    }


@pytest.mark.parametrize("change", OUT_CHANGES.values(), ids=OUT_CHANGES)
def test_each_thing_about_out_counts(change: dict[str, Any]) -> None:
    """The tensor that lora_shrink writes to, if it is given one."""
    first = Call("shrink", out=True)
    other = dataclasses.replace(first, **change)
    assert_as_if_unknown([first, other])
    assert_as_if_unknown([dataclasses.replace(other, **ONE_ROW), other])
    if "apart" in change:
        assert_as_if_unknown([dataclasses.replace(first, apart=change["apart"]), other])


@settings(deadline=None)  # the first launch of a kind takes longer than the next
@given(
    st.sampled_from(OPS), st.lists(st.lists(st.sampled_from([*CHANGES.values()]), max_size=4), min_size=2, max_size=5)
)
def test_any_calls_in_any_order(op: str, changes: list[list[dict[str, Any]]]) -> None:
    """Calls that differ in any number of things, all sharing one set of plans."""
    calls = [Call(op, **dict(itertools.chain.from_iterable(map(dict.items, together)))) for together in changes]
    assert_as_if_unknown(calls)


@settings(deadline=None)
@given(
    st.sampled_from(OPS),
    st.lists(
        st.tuples(st.integers(1, 70), st.integers(0, 70), st.sampled_from([1, 2, 16, 4096])), min_size=2, max_size=6
    ),
)
def test_sizes_of_a_batch_need_no_plans_of_their_own(op: str, sizes: list[tuple[int, int, int]]) -> None:
    """Tokens and segments come and go: right each time, and one plan for each bucket of segments at most."""
    calls = [
        Call(op, rows=rows, num_tokens=tokens, least_tokens=0, num_segments=segments)
        for rows, tokens, segments in sizes
    ]
    assert_as_if_unknown(calls)
    with fake_gpu():
        for call in calls:
            prepared(call)[0]()
        buckets = {(arguments.rules.segment_bucket(segments), rows > 1) for rows, _, segments in sizes}
        assert len(launch.plans) <= len(buckets)


def test_plans_do_not_fill_the_memory(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of ever another kind."""
    monkeypatch.setattr(launch, "_MOST_PLANS", 4)
    for extra in range(20):
        prepared(Call(x_extra=extra))[0]()
        assert len(launch.plans) <= 4
    assert len(gpu.launched) == 40


def test_threads_share_plans(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of them, while plans are made, found, replaced and dropped: each call launches what it would by itself."""
    monkeypatch.setattr(launch, "_MOST_PLANS", 3)
    changes: list[dict[str, Any]] = [{}, {"padded": True}, {"base_extra": 8}, {"dtype": HALF}, {"config": config()}]
    calls = [prepared(Call(op, **change)) for op, change in itertools.product(OPS, changes)]
    names = dict(itertools.chain.from_iterable(names.items() for _, names in calls))

    def counted(launched: list[Launched]) -> Counter[Any]:
        return Counter((*each[1:3], *[names.get(at, "fresh") for at in each.pointers], each.sizes) for each in launched)

    makes, threads, rounds = [make for make, _ in calls], 8, 40
    gpu.launched.clear()
    for make in makes:
        make()
    expected = counted(gpu.launched)
    gpu.launched.clear()

    def work(number: int) -> None:
        order = random.Random(number)
        for _ in range(rounds):
            for make in order.sample(makes, len(makes)):
                make()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            [*pool.map(work, range(threads))]
    finally:
        sys.setswitchinterval(interval)
    assert {each.way for each in gpu.launched} == {"long", "short"}
    assert counted(gpu.launched) == Counter({each: count * threads * rounds for each, count in expected.items()})


@pytest.mark.parametrize("op", ["shrink", "expand"])
def test_only_the_pair_overlaps(op: str, gpu: FakeGPU) -> None:
    """A kernel by itself is no programmatic dependent of what came before it, which may still be writing its inputs:
    not even right after an add_lora that overlaps, of whose two kernels the second one is.
    """
    overlapped = config(overlap=True)
    prepared(Call(config=overlapped))[0]()
    first, second = ({**dict(each.binary[3]), **dict(each.binary[4])} for each in gpu.launched)
    assert (first["SIGNAL"], first.get("launch_pdl", False)) == (True, False)
    assert (second["OVERLAP"], second["launch_pdl"]) == (True, True)
    gpu.launched.clear()
    for _ in range(2):
        prepared(Call(op, config=overlapped))[0]()
    alone = [{**dict(each.binary[3]), **dict(each.binary[4])} for each in gpu.launched]
    assert len(alone) == 2
    for each in alone:
        assert not {"SIGNAL", "OVERLAP", "launch_pdl"} & {name for name, value in each.items() if value}


def ways(gpu: FakeGPU, make: Callable[[], object]) -> list[str]:
    gpu.launched.clear()
    make()
    return [each.way for each in gpu.launched]


def test_the_short_way_is_taken_from_the_second_call_on(gpu: FakeGPU) -> None:
    """Triton compiles and launches on the first; kernels that need scratch memory keep its launcher object."""
    make, _ = prepared(Call())
    assert ways(gpu, make) == ["long", "long"]
    assert ways(gpu, make) == ["short", "short"]
    gpu.scratch = 16
    make, _ = prepared(Call(padded=True))
    assert ways(gpu, make) == ["long", "long"]
    assert ways(gpu, make) == ["object", "object"]


def test_triton_sees_to_its_debug_mode(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has binaries of its own."""
    make, _ = prepared(Call())
    make()
    with monkeypatch.context() as debugging:
        debugging.setattr(triton.knobs.runtime, "debug", True)
        assert ways(gpu, make) == ["long", "long"]
    assert ways(gpu, make) == ["short", "short"]


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_see_every_launch(hook: str, gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's profiler sets them: as long as there is one, launches go Triton's own way."""
    make, _ = prepared(Call())
    make()
    with monkeypatch.context() as profiling:
        profiling.setattr(getattr(triton.knobs.runtime, hook), "calls", [print])
        assert ways(gpu, make) == ["long", "long"]
    assert ways(gpu, make) == ["short", "short"]
    monkeypatch.setattr(triton.knobs.runtime, hook, print)
    assert ways(gpu, make) == ["long", "long"]


def test_a_call_for_another_device_enters_it(gpu: FakeGPU) -> None:
    """And leaves it again, by the short way too; what was compiled for one device is not for the next."""
    make, _ = prepared(Call())
    gpu.device = 3
    assert ways(gpu, make) == ["long", "long"]
    assert all(each.binary[1] == -1 for each in gpu.launched)
    assert ways(gpu, make) == ["short", "short"]
    assert gpu.device == 3


@pytest.mark.parametrize(
    "call",
    [
        Call("shrink", config=SHRINK),
        Call("shrink", config=dataclasses.replace(SHRINK, split_k=2), out=True),
        Call("add_lora"),
    ],
    ids=["h", "partials", "stage"],
)
def test_memory_of_an_odd_allocator_takes_the_long_way(
    call: Call, gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch gives multiples of 16 bytes; what does not has a binary of its own, which is not kept."""
    off = 0

    def memory(count: int, **how: Any) -> torch.Tensor:
        return torch.empty(count + 1, **how)[off : off + count]

    monkeypatch.setattr(torch, "empty_strided", lambda shape, _, **how: memory(math.prod(shape), **how).view(shape))
    monkeypatch.setattr(launch, "fresh", lambda dtype, device: functools.partial(memory, dtype=dtype, device=device))
    make, _ = prepared(call)
    make()
    make()
    off = 1
    assert set(ways(gpu, make)) == {"long"}
    off = 0
    assert set(ways(gpu, make)) == {"short"}


def test_launch_parameters_are_the_configs() -> None:
    """Triton chooses what a config leaves open."""
    assert launch.options(None, overlap=False) == {}
    assert launch.options(ExpandConfig(num_warps=8, num_stages=1), overlap=True) == {
        "num_warps": 8,
        "num_stages": 1,
        "launch_pdl": True,
    }
    assert launch.options(ShrinkConfig(maxnreg=96), overlap=False)["maxnreg"] == 96


@pytest.mark.parametrize(("sizes", "told"), [((8, 24), True), ((16, 8), True), ((16, 0), False), ((12, 8), False)])
def test_multiples_of_eight_are_told(sizes: tuple[int, ...], told: bool) -> None:
    """The compiler is told of multiples of 16 by Triton, of multiples of 8 by us."""
    assert launch.by_8(*sizes) == told


@pytest.mark.gpu
def test_one_call_after_another_with_everything_changed_in_turn() -> None:
    """Strides, alignments, dtypes, dimensions, layouts and configs, each call right though all share one cache."""
    configs = [None, AddLoraConfig(ShrinkConfig(block_m=16, split_k=2), ExpandConfig(block_k=64), overlap=True)]
    for _ in range(2):  # the second time round, every binary is there
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for extra, input_dim, padded in ((0, 64, False), (8, 64, True), (3, 64, False), (0, 61, False)):
                batch = make_batch([16, 8, 16], 16, input_dim, [32, 16], 40, dtype=dtype, extra=extra, padded=padded)
                base, tensors = batch.base_output, (batch.x, batch.lora_a, batch.lora_b)
                want = reference.add_lora(base, *tensors, batch.segments, batch.slice_offsets, padded=padded)
                for config in configs:
                    got = add_lora(
                        base.clone(), *tensors, batch.segments, batch.slice_offsets, padded=padded, config=config
                    )
                    assert_close(got, want, dtype)


@pytest.mark.gpu
def test_the_short_way_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call, past Triton's launcher, equals the first and one that goes Triton's own way throughout."""
    begun: list[str] = []
    run, long_way = launch.run, launch.Launch._begin_the_long_way
    monkeypatch.setattr(launch, "run", lambda *given, **more: begun.append("run") or run(*given, **more))
    for dtype in (torch.float16, torch.bfloat16):
        for extra, input_dim in ((0, 64), (3, 64), (0, 61)):
            batch = make_batch([16, 8], 16, input_dim, [32, 16], 40, dtype=dtype, extra=extra)
            call = batch.x, batch.lora_a, batch.lora_b, batch.segments, batch.slice_offsets
            launch.plans.clear()
            begun.clear()
            results = [add_lora(batch.base_output.clone(), *call) for _ in range(3)]
            assert len(begun) == (2 if launch.SHORT_WAY else 6)
            assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16))
            assert torch.equal(results[0].view(torch.int16), results[2].view(torch.int16))
    assert launch.Launch._begin_the_long_way is long_way


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"triton": "3.3.1"}, r"csgmv: expected triton 3\.4 or later, got 3\.3\.1"),
        ({"torch": "2.7.1+cu128"}, r"csgmv: expected torch 2\.8 or later, got 2\.7\.1\+cu128"),
    ],
)
def test_a_library_that_is_too_old_is_named(found: dict[str, str], said: str) -> None:
    """When csgmv's operations are imported, not by what an old library lacks; later ones and the bounds pass."""
    launch.check_versions(torch="2.8.0", triton="3.10.0")
    with pytest.raises(ImportError, match=said):
        launch.check_versions(**found)


def test_the_bounds_are_those_that_pip_is_told() -> None:
    """pyproject.toml's, where there is one."""
    settings = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    if not settings.is_file():
        pytest.skip("an installed wheel is tested")
    for name, version in launch.LEAST.items():
        assert f"{name}>={version}" in settings.read_text()
