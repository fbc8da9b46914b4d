"""csgmv's drop-ins beside the published engines' own functions, on the same tensors; skipped where these are not.

    python peer_setup.py --dest .peers

lays the slices of sglang 0.5.11 and 0.5.23 and of vLLM 0.33 out. Without a GPU both sides are interpreted.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from batches import DEVICE, DTYPES, TOLERANCE, poisoned
from csgmv.integrations import sglang, vllm
from sglang_batches import IDS as SGLANG_IDS
from sglang_batches import OFFSETS, batch_info, tensors
from vllm_batches import IDS, some_x, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
HALVES = tuple(dtype for dtype in DTYPES if dtype != torch.float32)


def assert_like(got: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    """Within what two roundings of each side are apart; not NaN anywhere."""
    error, norm = (got.float() - theirs.float()).norm(), theirs.float().norm()
    assert norm > 0
    assert error <= 4 * TOLERANCE[dtype] * norm, f"{error / norm} of the norm"


def defined(h: torch.Tensor, num_slices: int, info: Any) -> torch.Tensor:
    """h without what neither side defines: zero in rows without an adapter, and past each adapter's packed slices."""
    ranks, kept = info.lora_ranks.tolist(), torch.zeros_like(h)
    for row, slot in enumerate(SGLANG_IDS):
        columns = num_slices * ranks[slot] if slot >= 0 else 0
        kept[row, :columns] = h[row, :columns]
    return kept


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("version", ["old", "new"])
def test_sglang(version: str, dtype: torch.dtype, published: SimpleNamespace) -> None:
    """Mixed ranks and scalings, rows and a slot without an adapter, uneven slices: the same h and the same output."""
    x, lora_a, lora_b, base = (each.to(dtype) for each in tensors())
    made, offsets = batch_info(), torch.tensor(OFFSETS, dtype=torch.int32, device=DEVICE)
    info = published.info.LoRABatchInfo(**vars(made))
    shrink = getattr(published, f"{version}_shrink").chunked_sgmv_lora_shrink_forward
    expand = getattr(published, f"{version}_expand").chunked_sgmv_lora_expand_forward
    h, theirs = sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3), shrink(x, lora_a, info, 3)
    assert_like(defined(h, 3, info), defined(theirs, 3, info), dtype)
    output, their_output = base.clone(), base.clone()
    sglang.chunked_sgmv_lora_expand_forward(h, lora_b, info, offsets, 21, output)
    expand(theirs, lora_b, info, offsets, 21, their_output)
    assert_like(output, their_output, dtype)
    assert_like(output - base, their_output - base, dtype)


@pytest.mark.parametrize("split_k", [1, 4])
def test_sglangs_split_k(split_k: int, published: SimpleNamespace) -> None:
    """An argument that 0.5.23 has and 0.5.11 has not."""
    x, lora_a, *_ = tensors(input_dim=1040)
    info = batch_info()
    theirs = published.new_shrink.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3, split_k)
    h = sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3, split_k)
    assert_like(defined(h, 3, info), defined(theirs, 3, info), x.dtype)


def test_signatures(published: SimpleNamespace) -> None:
    """A call that binds to a published function binds to csgmv's, with the same meanings of its positions."""

    def names(function: Callable[..., object]) -> list[str]:
        parameters = inspect.signature(function).parameters.values()
        return [each.name for each in parameters if each.kind != each.KEYWORD_ONLY]

    for name in ("chunked_sgmv_lora_shrink_forward", "chunked_sgmv_lora_expand_forward"):
        part = name.split("_")[3]
        ours = names(getattr(sglang, name))
        assert names(getattr(getattr(published, f"new_{part}"), name)) == ours
        older = names(getattr(getattr(published, f"old_{part}"), name))
        assert older == ours[: len(older)]
    assert names(published.vllm_shrink._lora_shrink) == names(vllm.lora_shrink)
    assert names(published.vllm_expand._lora_expand) == names(vllm.lora_expand)


def test_install_finds_sglangs_functions(published: SimpleNamespace) -> None:
    """In the modules of 0.5.23 as they are published."""
    theirs = published.new_shrink.chunked_sgmv_lora_shrink_forward
    with sglang.install():
        assert published.new_shrink.chunked_sgmv_lora_shrink_forward is sglang.chunked_sgmv_lora_shrink_forward
        assert published.new_expand.chunked_sgmv_lora_expand_forward is sglang.chunked_sgmv_lora_expand_forward
    assert published.new_shrink.chunked_sgmv_lora_shrink_forward is theirs


