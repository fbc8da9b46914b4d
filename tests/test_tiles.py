"""Tiles of several neighbouring segments: right wherever adapters change within them, and where segments are empty."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from batches import DEVICE, DTYPES, assert_close, make_batch
from csgmv import AddLoraConfig, ExpandConfig, Segments, ShrinkConfig, add_lora, footprint, reference, tiles

SHRINK = {"block_n": 32, "block_k": 32, "column_tiles": 2}
WAYS = {
    "rank in steps": {"block_n": 64, "block_k": 16},
    "one tile ahead": {"block_n": 32, "block_k": 64, "column_tiles": 2, "num_stages": 1},
    "pipelined": {"block_n": 64, "block_k": 64, "column_tiles": 2, "num_stages": 3},
    "pipelined, prefetched": {"block_n": 128, "block_k": 64, "num_stages": 2, "prefetch": True},
}
# Tokens of each of four adapters (or of fewer): one has none, one fills a tile, one ends within one …
BATCHES = {"a token each": 5, "short segments": 40, "several tiles": 300}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_m", [64, 256])
@pytest.mark.parametrize("chunk_size", [8, 24])
@pytest.mark.parametrize("num_tokens", BATCHES.values(), ids=BATCHES)
def test_one_tile_of_many_segments(num_tokens: int, chunk_size: int, block_m: int, dtype: torch.dtype) -> None:
    """Runs of one adapter become one tile, whatever their segments; several in one group are all found."""
    batch = make_batch([8, 3, 0, 16, 5], 16, 64, [64, 32], num_tokens, chunk_size=chunk_size, dtype=dtype)
    arguments = batch.base_output, batch.x, batch.lora_a, batch.lora_b, batch.segments, batch.slice_offsets
    expected = reference.add_lora(*arguments)
    ways = [{"split_k": 1}, {"split_k": 2}]
    if block_m == 64:  # each warp of one that shares steps has all of a tile
        ways.append({"num_warps": 2, "sliced_k": True})
    for way in ways:
        shrink = ShrinkConfig(block_m=block_m, **SHRINK, **way)
        config = AddLoraConfig(shrink, ExpandConfig(block_m=block_m, **WAYS["one tile ahead"]))
        result = add_lora(batch.base_output.clone(), *arguments[1:], config=config)
        assert_close(result, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_expand(way: dict, overlap: bool, dtype: torch.dtype) -> None:
    """Full and lower ranks, even and uneven widths, tiles below and above the chunk size."""
    for block_m in (16, 64):
        batch = make_batch([64, 3, 40], 64, 64, [256, 96, 8], 90, dtype=dtype)
        arguments = batch.base_output, batch.x, batch.lora_a, batch.lora_b, batch.segments, batch.slice_offsets
        config = AddLoraConfig(ShrinkConfig(block_m=block_m, **SHRINK), ExpandConfig(block_m=block_m, **way), overlap)
        result = add_lora(batch.base_output.clone(), *arguments[1:], config=config)
        assert_close(result, reference.add_lora(*arguments), dtype)


def test_empty_segments_at_the_tail() -> None:
    """Allocated Segments have more segments than a batch needs, and their last group is not a whole one."""
    segments = Segments.allocate(100, 5, chunk_size=16, device=DEVICE)
    segments.update_from_sequences([40, 0, 33], [4, 1, 0], [8, 16, 0, 4, 16], [1.0, -0.5, 1.0, 2.0, 0.25])
    batch = make_batch([8, 16, 0, 4, 16], 16, 64, [64, 32], 73)
    config = AddLoraConfig(
        ShrinkConfig(block_m=64, **SHRINK), ExpandConfig(block_m=128, **WAYS["pipelined"], prefetch=True)
    )
    rest = batch.x, batch.lora_a, batch.lora_b, segments, batch.slice_offsets
    result = add_lora(batch.base_output.clone(), *rest, config=config)
    assert_close(result, reference.add_lora(batch.base_output, *rest), torch.float16)


def test_more_segments_than_are_looked_at_in_one_step() -> None:
    """Runs that begin within a group are found wherever they are, and by one program each."""
    lens = [530, 1, 66, 0, 3, 41]
    ids = torch.repeat_interleave(torch.tensor([3, 0, 4, 1, 5, 2]), torch.tensor(lens))
    batch = make_batch([8, 3, 8, 5, 8, 1], 16, 8, [32], len(ids))
    segments = Segments.from_tokens(ids.tolist(), [8, 3, 8, 5, 8, 1], [1.0] * 6, chunk_size=1, device=DEVICE)
    assert segments.num_segments > tiles._SCANNED.value
    arguments = batch.base_output, batch.x, batch.lora_a, batch.lora_b, segments, batch.slice_offsets
    config = AddLoraConfig(ShrinkConfig(64, 16, 16, num_stages=1), ExpandConfig(256, 32, 16, num_stages=1))
    result = add_lora(batch.base_output.clone(), *arguments[1:], config=config)
    assert_close(result, reference.add_lora(*arguments), torch.float16)


@pytest.mark.parametrize(
    ("chunk_size", "block_m", "dealt"),
    [
        (16, 16, (1, 10, 1)),
        (16, 64, (4, 3 + 2, 1)),
        (24, 32, (1, 7, 1)),
        (24, 64, (2, 4 + 2, 1)),
        (24, 16, (1, 7, 2)),
        (64, 16, (1, 3, 4)),
        (8, 16, (1, 19, 1)),
        (8, 64, (4, 5 + 2, 1)),
        (8, 256, (16, 2 + 2, 1)),
        (128, 256, (2, 1 + 1, 1)),
        (200, 256, (1, 1, 1)),
        (200, 64, (1, 1, 3)),
    ],
)
def test_deal(chunk_size: int, block_m: int, dealt: tuple[int, int, int]) -> None:
    """150 rows of one of three slots: segments of a group, programs for groups and for runs within, tiles of a run."""
    segments = Segments.from_sequences([150], [0], [8, 8, 8], [1.0] * 3, chunk_size=chunk_size, device="cpu")
    assert segments.active_adapters == 1
    segments = dataclasses.replace(segments, active_adapters=0)  # as where the host does not know
    group, programs, row_tiles = dealt
    assert footprint.group_size(block_m, chunk_size) == group
    assert tiles.deal(segments, group, block_m) == (programs, row_tiles)
    assert programs * row_tiles * block_m >= 150


def test_one_adapter_has_no_runs_within_a_group() -> None:
    """Whether it has the only slot, or the host knows that it is the only one with rows; nor have none any."""
    for slots in (1, 7):
        one = Segments.from_sequences([150], [0], [8] * slots, [1.0] * slots, chunk_size=16, device="cpu")
        assert tiles.deal(one, 4, 64) == (3, 1)
    allocated = Segments.allocate(150, 3, chunk_size=16, device="cpu")
    before = tiles.deal(allocated, 4, 64)
    allocated.update_from_sequences([150], [0], [8], [1.0])
    assert tiles.deal(allocated, 4, 64) == before == (3 + 2, 1)
    none = Segments.from_sequences([0], [0], [8, 8], [1.0] * 2, chunk_size=16, device="cpu")
    assert tiles.deal(none, 4, 64) == (0, 1)
