"""add_lora is shrink and expand in one call: right on every kind of batch, and the same bits every time."""

from __future__ import annotations

import pytest
import torch

from batches import DEVICE, DTYPES, Batch, assert_close, make_batch
from csgmv import AddLoraConfig, ExpandConfig, Segments, ShrinkConfig, add_lora, lora_expand, lora_shrink, reference

ONE_PASS = ShrinkConfig(block_m=16, block_n=32, block_k=32, column_tiles=2)
SPLIT = ShrinkConfig(block_m=16, block_n=16, block_k=32, split_k=4)
SLICED = ShrinkConfig(block_m=16, block_n=32, block_k=128, column_tiles=2, num_warps=8, sliced_k=True)
SLICED_SPLIT = ShrinkConfig(block_m=16, block_n=16, block_k=32, split_k=3, num_warps=2, sliced_k=True)
WHOLE = ExpandConfig(block_m=16, block_n=32, block_k=64, column_tiles=2)
STEPS = ExpandConfig(block_m=32, block_n=64, block_k=16)
CONFIGS = {
    "default": None,
    "one pass, whole rank": AddLoraConfig(ONE_PASS, WHOLE),
    "one pass, rank in steps": AddLoraConfig(ONE_PASS, STEPS),
    "split, whole rank": AddLoraConfig(SPLIT, WHOLE),
    "split, rank in steps, overlapped": AddLoraConfig(SPLIT, STEPS, overlap=True),
    "split, whole rank, overlapped": AddLoraConfig(SPLIT, WHOLE, overlap=True),
    "sliced, whole rank": AddLoraConfig(SLICED, WHOLE),
    "sliced and split, rank in steps": AddLoraConfig(SLICED_SPLIT, STEPS),
    "sliced and split, whole rank, overlapped": AddLoraConfig(SLICED_SPLIT, WHOLE, overlap=True),
}
BATCHES = {
    "mixed ranks, one empty slot": dict(
        ranks=[8, 3, 0, 16], max_rank=16, input_dim=64, widths=[64, 32, 32], num_tokens=37
    ),
    "odd dimensions": dict(ranks=[12, 5, 24], max_rank=24, input_dim=101, widths=[40, 0, 7, 9], num_tokens=29, extra=3),
    "long rows": dict(ranks=[16, 7, 16], max_rank=16, input_dim=300, widths=[32, 8], num_tokens=21),
    "full rank": dict(ranks=[64, 64], max_rank=64, input_dim=128, widths=[128], num_tokens=70, chunk_size=64),
    "padded": dict(ranks=[40, 8, 48], max_rank=48, input_dim=64, widths=[16, 64], num_tokens=33, padded=True),
}


