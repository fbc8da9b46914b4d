"""Offsets beyond 2^31 elements: in x, h, the stage, the weights and base_output, of rows, adapters, slices and splits.

Interpreted, the memory is reserved and never filled: a page that nobody touches takes no room. So the same launches as
on a GPU of 140 GB can be made anywhere, with an interpreter that raises where a 32-bit number overflows.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Iterator

import pytest
import torch

import interpreting
from batches import DEVICE, assert_close
from csgmv import (
    AddLoraConfig,
    ExpandConfig,
    Segments,
    ShrinkConfig,
    add_lora,
    launch,
    lora_expand,
    lora_shrink,
    reference,
)

FAR = 2**31
DTYPE = torch.float16
ONE = ShrinkConfig(16, 256, 16, num_stages=2)
SPLIT = ShrinkConfig(16, 256, 16, split_k=2, num_stages=2)
EXPAND = ExpandConfig(16, 32, 16, num_stages=2)
WHOLE = ExpandConfig(16, 32, 256, num_warps=4, num_stages=1)


def reserve(count: int, dtype: torch.dtype) -> torch.Tensor:
    """So many elements, zero where nothing has been written, with 2^31 before them that a wrapped offset would meet."""
    itemsize = torch.empty(0, dtype=dtype).element_size()
    if DEVICE == "cuda":
        free, _ = torch.cuda.mem_get_info()
        if free < 1.1 * count * itemsize:
            pytest.skip(f"needs {count * itemsize / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} are free")
        return torch.zeros(count, dtype=dtype, device=DEVICE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, (FAR + count) * itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=FAR * itemsize)


def reserved(*shape: int, stride: int | None = None, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    """A tensor in reserved memory, its rows `stride` apart."""
    if stride is None:
        return reserve(math.prod(shape), dtype).view(shape)
    rows, columns = shape
    return reserve((rows - 1) * stride + columns, dtype).as_strided((rows, columns), (stride, 1))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Random numbers, the same on every device."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE, DTYPE)


@pytest.fixture(autouse=True)
def overflow_raises() -> Iterator[None]:
    with interpreting.watchful() if launch.INTERPRETED else contextlib.nullcontext():
        yield
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def reserved_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partials and stages are in reserved memory too, where torch's own would have to be there."""

    def fresh(dtype: torch.dtype, _: torch.device) -> Callable[[int], torch.Tensor]:
        return lambda count: reserve(count, dtype)

    monkeypatch.setattr(launch, "fresh", fresh)
    monkeypatch.setattr(launch, "plans", {})


def at_the_end(rows: int, used: int, ranks: list[int], chunk_size: int = 16) -> Segments:
    """Of so many rows only the last ones have an adapter, the last."""
    adapters = [None, len(ranks) - 1]
    scalings = [0.5] * len(ranks)
    return Segments.from_sequences([rows - used, used], adapters, ranks, scalings, chunk_size=chunk_size, device=DEVICE)


