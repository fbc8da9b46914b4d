"""sglang's LoRABatchInfo as Segments: without copies, once a batch, whatever the batch is for."""

from __future__ import annotations

import pytest
import torch

from batches import assert_close
from csgmv import ExpandConfig, ShrinkConfig, lora_expand, lora_shrink, reference, tiles
from csgmv.integrations import lora_batch_info
from sglang_batches import DEVICE, IDS, OFFSETS, batch_info, tensors


def test_segments_share_the_tensors_and_count_the_capacity_in_a_graph():
    """No copies: sglang refills its tensors in place. With use_cuda_graph the count is weight_indices' length."""
    for static in (False, True):
        info = batch_info(static=static)
        segments = lora_batch_info.segments(info)
        for name in ("permutation", "seg_indptr", "weight_indices", "lora_ranks", "scalings"):
            assert getattr(segments, name) is getattr(info, name)
        assert segments.chunk_size == 16
        assert segments.num_tokens == info.permutation.shape[0]
        assert segments.num_segments == (info.weight_indices.shape[0] if static else info.num_segments)
    assert segments.num_segments > info.num_segments


def test_segments_are_made_once_a_batch(monkeypatch):
    """The same until an attribute is replaced by another value or tensor; two batches do not disturb each other."""
    monkeypatch.setattr(lora_batch_info, "_batches", {})  # with room for both
    first, second = batch_info(), batch_info(static=True)
    made = lora_batch_info.segments(first), lora_batch_info.segments(second)
    for _ in range(3):
        assert (lora_batch_info.segments(first), lora_batch_info.segments(second)) == made
    replaced = {name: getattr(first, name).clone() for name in ("permutation", "seg_indptr", "weight_indices")}
    replaced |= {name: getattr(first, name).clone() for name in ("lora_ranks", "scalings")}
    replaced |= {"num_segments": first.num_segments - 1, "max_len": 32, "use_cuda_graph": True}
    for name, value in replaced.items():
        before = lora_batch_info.segments(first)
        setattr(first, name, value)
        after = lora_batch_info.segments(first)
        assert after is not before
        assert after is lora_batch_info.segments(first)
        counted = first.weight_indices.shape[0] if first.use_cuda_graph else first.num_segments
        assert (after.num_segments, after.chunk_size) == (counted, first.max_len)
        for tensor in ("permutation", "seg_indptr", "weight_indices", "lora_ranks", "scalings"):
            assert getattr(after, tensor) is getattr(first, tensor)
    first.max_len = None
    with pytest.raises(ValueError, match="max_len"):
        lora_batch_info.segments(first)


def test_few_batches_are_kept():
    """A server makes a new one for every step; an id that comes again is never taken for the batch that had it."""
    for count in range(1, 40):
        info = batch_info(IDS[:count] * 2)
        assert lora_batch_info.segments(info).num_tokens == info.permutation.shape[0]
        assert len(lora_batch_info._batches) <= lora_batch_info._MOST_BATCHES


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (
            "lora_ranks",
            torch.tensor([8, 8]),
            TypeError,
            r"\.lora_ranks: expected torch\.int32, got torch\.int64",
        ),
        (
            "scalings",
            torch.tensor([1.0]).double(),
            TypeError,
            r"\.scalings: expected torch\.float32, got .*64",
        ),
        ("permutation", None, ValueError, r"batch_info\.permutation: expected a tensor, got None"),
        ("max_len", None, ValueError, r"batch_info\.max_len: expected the chunk size, got None"),
    ],
)
def test_a_batch_info_of_another_kind_is_refused(name, value, error, message):
    """Another backend's LoRABatchInfo has the same attributes with other contents: the message says which."""
    info = batch_info()
    setattr(info, name, value)
    with pytest.raises(error, match=message):
        lora_batch_info.segments(info)


def test_a_graphs_grid_is_no_larger_than_its_rows_can_fill():
    """As many segments as x has rows, where that is less than the capacity; eager batches have what they have."""
    static, eager = batch_info(static=True), batch_info()
    capacity = static.weight_indices.shape[0]
    assert capacity > 2
    for rows in (2, capacity, capacity + 1, None):
        made = lora_batch_info.segments(static, rows)
        assert made.num_segments == (capacity if rows is None else min(rows, capacity))
        assert made is lora_batch_info.segments(static, rows)
        assert lora_batch_info.segments(eager, rows).num_segments == eager.num_segments


def test_an_lm_heads_rows_need_not_be_sorted_by_adapter():
    """There sglang keeps the order of the requests: with tiles of several segments no run of an adapter is missed."""
    slots = [2, 0, 3, 0, 2, 3, 2, 0, 3, 0, 2, 0]
    info = batch_info()
    x, lora_a, lora_b, _ = tensors()
    rows = len(slots)
    info.permutation = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    info.seg_indptr = torch.arange(rows + 1, dtype=torch.int32, device=DEVICE)
    info.weight_indices = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
    info.num_segments = info.expected_tokens = rows
    x = torch.cat((x, x))[:rows]
    segments = lora_batch_info.segments(info)
    assert tiles.deal(segments, 4, 64)[0] >= rows
    h = torch.full((rows, 3 * 16), float("nan"), dtype=x.dtype, device=DEVICE)
    lora_shrink(x, lora_a, segments, 3, out=h, config=ShrinkConfig(block_m=64, block_k=32))
    assert_close(h, reference.lora_shrink(x, lora_a, segments, 3), x.dtype)
    base = torch.zeros(rows, OFFSETS[-1], dtype=x.dtype, device=DEVICE)
    want = reference.lora_expand(h, lora_b, segments, OFFSETS, base)
    lora_expand(h, lora_b, segments, OFFSETS, base, config=ExpandConfig(block_m=64))
    assert_close(base, want, x.dtype)