def added(batch: Batch, config: AddLoraConfig | None) -> torch.Tensor:
    """The result, on a copy of the base."""
    arguments = batch.base_output.clone(), batch.x, batch.lora_a, batch.lora_b, batch.segments, batch.slice_offsets
    return add_lora(*arguments, padded=batch.padded, config=config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", BATCHES.values(), ids=BATCHES)
def test_agrees_with_the_reference(kind: dict, config: AddLoraConfig | None, dtype: torch.dtype) -> None:
    """Every kind of batch, every way of launching the pair."""
    batch = make_batch(**kind, dtype=dtype)
    arguments = batch.base_output, batch.x, batch.lora_a, batch.lora_b, batch.segments, batch.slice_offsets
    assert_close(added(batch, config), reference.add_lora(*arguments, padded=batch.padded), dtype)


def test_is_shrink_then_expand() -> None:
    """With h rounded once to x's dtype in both, the pair gives the bits of the two calls."""
    batch = make_batch([8, 16, 3], 16, 64, [64, 32], 41)
    h = lora_shrink(batch.x, batch.lora_a, batch.segments, 2, config=ONE_PASS)
    base = batch.base_output.clone()
    two = lora_expand(h, batch.lora_b, batch.segments, batch.slice_offsets, base, config=WHOLE)
    assert torch.equal(two, added(batch, AddLoraConfig(ONE_PASS, WHOLE)))


@pytest.mark.parametrize("name", ["split, whole rank", "split, whole rank, overlapped", "sliced, whole rank"])
def test_same_inputs_same_bits(name: str) -> None:
    """Partials are summed in their order, whenever the programs that made them ran."""
    batch = make_batch([16, 7, 16], 16, 256, [64, 32], 90)
    first = added(batch, CONFIGS[name])
    for _ in range(3 if DEVICE == "cpu" else 200):
        assert torch.equal(added(batch, CONFIGS[name]), first)


def test_rows_without_an_adapter_keep_their_bits() -> None:
    """Ids of -1, None and slots of rank 0."""
    batch = make_batch([16, 0], 16, 64, [32], 12)
    batch.segments = Segments.from_tokens([0, None, -1, 1] * 3, [16, 0], [1.0, 1.0], chunk_size=16, device=DEVICE)
    batch.base_output[1::2] = batch.base_output[2::4] = float("nan")
    got = added(batch, None)
    assert got[::4].isfinite().all()
    kept = [row for row in range(12) if row % 4]
    assert torch.equal(got[kept].view(torch.int16), batch.base_output[kept].view(torch.int16))


def test_batches_without_work() -> None:
    """No rows, or none that uses an adapter."""
    batch = make_batch([4], 4, 32, [8], 6)
    batch.segments = Segments.from_tokens([-1] * 6, [4], [1.0], device=DEVICE)
    assert torch.equal(added(batch, None), batch.base_output)
    empty = make_batch([4], 4, 32, [8], 0)
    assert added(empty, None).shape == (0, 8)


def test_batch_and_segments_must_belong_together() -> None:
    """Too few rows, too few slots or too low a max_rank would have the kernels read and write out of bounds."""
    batch = make_batch([4, 4], 4, 32, [8], 6)
    for segments, message in (
        (
            Segments.from_sequences([7], [0], [4, 4], [1.0, 1.0], device=DEVICE),
            "expected those of at most 6 tokens, got 7",
        ),
        (Segments.from_sequences([6], [0], [4] * 3, [1.0] * 3, device=DEVICE), "expected at most 2 adapter slots"),
        (
            Segments.from_sequences([6], [0], [4, 5], [1.0] * 2, device=DEVICE),
            "expected ranks of at most max_rank 4, got 5",
        ),
    ):
        batch.segments = segments
        with pytest.raises(ValueError, match=f"segments: {message}"):
            added(batch, None)
    static = Segments.allocate(64, 2, device=DEVICE)
    static.update_from_tokens([0] * 7, [4, 4], [1.0, 1.0])
    batch.segments = static
    with pytest.raises(ValueError, match="expected those of at most 6 tokens, got 7"):
        added(batch, None)
    static.update_from_tokens([0] * 6, [4, 4], [1.0, 1.0])
    assert added(batch, None).isfinite().all()


def test_offsets_and_base_are_checked_first() -> None:
    """By their own names; whatever has an index is an integer, and the next call is none the worse for a bad one."""
    batch = make_batch([4, 4], 4, 32, [8], 6)
    good = batch.slice_offsets
    for offsets, message in ((None, "host integers"), ((0, 8.0), "host integers"), (8, "host integers")):
        batch.slice_offsets = offsets  # type: ignore[assignment]
        with pytest.raises(TypeError, match=f"slice_offsets: expected a sequence of {message}"):
            added(batch, None)
    batch.slice_offsets = (0,)
    with pytest.raises(ValueError, match="slice_offsets: expected 2 to 5 offsets"):
        added(batch, None)
    batch.slice_offsets = tuple(torch.tensor(good).numpy())
    numpys = added(batch, None)
    batch.slice_offsets = good
    assert torch.equal(added(batch, None), numpys)
    batch.base_output = batch.base_output[:1].expand(6, -1)
    with pytest.raises(ValueError, match="base_output: expected rows that do not overlap"):
        add_lora(batch.base_output, batch.x, batch.lora_a, batch.lora_b, batch.segments, good)


@pytest.mark.skipif(DEVICE == "cuda", reason="is about the interpreter")
def test_bfloat16_is_not_interpreted() -> None:
    """Triton's interpreter takes its bits for integers."""
    batch = make_batch([4], 4, 32, [8], 6, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="x: expected float16 or float32, since Triton's interpreter"):
        added(batch, None)


@pytest.mark.gpu
def test_graph_replays_with_other_segments() -> None:
    """Captured with some segments, replayed with more, fewer, one and none: the bits of eager calls."""
    num_tokens, ranks, scalings = 80, [16, 16, 8], [1.0, -0.5, 2.0]
    batch = make_batch(ranks, 16, 128, [64, 32], num_tokens)
    batch.segments = static = Segments.allocate(num_tokens, 3, chunk_size=16, device=DEVICE)
    fresh, base = batch.base_output.clone(), batch.base_output
    call = (base, batch.x, batch.lora_a.nan_to_num(), batch.lora_b.nan_to_num(), static, batch.slice_offsets)
    static.update_from_tokens([0, 1] * 40, ranks, scalings)
    add_lora(*call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add_lora(*call)
    for ids in ([0, 1, 2, -1] * 20, [2] * 80, [1] + [-1] * 79, [-1] * 80, [0, 1] * 40):
        static.update_from_tokens(ids, ranks, scalings)
        base.copy_(fresh)
        add_lora(*call)
        eager = base.clone()
        base.copy_(fresh)
        graph.replay()
        assert torch.equal(base, eager)
        assert torch.equal(base, fresh) == (set(ids) == {-1})


@pytest.mark.gpu
def test_offsets_beyond_int32() -> None:
    """Row 87,400 of a base 24,576 wide begins past 2^31 elements."""
    rows, width = 87_500, 24_576
    base = torch.zeros(rows, width, device=DEVICE, dtype=torch.float16)
    x = torch.randn(rows, 32, device=DEVICE, dtype=torch.float16)
    a = torch.randn(1, 16, 32, device=DEVICE, dtype=torch.float16) / 6
    b = torch.randn(1, width, 16, device=DEVICE, dtype=torch.float16) / 4
    segments = Segments.from_sequences([rows], [0], [16], [0.5], chunk_size=64, device=DEVICE)
    add_lora(base, x, a, b, segments, (0, width))
    for part in (slice(0, 64), slice(rows - 64, rows)):
        expected = 0.5 * (x[part].float() @ a[0].float().T).half().float() @ b[0].float().T
        assert_close(base[part], expected, torch.float16)


@pytest.mark.gpu
def test_weights_beyond_int32() -> None:
    """The last of 56 adapters at rank 256 for a vocabulary of 152,064 begins past 2^31 elements of lora_b."""
    loras, rank, width = 56, 256, 152_064
    b = torch.randn(1, width, rank, device=DEVICE, dtype=torch.float16).div_(16).repeat(loras, 1, 1)
    b[:-1, :64] = float("nan")
    a = torch.randn(loras, rank, 64, device=DEVICE, dtype=torch.float16) / 8
    x = torch.randn(20, 64, device=DEVICE, dtype=torch.float16)
    base = torch.zeros(20, width, device=DEVICE, dtype=torch.float16)
    segments = Segments.from_sequences([20], [loras - 1], [rank] * loras, [1.0] * loras, chunk_size=16, device=DEVICE)
    add_lora(base, x, a, b, segments, (0, width))
    expected = (x.float() @ a[-1].float().T).half().float() @ b[-1].float().T
    assert_close(base, expected, torch.float16)
