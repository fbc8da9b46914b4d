"""The same call gives the same bits a thousand times over, eager and from a graph, whatever else the GPU is doing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from csgmv import (
    AddLoraConfig,
    ExpandConfig,
    Segments,
    ShrinkConfig,
    add_lora,
    lora_expand,
    lora_shrink,
    rules,
)
from fences import bits

pytestmark = pytest.mark.gpu

TIMES = 1000
LAYERS = {"decode": 40, "prefill": 1500}  # rows
SPLIT = ShrinkConfig(16, 32, 128, split_k=8, num_stages=3)
SLICED = ShrinkConfig(16, 32, 256, num_stages=3, sliced_k=True)
GROUPED = ShrinkConfig(64, 64, 64, column_tiles=3, num_stages=4)
WHOLE = ExpandConfig(16, 128, 64, column_tiles=4, num_stages=1)
PIPELINED = ExpandConfig(64, 128, 64, column_tiles=4, num_stages=3, prefetch=True)
WAYS: dict[str, AddLoraConfig | None] = {
    "the table's": None,
    "split": AddLoraConfig(SPLIT, WHOLE),
    "split, overlapped": AddLoraConfig(SPLIT, PIPELINED, overlap=True),
    "sliced, overlapped": AddLoraConfig(SLICED, WHOLE, overlap=True),
    "tiles of several segments": AddLoraConfig(GROUPED, PIPELINED),
}


class Layer:
    """Tensors of one layer for one batch, and an operation on them that begins with the same base each time."""

    def __init__(self, op: str, config: AddLoraConfig | None, rows: int, seed: int = 0) -> None:
        draw = torch.Generator("cuda").manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*shape, generator=draw, device="cuda").mul_(scale).bfloat16()

        self.x, self.h, self.base = normal(rows, 1024), normal(rows, 192), normal(rows, 4096)
        self.a, self.b = normal(8, 192, 1024, scale=1 / 32), normal(8, 4096, 64, scale=1 / 8)
        ids = [row % 9 - 1 if row % 2 else row * 8 // rows for row in range(rows)]
        self.segments = Segments.allocate(rows + 60, 8, chunk_size=16)
        self.segments.update_from_tokens(ids, [64, 64, 64, 32, 64, 16, 64, 7], [0.5, -1.0, 2.0, 1.0] * 2)
        self.op, self.config = op, config
        self.output = torch.zeros_like(self.h if op == "shrink" else self.base)

    def run(self) -> None:
        """Into `output`."""
        offsets, config = (0, 2048, 3072, 4096), self.config
        part: Any = config and getattr(config, self.op, config)
        if self.op == "shrink":
            self.output.zero_()
            lora_shrink(self.x, self.a, self.segments, 3, out=self.output, config=part)
            return
        self.output.copy_(self.base)
        if self.op == "expand":
            lora_expand(self.h, self.b, self.segments, offsets, self.output, config=part)
        else:
            add_lora(self.output, self.x, self.a, self.b, self.segments, offsets, config=part)


class Busy:
    """Other streams with work of their own: products, copies, and launches of the same kernels on other batches."""

    def __init__(self) -> None:
        self._streams = [torch.cuda.Stream() for _ in range(3)]
        square = torch.randn(6144, 6144, device="cuda", dtype=torch.bfloat16)  # 0.6 ms: longer than the host takes
        other, copied = Layer("add_lora", WAYS["split"], 700, seed=5), torch.empty_like(square)
        self._work: list[Callable[[], object]] = [
            lambda: square @ square,
            lambda: copied.copy_(square),
            other.run,
        ]
        torch.cuda.synchronize()

    def more(self) -> None:
        """Some more of it, on each stream; the host does not wait."""
        for stream, work in zip(self._streams, self._work):
            with torch.cuda.stream(stream):
                work()

    def is_on(self) -> bool:
        """Whether any of it is still to be done."""
        return not all(stream.query() for stream in self._streams)


@pytest.mark.parametrize("rows", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("op", rules.OPS)
def test_a_thousand_times(op: str, way: str, rows: int) -> None:
    """Eager and replayed in turn, other streams busy: what the first call gave, when nothing else was going on."""
    layer, busy = Layer(op, WAYS[way], rows), Busy()
    layer.run()
    torch.cuda.synchronize()
    first = bits(layer.output).clone()
    assert int(first.count_nonzero()) > first.numel() // 3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer.run()
    differing = torch.zeros(2, dtype=torch.int64, device="cuda")
    overlapped = 0
    runs = (layer.run, 0), (graph.replay, 1)
    for number, (run, place) in enumerate(itertools.islice(itertools.cycle(runs), TIMES)):
        if number % 4 == 0:
            busy.more()
        layer.output.fill_(float("nan"))
        run()
        differing[place] += (bits(layer.output) != first).any()
        overlapped += number % 50 == 0 and busy.is_on()
    assert overlapped > 0, "the other streams were idle: nothing is shown"
    assert differing.tolist() == [0, 0], "runs with other bits, eager and replayed"