def kept(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The last rows by themselves, as the reference takes them."""
    return tensor[-rows:].clone()


def test_rows_of_x_far_apart() -> None:
    """Row 4 of x begins at 2^31 + 64. GPU: 4.3 GB."""
    x, a = reserved(5, 24, stride=FAR // 4 + 16), normal(1, 8, 24, scale=0.2)
    x.copy_(normal(5, 24))
    segments = Segments.from_sequences([5], [0], [8], [1.0], chunk_size=16, device=DEVICE)
    h = lora_shrink(x, a, segments, config=ONE)
    assert_close(h, reference.lora_shrink(x, a, segments), DTYPE)


def test_rows_of_x_further_apart_than_int32_holds() -> None:
    """The stride itself is beyond 2^31. GPU: 4.3 GB."""
    x, a = reserved(2, 24, stride=FAR + 16), normal(1, 8, 24, scale=0.2)
    x.copy_(normal(2, 24))
    segments = Segments.from_sequences([2], [0], [8], [1.0], chunk_size=16, device=DEVICE)
    h = lora_shrink(x, a, segments, config=ONE)
    assert_close(h, reference.lora_shrink(x, a, segments), DTYPE)


@pytest.mark.parametrize("config", [ONE, SPLIT], ids=["one pass", "split"])
def test_rows_of_h_that_shrink_writes(config: ShrinkConfig) -> None:
    """Row 2^21 of h, 1,024 wide: of one kernel, and of that which sums partials. GPU: 4.3 GB."""
    rows = 2**21 + 3
    x, h, a = reserved(rows, 32), reserved(rows, 4 * 256), normal(1, 4 * 256, 32, scale=0.2)
    x[-3:] = normal(3, 32)
    segments = at_the_end(rows, 3, [250])
    lora_shrink(x, a, segments, 4, out=h, config=config)
    close = Segments.from_sequences([3], [0], [250], [0.5], chunk_size=16, device=DEVICE)
    expected = reference.lora_shrink(kept(x, 3), a, close, 4).nan_to_num()  # the memory past the rank is zero
    assert_close(kept(h, 3), expected, DTYPE)


@pytest.mark.parametrize("config", [EXPAND, WHOLE], ids=["rank in steps", "whole rank"])
def test_rows_of_h_that_expand_reads(config: ExpandConfig) -> None:
    """The same rows again. GPU: 4.4 GB."""
    rows = 2**21 + 3
    h, base, b = reserved(rows, 4 * 256), reserved(rows, 4 * 8), normal(1, 4 * 8, 256, scale=0.06)
    h[-3:] = normal(3, 4 * 256)
    lora_expand(h, b, at_the_end(rows, 3, [200]), (0, 8, 16, 24, 32), base, config=config)
    close = Segments.from_sequences([3], [0], [200], [0.5], chunk_size=16, device=DEVICE)
    expected = reference.lora_expand(kept(h, 3), b, close, (0, 8, 16, 24, 32), torch.zeros_like(kept(base, 3)))
    assert_close(kept(base, 3), expected, DTYPE)


@pytest.mark.parametrize("op", ["expand", "add_lora"])
def test_rows_of_base_output_far_apart(op: str) -> None:
    """Row 4 of base_output begins at 2^31 + 64. GPU: 4.3 GB."""
    base = reserved(5, 48, stride=FAR // 4 + 16)
    x, h, a, b = normal(5, 24), normal(5, 16), normal(1, 16, 24, scale=0.2), normal(1, 48, 8, scale=0.3)
    segments = Segments.from_sequences([5], [0], [8], [-2.0], chunk_size=16, device=DEVICE)
    base.copy_(normal(5, 48, seed=1))
    before = base.clone()
    if op == "expand":
        lora_expand(h, b, segments, (0, 16, 48), base, config=EXPAND)
        expected = reference.lora_expand(h, b, segments, (0, 16, 48), before)
    else:
        add_lora(base, x, a, b, segments, (0, 16, 48), config=AddLoraConfig(ONE, WHOLE))
        expected = reference.add_lora(before, x, a, b, segments, (0, 16, 48))
    assert_close(base.clone(), expected, DTYPE)


def test_adapters_of_lora_a_far_apart() -> None:
    """Adapter 2^17 of 4 slices of rank 256, 16 columns of x. GPU: 4.3 GB."""
    loras = 2**17 + 1
    a, x = reserved(loras, 4 * 256, 16), normal(3, 16)
    a[-1] = normal(4 * 256, 16, scale=0.25)
    segments = at_the_end(3, 3, [255] * loras)
    h = lora_shrink(x, a, segments, 4, config=ONE)
    one = Segments.from_sequences([3], [0], [255], [0.5], chunk_size=16, device=DEVICE)
    expected = reference.lora_shrink(x, a[-1:], one, 4)
    assert_close(h[:, : 4 * 255], expected[:, : 4 * 255], DTYPE)


@pytest.mark.usefixtures("reserved_stages")
def test_rows_of_lora_a_far_apart() -> None:
    """Adapter 1 begins at 2^31 and has 1,024 rows of 2^21 columns, of which the last ones count. GPU: 8.6 GB."""
    wide = 2**21 + 8
    a, x = reserved(2, 4 * 256, wide), reserved(1, wide)
    x[:, -24:] = normal(1, 24)
    a[1, :, -24:] = normal(4 * 256, 24, scale=0.2)
    config = ShrinkConfig(16, 256, 1024, split_k=64, num_warps=8, num_stages=1)
    with interpreting.only_the_last_program() if DEVICE == "cpu" else contextlib.nullcontext():
        h = lora_shrink(x, a, at_the_end(1, 1, [256, 256]), 4, config=config)
    last = slice(3 * 256, None)
    assert_close(h[:, last], x[:, -24:].float() @ a[1, last, -24:].float().T, DTYPE)


@pytest.mark.parametrize("config", [EXPAND, WHOLE], ids=["rank in steps", "whole rank"])
def test_adapters_of_lora_b_far_apart(config: ExpandConfig) -> None:
    """Adapter 2^17 of rank 256, 64 columns of base_output. GPU: 4.3 GB."""
    loras = 2**17 + 1
    b, h, base = reserved(loras, 64, 256), normal(3, 2 * 256), normal(3, 64, seed=1)
    b[-1] = normal(64, 256, scale=0.06)
    before = base.clone()
    lora_expand(h, b, at_the_end(3, 3, [255] * loras), (0, 24, 64), base, config=config)
    one = Segments.from_sequences([3], [0], [255], [0.5], chunk_size=16, device=DEVICE)
    assert_close(base, reference.lora_expand(h, b[-1:], one, (0, 24, 64), before), DTYPE)


@pytest.mark.parametrize("slices", [1, 2])
def test_rows_of_lora_b_far_apart(slices: int) -> None:
    """Row 2^23 of rank 256: within a slice, and where a second slice begins. GPU: 4.4 GB."""
    wide, columns = 2**23, 48
    offsets = (0, *[wide][: slices - 1], wide + columns)
    b, base, h = reserved(1, wide + columns, 256), reserved(1, wide + columns), normal(1, slices * 256)
    b[0, wide:] = normal(columns, 256, scale=0.06)
    segments = Segments.from_sequences([1], [0], [250], [0.5], chunk_size=16, device=DEVICE)
    config = ExpandConfig(16, 256, 256, column_tiles=64, num_warps=8, num_stages=1)
    with interpreting.only_the_last_program() if DEVICE == "cpu" else contextlib.nullcontext():
        lora_expand(h, b, segments, offsets, base, config=config)
    first = 250 * (slices - 1)
    expected = 0.5 * h[:, first : first + 250].float() @ b[0, wide:, :250].float().T
    assert_close(base[:, wide:], expected, DTYPE)


def spacious(rank: int, used: int) -> Segments:
    """Segments with room for 2^21 positions, of which the first ones are used, one of them by the second adapter."""
    permutation = torch.zeros(2**21, dtype=torch.int32, device=DEVICE)
    permutation[:used] = torch.arange(used)

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    scalings = torch.tensor([0.5, -1.0], device=DEVICE)
    indptr, slots, ranks = numbers(0, used - 1, used), numbers(0, 1), numbers(rank, 256)
    return Segments(permutation, indptr, slots, ranks, scalings, 16, 2, used, active_adapters=2)


@pytest.mark.usefixtures("reserved_stages")
@pytest.mark.parametrize("op", ["shrink", "add_lora"])
def test_partials_of_a_later_split(op: str) -> None:
    """The second of two splits begins at 2^31 of the stage: written, and summed by either kernel. GPU: 17.2 GB."""
    x, a, b = normal(4, 64), normal(2, 4 * 256, 64, scale=0.12), normal(2, 4 * 8, 256, scale=0.06)
    segments, offsets = spacious(130, 4), (0, 8, 16, 24, 32)
    if op == "shrink":
        h = torch.zeros(4, 4 * 256, dtype=DTYPE, device=DEVICE)
        lora_shrink(x, a, segments, 4, out=h, config=SPLIT)
        assert_close(h, reference.lora_shrink(x, a, segments, 4).nan_to_num(), DTYPE)
        return
    for expand in (EXPAND, WHOLE):
        base = normal(4, 32, seed=1)
        expected = reference.add_lora(base, x, a, b, segments, offsets)
        add_lora(base, x, a, b, segments, offsets, config=AddLoraConfig(SPLIT, expand))
        assert_close(base, expected, DTYPE)


@pytest.mark.usefixtures("reserved_stages")
@pytest.mark.parametrize("op", ["shrink", "add_lora"])
def test_positions_of_a_stage(op: str) -> None:
    """Position 2^21 of a stage 1,024 wide, or of float32 partials: written by position, and read so. GPU: 17.2 GB."""
    before = 2**21
    permutation = torch.zeros(before + 3, dtype=torch.int32, device=DEVICE)
    permutation[before:] = torch.arange(3)

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    indptr, scalings = numbers(before, before + 3), torch.tensor([0.5], device=DEVICE)
    segments = Segments(permutation, indptr, numbers(0), numbers(200), scalings, 16, 1, 3)
    x, a, b, base = normal(3, 32), normal(1, 1024, 32, scale=0.2), normal(1, 32, 256, scale=0.06), normal(3, 32, seed=1)
    if op == "shrink":
        h = torch.zeros(3, 1024, dtype=DTYPE, device=DEVICE)
        lora_shrink(x, a, segments, 4, out=h, config=SPLIT)
        assert_close(h, reference.lora_shrink(x, a, segments, 4).nan_to_num(), DTYPE)
        return
    expected = reference.add_lora(base, x, a, b, segments, (0, 8, 16, 24, 32))
    add_lora(base, x, a, b, segments, (0, 8, 16, 24, 32), config=AddLoraConfig(ONE, EXPAND))
    assert_close(base, expected, DTYPE)


@pytest.mark.gpu
def test_everything_beyond_at_once() -> None:
    """x, lora_a, lora_b and base_output of a model's size, each beyond 2^31 elements, in full. GPU: 23 GB.

    90,000 rows of 24,576 in and out (4.4 GB each), 360 adapters of rank 256 and 2 slices (9.1 and 4.5 GB of weights).
    """
    rows, wide, rank, loras = 90_000, 24_576, 256, 360
    x, base, a = reserved(rows, wide), reserved(rows, wide), reserved(loras, 2 * rank, wide)
    b = reserved(loras, wide, rank)
    assert min(each.numel() for each in (x, base, a, b)) > FAR
    draw = torch.Generator(DEVICE).manual_seed(0)
    for tensor, scale in ((x, 1.0), (base, 1.0), (a, wide**-0.5), (b, rank**-0.5)):
        for part in tensor.split(100):
            part.normal_(0.0, scale, generator=draw)
    offsets = (0, wide // 2 + 8, wide)
    lens = [rows // loras] * loras
    segments = Segments.from_sequences(lens, range(loras), [rank, 200] * (loras // 2), [0.5] * loras, chunk_size=64)
    some = torch.tensor([0, 1, rows // 2, rows - 100, rows - 1], device=DEVICE)
    before = base[some].clone()
    add_lora(base, x, a, b, segments, offsets)
    slots = [int(row) // lens[0] for row in some]
    close = Segments.from_tokens(range(len(slots)), [[rank, 200][slot % 2] for slot in slots], [0.5] * len(slots))
    expected = reference.add_lora(before, x[some], a[slots], b[slots], close, offsets)
    assert_close(base[some], expected, DTYPE)
