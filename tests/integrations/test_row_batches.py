"""Rows of a model's batch become segments of a layer's rows."""

from __future__ import annotations

import pytest
import torch

from csgmv.integrations.adapter_slots import AdapterSlots
from csgmv.integrations.peft_config import Size
from csgmv.integrations.row_batches import RowBatch, StaticBatch
from csgmv.segments import Segments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def slots() -> AdapterSlots:
    made = AdapterSlots(3, DEVICE)
    made.add_rows(3)
    made.put("a", 0, {0: Size(4, 0.5), 1: Size(4, 0.5)})
    made.put("b", 1, {0: Size(8, 2.0), 1: Size(8, 2.0), 2: Size(2, 1.0)})
    return made


def rows(segments: Segments) -> dict[int, list[int]]:
    """Slot → its rows."""
    starts, found = segments.seg_indptr.tolist(), {}
    for slot, start, end in zip(segments.weight_indices.tolist(), starts, starts[1:]):
        found.setdefault(slot, []).extend(segments.permutation[start:end].tolist())
    return {slot: numbers for slot, numbers in found.items() if numbers}


@pytest.mark.parametrize("static", [False, True])
def test_rows_of_tokens(static: bool) -> None:
    """A row's tokens follow one another; twice as many rows as names are two beams each."""
    if static:
        batch = StaticBatch(slots(), 4, 3)
        assert rows(batch.segments(torch.Size([4, 3, 9]), 0)) == {}
        batch.update(["b", None, None, "a"])
        assert rows(batch.segments(torch.Size([4, 3, 9]), 0)) == {1: [0, 1, 2], 0: [9, 10, 11]}
        batch.update(["a", "b"])
        assert rows(batch.segments(torch.Size([4, 3, 9]), 0)) == {0: [*range(6)], 1: [*range(6, 12)]}
        return
    batch = RowBatch(slots(), ["b", None, "a", "b"])
    assert rows(batch.segments(torch.Size([4, 2, 9]), 0)) == {1: [0, 1, 6, 7], 0: [4, 5]}
    assert rows(batch.segments(torch.Size([8, 1, 9]), 0)) == {1: [0, 1, 6, 7], 0: [4, 5]}
    assert rows(batch.segments(torch.Size([4, 1, 2, 9]), 0)) == {1: [0, 1, 6, 7], 0: [4, 5]}
    assert rows(batch.segments(torch.Size([4, 0, 9]), 0)) == {}


def test_layers_share_segments_but_not_ranks() -> None:
    """Made once for each shape and each kind of layer; one in which no adapter has a rank gets none."""
    batch = RowBatch(slots(), ["a", "b", None])
    shape = torch.Size([3, 1, 9])
    first, same, other = (batch.segments(shape, row) for row in range(3))
    assert first is same is batch.segments(shape, 0) is batch.segments(torch.Size([3, 1, 5]), 1)
    assert other.permutation is first.permutation
    assert (first.lora_ranks.tolist(), first.scalings.tolist()) == ([4, 8, 0], [0.5, 2.0, 0.0])
    assert (other.lora_ranks.tolist(), other.scalings.tolist()) == ([0, 2, 0], [0.0, 1.0, 0.0])
    assert RowBatch(slots(), ["a", None]).segments(torch.Size([2, 1, 9]), 2) is None
    assert RowBatch(slots(), [None]).mask == 0


def test_a_refused_update_changes_nothing() -> None:
    """Names that are unknown, or do not divide the rows."""
    batch = StaticBatch(slots(), 4, 1)
    batch.update(["a", "b"])
    for names in (["a", "c"], ["a"] * 3, []):
        with pytest.raises(ValueError, match="expected"):
            batch.update(names)
    assert rows(batch.segments(torch.Size([4, 1, 9]), 0)) == {0: [0, 1], 1: [2, 3]}
    assert batch.ids == [0, 1]