class Both:
    """A layer of vLLM by its own functions and by csgmv's; outputs are wider than the slices."""

    def __init__(self, widths: Sequence[int], dtype: torch.dtype, engine: SimpleNamespace, max_tokens: int) -> None:
        self.a, self.b = weights(widths, dtype=dtype)
        self.width, self.dtype, self.engine, self.specialised = 16 + sum(widths), dtype, engine, True
        self.meta = engine.vllm_meta.LoRAKernelMeta.make(len(self.a[0]), max_tokens, DEVICE)

    def refill(self, ids: Sequence[int]) -> None:
        """vLLM's own preparation of a batch."""
        self.meta.prepare_tensors(torch.tensor(ids, dtype=torch.int32, device=DEVICE))

    def run(self, side: str, x: torch.Tensor, h: torch.Tensor, output: torch.Tensor, **how: Any) -> None:
        """Shrink into h, and expand h into the output."""
        theirs = self.engine.vllm_shrink._lora_shrink, self.engine.vllm_expand._lora_expand
        shrink, expand = theirs if side == "theirs" else (vllm.lora_shrink, vllm.lora_expand)
        arguments = self.meta.meta_args(len(x), self.specialised)
        shrink(x, self.a, h, *arguments, how.get("scaling", 1.0))
        expand(h, self.b, output, *arguments, offset_start=16, add_inputs=how.get("add_inputs", True))

    def tensors(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x, h full of NaN, and an output."""
        h = poisoned(len(self.a), tokens, self.a[0].shape[-2], dtype=torch.float32)
        output = torch.randn(tokens, self.width, generator=torch.Generator().manual_seed(6)).to(DEVICE, self.dtype)
        return some_x(tokens, dtype=self.dtype).contiguous(), h, output


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("widths", "how"),
    [((24,), {}), ((24, 8, 8), {}), ((24, 24), {"add_inputs": False}), ((8,), {"scaling": -2.5, "add_inputs": False})],
    ids=["one slice", "uneven slices", "even slices, not added", "scaled, not added"],
)
def test_vllm(
    widths: tuple[int, ...],
    how: dict[str, Any],
    dtype: torch.dtype,
    published: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the metadata that vLLM prepares: the same h, zero in rows without an adapter, and the same output."""
    if DEVICE == "cpu":  # where vLLM's 64 parts of input_dim take half a minute
        configs = published.vllm_shrink.get_lora_op_configs
        monkeypatch.setattr(
            published.vllm_shrink, "get_lora_op_configs", lambda *a, **k: configs(*a, **k) | {"split_k": 2}
        )
    both = Both(widths, dtype, published, 64)
    both.refill(IDS)
    (x, h, output), (_, their_h, their_output) = both.tensors(len(IDS)), both.tensors(len(IDS))
    both.run("ours", x, h, output, **how)
    both.run("theirs", x, their_h, their_output, **how)
    assert_like(h, their_h, torch.float16)
    without = torch.tensor(IDS) < 0
    assert not h[:, without].any()
    assert not their_h[:, without].any()
    assert_like(output, their_output, dtype)
    assert torch.equal(output[without], their_output[without])
    assert torch.equal(output[:, :16], their_output[:, :16])


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A call as a graph; it is made once before, so that nothing is compiled while capturing."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


@contextlib.contextmanager
def unsynchronised() -> Iterator[None]:
    """Whatever would wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [7, 64, 600])
def test_vllms_graphs_replay_other_batches(tokens: int, dtype: torch.dtype, published: SimpleNamespace) -> None:
    """Captured with one batch, replayed with other adapters, fewer, one, and one row alone: as vLLM's own eager calls,
    and bit for bit as csgmv's. Neither waits for the GPU.
    """
    both = Both((2048, 512, 512), dtype, published, 1024)
    x, h, output = both.tensors(tokens)
    base = output.clone()
    both.specialised = False  # one graph for any number of adapters
    draw = torch.Generator().manual_seed(5)
    batches = [torch.randint(-1, 4, (tokens,), generator=draw).tolist() for _ in range(3)]
    batches += [[1] * tokens, [-1] * (tokens - 1) + [3], [0] + [-1] * (tokens - 1), batches[0]]

    both.refill(batches[0])
    graph = captured(lambda: both.run("ours", x, h, output))
    for ids in batches:
        both.refill(ids)
        _, their_h, theirs = both.tensors(tokens)
        both.run("theirs", x, their_h, theirs)
        output.copy_(base)
        with unsynchronised():
            both.run("ours", x, h, output)
        eager, eager_h = output.clone(), h.clone()
        assert_like(eager_h, their_h, torch.float16)
        assert_like(eager, theirs, dtype)
        output.copy_(base)
        h.fill_(float("nan"))
        with unsynchronised():
            graph.replay()
        assert torch.equal(output, eager)
        assert torch.equal(h, eager_h)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sglangs_graphs_replay_other_batches(dtype: torch.dtype, published: SimpleNamespace) -> None:
    """Captured by csgmv's functions with one static batch, replayed with others: as sglang's own eager calls."""
    x, lora_a, lora_b, base = (each.to(dtype) for each in tensors(input_dim=1024))
    static, offsets = batch_info(static=True), torch.tensor(OFFSETS, dtype=torch.int32, device=DEVICE)
    output = base.clone()

    def layer() -> None:
        h = sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, static, 3)
        sglang.chunked_sgmv_lora_expand_forward(h, lora_b, static, offsets, 21, output)

    graph = captured(layer)
    for ids in (SGLANG_IDS, (0,) * 11, (-1,) * 10 + (3,), (0, 2, 3) * 3 + (2, 0), SGLANG_IDS):
        other = batch_info(ids, static=True)
        for name in ("seg_indptr", "weight_indices", "permutation"):
            getattr(static, name).copy_(getattr(other, name))
        info = published.info.LoRABatchInfo(**vars(batch_info(ids)))
        h = published.new_shrink.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3)
        theirs = published.new_expand.chunked_sgmv_lora_expand_forward(h, lora_b, info, offsets, 21, base.clone())
        output.copy_(base)
        graph.replay()
        assert_like(output, theirs, dtype)
