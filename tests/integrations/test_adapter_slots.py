"""Slots are given and freed; each row's tensors follow in place."""

from __future__ import annotations

import pytest
import torch

from csgmv.integrations.adapter_slots import AdapterSlots
from csgmv.integrations.peft_config import Size


def test_rows_follow_what_slots_hold() -> None:
    """Ranks, scalings, masks, and which rows are alike; tensors that were handed out change with them."""
    slots = AdapterSlots(3, torch.device("cpu"))
    assert [*slots.add_rows(2), *slots.add_rows(1)] == [0, 1, 2]
    ranks, scalings = slots.row(1)
    assert slots.alike == [0, 0, 0]
    slots.put("a", slots.free(), {0: Size(4, 0.5), 1: Size(8, 2.0)})
    slots.put("b", slots.free(), {1: Size(2, 1.0), 2: Size(16, 1.0)})
    assert (ranks.tolist(), scalings.tolist()) == ([8, 2, 0], [2.0, 1.0, 0.0])
    assert all(tensor.data_ptr() % 16 == 0 and tensor.is_contiguous() for row in range(3) for tensor in slots.row(row))
    assert slots.masks == [0b01, 0b11, 0b10]
    assert slots.alike == [0, 1, 2]
    assert slots.largest_ranks() == [8, 16, 0]
    slots.take("b")
    assert (ranks.tolist(), slots.free(), slots.of) == ([8, 0, 0], 1, {"a": 0})
    slots.put("c", 1, {0: Size(4, 0.5), 2: Size(4, 0.5)})
    slots.put("d", 2, {})
    with pytest.raises(ValueError, match="expected at most max_loras = 3 adapters at a time: remove one first"):
        slots.free()


def test_rows_with_the_same_ranks_and_scalings_are_alike() -> None:
    """They need one set of tensors a batch."""
    slots = AdapterSlots(1, torch.device("cpu"))
    slots.add_rows(4)
    slots.put("a", 0, {0: Size(4, 0.5), 1: Size(4, 1.0), 3: Size(4, 1.0)})
    assert slots.alike == [0, 1, 2, 1]
