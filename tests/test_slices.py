"""Slices in tensors of their own give the bits that they give as parts of one, and nothing beyond them is written."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from batches import DEVICE, DTYPES, NAN
from csgmv import (
    AddLoraConfig,
    ExpandConfig,
    Segments,
    ShrinkConfig,
    add_lora,
    lora_expand,
    lora_shrink,
    reference,
    slices,
)

DTYPE, MAX_RANK, INPUT_DIM, WIDTHS = DTYPES[0], 16, 40, (24, 8, 16)
OFFSETS = (0, *itertools.accumulate(WIDTHS))
ROWS = 20
# Which of lora_a, h, lora_b and base_output are apart: one of them, or all.
FORMS = [tuple(at == one for at in range(4)) for one in range(4)] + [(True,) * 4]
CONFIGS = {
    "the table's": None,
    "whole": AddLoraConfig(ShrinkConfig(16, 64, 16, num_stages=2), ExpandConfig(16, 16, 16)),
    "partials": AddLoraConfig(ShrinkConfig(16, 16, 16, 2, split_k=2, num_stages=2), ExpandConfig(16, 16, 16, 2)),
}


class Layer:
    """A layer's tensors in both forms; NaN past an adapter's rank."""

    def __init__(self, ranks: list[int], padded: bool) -> None:
        draw = torch.Generator().manual_seed(sum(ranks))
        self.ranks, self.padded = ranks, padded
        self.segments = Segments.from_sequences([7, 5, 3, 5], [0, 1, None, 2], ranks, [1.0, 0.5, -2.0], device=DEVICE)
        self.x = torch.randn(ROWS, INPUT_DIM, generator=draw)
        self.a = [torch.randn(3, MAX_RANK, INPUT_DIM, generator=draw) / 6 for _ in WIDTHS]
        self.b = [torch.randn(3, width, MAX_RANK, generator=draw) / 4 for width in WIDTHS]
        self.base = torch.randn(ROWS, OFFSETS[-1], generator=draw)
        for slot, rank in enumerate(ranks):
            for a, b in zip(self.a, self.b):
                a[slot, rank:] = NAN
                b[slot, :, rank:] = NAN
        whole = torch.full((3, 3 * MAX_RANK, INPUT_DIM), NAN)
        for slot, rank in enumerate(ranks):
            for i, a in enumerate(self.a):
                first = i * (MAX_RANK if padded else rank)
                whole[slot, first : first + rank] = a[slot, :rank]
        self.whole_a, self.whole_b = self.on_device(whole), self.on_device(torch.cat(self.b, 1))
        self.x = self.on_device(self.x)

    @staticmethod
    def on_device(tensor: torch.Tensor) -> torch.Tensor:
        """In the dtype of the tests."""
        return tensor.to(DEVICE, DTYPE)

    def lora_a(self, apart: bool) -> Any:
        """As the operations take it."""
        return tuple(map(self.on_device, self.a)) if apart else self.whole_a

    def lora_b(self, apart: bool) -> Any:
        """As the operations take it."""
        return tuple(map(self.on_device, self.b)) if apart else self.whole_b

    def output(self, apart: bool) -> Any:
        """Rows of slices that are apart are strided, each by a length of its own."""
        if not apart:
            return self.on_device(self.base)
        made = []
        for more, (start, end) in enumerate(itertools.pairwise(OFFSETS), 1):
            memory = torch.full((ROWS, end - start + 8 * more), NAN, dtype=DTYPE, device=DEVICE)
            memory[:, : end - start] = self.base[:, start:end].to(DEVICE, DTYPE)
            made.append(memory[:, : end - start])
        return tuple(made)

    def h(self, apart: bool) -> Any:
        """Where shrink may write."""
        shape = (ROWS, MAX_RANK) if apart else (ROWS, 3 * MAX_RANK)
        made = tuple(torch.full(shape, NAN, dtype=DTYPE, device=DEVICE) for _ in WIDTHS[: 3 if apart else 1])
        return made if apart else made[0]


def together(output: Any) -> torch.Tensor:
    return torch.cat(output, 1) if isinstance(output, tuple) else output


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("ranks", [[16, 5, 0], [16, 16, 16]], ids=str)
def test_the_same_bits_in_every_form(ranks: list[int], padded: bool, config: AddLoraConfig | None) -> None:
    """Of every operand by itself, and of all; rows without an adapter and columns past a rank stay as they were."""
    layer = Layer(ranks, padded)
    shrink, expand = (None, None) if config is None else (config.shrink, config.expand)
    for_h = {"padded": padded, "config": shrink}
    for_base = {"padded": padded, "config": expand}
    h = lora_shrink(layer.x, layer.whole_a, layer.segments, 3, out=layer.h(False), **for_h)
    expanded = lora_expand(h, layer.whole_b, layer.segments, OFFSETS, layer.output(False), **for_base)
    more: Any = {"padded": padded, "config": config}
    weights = layer.whole_a, layer.whole_b
    added = add_lora(layer.output(False), layer.x, *weights, layer.segments, OFFSETS, **more)
    assert torch.isfinite(added).all()
    for a_apart, h_apart, b_apart, base_apart in FORMS:
        a, b, out = layer.lora_a(a_apart), layer.lora_b(b_apart), layer.h(h_apart)
        assert lora_shrink(layer.x, a, layer.segments, 3, out=out, **for_h) is out
        assert_same_h(layer, out, h)
        base = layer.output(base_apart)
        assert lora_expand(out, b, layer.segments, OFFSETS, base, **for_base) is base
        assert torch.equal(together(base), expanded)
        base = layer.output(base_apart)
        assert add_lora(base, layer.x, a, b, layer.segments, OFFSETS, **more) is base
        assert torch.equal(together(base), added)


def assert_same_h(layer: Layer, got: Any, wanted: torch.Tensor) -> None:
    """Number by number, NaN where nothing was to be written."""
    if not isinstance(got, tuple):
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
        return
    slots = [0] * 7 + [1] * 5 + [None] * 3 + [2] * 5
    for row, slot in enumerate(slots):
        rank = 0 if slot is None else layer.ranks[slot]
        for i, part in enumerate(got):
            first = i * (MAX_RANK if layer.padded else rank)
            assert torch.equal(part[row, :rank], wanted[row, first : first + rank])
            assert part[row, rank:].isnan().all()


@pytest.mark.parametrize("padded", [True, False])
def test_the_reference_takes_every_form(padded: bool) -> None:
    """Of weights and base; its h is of all slices together."""
    layer = Layer([16, 5, 0], padded)
    offsets = OFFSETS
    wanted = reference.add_lora(
        layer.output(False), layer.x, layer.whole_a, layer.whole_b, layer.segments, offsets, padded=padded
    )
    for forms in itertools.product((False, True), repeat=3):
        a, b, base = layer.lora_a(forms[0]), layer.lora_b(forms[1]), layer.output(forms[2])
        got = reference.add_lora(base, layer.x, a, b, layer.segments, offsets, padded=padded)
        assert isinstance(got, tuple) == forms[2]
        torch.testing.assert_close(together(got), wanted)


def test_slices_that_a_kernel_takes() -> None:
    """One, or one for each and the first again for those that there are not; how far apart all begin."""
    whole = torch.zeros(64, dtype=torch.float16)
    assert slices.tensors(whole) == slices.tensors((whole,)) == (whole, None, None, None)
    parts = whole[:16], whole[16:], whole[24:]
    assert slices.tensors(parts) == (*parts, parts[0])
    assert [slices.apart_by(each) for each in (whole, (whole,), parts, (whole, whole[1:]), (whole, whole[4:]))] == [
        0, 0, 16, 2, 8,
    ]  # fmt: skip
