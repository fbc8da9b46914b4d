"""vLLM's two LoRA operators on csgmv's kernels: its argument meanings, and its metadata, whatever a batch holds."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import csgmv
from batches import DEVICE, DTYPES, assert_close, poisoned
from csgmv import launch
from csgmv.integrations import vllm
from csgmv.integrations.vllm_arguments import check_expand, check_shrink
from vllm_batches import IDS, RANKS, Meta, expanded, poison_fresh_memory, shrunk, some_x, weights

HALVES = tuple(dtype for dtype in DTYPES if dtype != torch.float32)
WIDTHS = (24, 8, 0, 40)
BATCHES: dict[str, Sequence[int]] = {
    "ragged": IDS,
    "no row without": (1,) * 17 + (0, 3, 3),
    "one adapter": (3,) * 5,
    "one row": (0,),
    "one row with": (-1,) * 6 + (1,) + (-1,) * 2,
}


def shrink(ids: Sequence[int], widths: Sequence[int] = WIDTHS, scaling: float = 1.0, **how: Any) -> torch.Tensor:
    """h on memory full of NaN."""
    a, _ = weights(widths, dtype=how.get("dtype", torch.float16))
    h = poisoned(len(a), len(ids), max(RANKS), dtype=torch.float32)
    x = some_x(len(ids), dtype=a[0].dtype)
    vllm.lora_shrink(x, a, h, *Meta().refill(ids).arguments(len(ids)), scaling)
    return h


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("ids", BATCHES.values(), ids=BATCHES)
def test_shrink_is_that_of_each_rows_adapter(
    ids: Sequence[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, zero in rows without an adapter, whatever the output and fresh memory held."""
    a, _ = weights(WIDTHS, dtype=dtype)
    poison_fresh_memory(monkeypatch)
    h = shrink(ids, dtype=dtype)
    for got, want in zip(h, shrunk(some_x(len(ids), dtype=dtype), a, ids)):
        assert_close(got, want, torch.float32)


def test_the_scaling_is_applied() -> None:
    """vLLM gives 1.0, but any other scales h."""
    torch.testing.assert_close(shrink(IDS, (8, 8), -2.5), -2.5 * shrink(IDS, (8, 8)))


@pytest.mark.parametrize(
    ("ids", "h_dtype", "add_inputs"),
    [
        *((IDS, h_dtype, add_inputs) for h_dtype in (torch.float32, None) for add_inputs in (True, False)),
        *((ids, torch.float32, False) for ids in BATCHES.values() if ids is not IDS),
    ],
)
def test_expand_is_that_of_each_rows_adapter(
    ids: Sequence[int], h_dtype: torch.dtype | None, add_inputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices follow one another from offset_start; other rows and columns keep their bits, NaN among them."""
    for dtype in HALVES:
        a, b = weights(WIDTHS, dtype=dtype)
        h = shrunk(some_x(len(ids), dtype=dtype), a, ids).to(dtype).to(h_dtype or dtype)
        without = torch.tensor(ids) < 0
        h[:, without] = float("nan")
        output = torch.randn(len(ids), 3 + sum(WIDTHS) + 2, generator=torch.Generator().manual_seed(2))
        output[:, :3] = output[:, -2:] = output[without] = float("nan")
        if not add_inputs:
            output[:] = float("nan")
        output = output.to(DEVICE, dtype)
        want = expanded(h, b, ids, output, 3, add_inputs)
        before = output.clone()
        with monkeypatch.context() as patch:
            poison_fresh_memory(patch)
            vllm.lora_expand(
                h, b, output, *Meta().refill(ids).arguments(len(ids)), offset_start=3, add_inputs=add_inputs
            )
        assert_close(output, want, dtype)
        bits, old = output.view(torch.int16), before.view(torch.int16)
        assert torch.equal(bits[without], old[without])
        assert torch.equal(bits[:, :3], old[:, :3])
        assert torch.equal(bits[:, -2:], old[:, -2:])


def test_weights_may_have_three_dimensions_and_any_number_of_slices() -> None:
    """vLLM's own callers give both shapes; a launch for each slice has no bound on their number."""
    a, b = weights((8,) * 6)
    h, output = poisoned(6, len(IDS), 16, dtype=torch.float32), torch.zeros(len(IDS), 48).half().to(DEVICE)
    meta = Meta().refill(IDS).arguments(len(IDS), specialised=False)
    vllm.lora_shrink(some_x(len(IDS)), [each[:, 0] for each in a], h, *meta, 1.0)
    vllm.lora_expand(h, [each[:, 0] for each in b], output, *meta, add_inputs=True)
    assert_close(output, expanded(shrunk(some_x(len(IDS)), a, IDS), b, IDS, output * 0, 0, True), torch.float16)


def test_a_batch_without_adapters_is_left_alone() -> None:
    """Both return at once, as vLLM's do, whatever is in the other tensors."""
    ids = (-1,) * 4
    a, b = weights((8,))
    h, output = poisoned(1, 4, 16, dtype=torch.float32), poisoned(4, 8, dtype=torch.float16)
    meta = Meta().refill(ids).arguments(4)
    assert meta[-2].item()
    vllm.lora_shrink(some_x(4), a, h, *meta, 1.0)
    vllm.lora_expand(h, b, output, *meta, add_inputs=False)
    assert h.isnan().all()
    assert output.isnan().all()


@pytest.mark.parametrize("specialised", [True, False])
@pytest.mark.parametrize("ids", [*BATCHES.values(), tuple(range(60)) * 2 + (-1, 7) * 40])
def test_metadata_becomes_segments(ids: Sequence[int], specialised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row that has an adapter is in one segment of its slot; no other is; the contract of Segments is kept."""
    slots = max(ids) + 2
    meta = Meta(slots, 256).refill(ids)
    poison_fresh_memory(monkeypatch)
    groups = int(meta.active) if specialised else slots + 1
    segments = meta.metadata(len(ids)).segments(len(ids), groups, slots, 13)
    indptr, indices = segments.seg_indptr.tolist(), segments.weight_indices.tolist()
    assert (len(indptr), len(indices)) == (segments.num_segments + 1, segments.num_segments)
    of_row = [-1] * len(ids)
    for slot, start, end in zip(indices, indptr, indptr[1:]):
        assert 0 <= end - start <= segments.chunk_size
        for row in segments.permutation[start:end].tolist():
            assert of_row[row] == -1
            of_row[row] = slot
    assert of_row == list(ids)
    assert indices == sorted(indices)
    assert all(0 <= slot < slots for slot in indices)
    assert segments.lora_ranks.tolist() == [13] * slots
    assert segments.scalings.tolist() == [1.0] * slots
    assert segments.active_adapters >= len({*ids} - {-1})


def test_static_tensors_are_read_anew_in_every_call() -> None:
    """A batch that replaces another in the same tensors, with as many rows, is the one that counts."""
    meta, x = Meta(), some_x(9)
    a, b = weights((8, 16))
    for ids in ((0, 1, -1) * 3, (3,) * 9, (-1, 1, 0) * 3, (-1,) * 8 + (2,)):
        arguments = meta.refill(ids).arguments(9, specialised=False)
        h, output = poisoned(2, 9, 16, dtype=torch.float32), torch.zeros(9, 24, dtype=x.dtype, device=DEVICE)
        vllm.lora_shrink(x, a, h, *arguments, 1.0)
        vllm.lora_expand(h, b, output, *arguments, add_inputs=True)
        assert_close(output, expanded(shrunk(x, a, ids), b, ids, output * 0, 0, True), x.dtype)


def test_batch_invariant_reaches_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's bits are then those that it has in a batch by itself."""
    a, b = weights((8,))
    seen = []
    for module, name in ((vllm.shrink, "lora_shrink"), (vllm.expand, "lora_expand")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real, **how: seen.append(how) or real(*args, **how))

    def rows(x: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        h, output = poisoned(1, len(ids), 16, dtype=torch.float32), torch.zeros(len(ids), 8).to(x)
        meta = Meta().refill(ids).arguments(len(ids))
        vllm.lora_shrink(x, a, h, *meta, 1.0, batch_invariant=True)
        vllm.lora_expand(h, b, output, *meta, add_inputs=True, batch_invariant=True)
        return output

    x = some_x(len(IDS))
    assert torch.equal(rows(x, IDS)[5:6], rows(x[5:6], IDS[5:6]))
    assert [how["batch_invariant"] for how in seen] == [True] * 4


def test_other_numbers_of_rows_have_the_same_plans() -> None:
    """What is remembered of a layer does not grow with the batches that it has seen."""
    a, b = weights((8, 16))
    grown = []
    for tokens in range(2, 40):
        ids = [row % 2 for row in range(tokens)]
        h, output = poisoned(2, tokens, 16, dtype=torch.float32), torch.zeros(tokens, 24).half().to(DEVICE)
        meta = Meta().refill(ids).arguments(tokens, specialised=False)
        vllm.lora_shrink(some_x(tokens), a, h, *meta, 1.0)
        vllm.lora_expand(h, b, output, *meta, add_inputs=True)
        if tokens in (20, 39):  # by then every bucket of segments has come by
            grown.append(sum(key[0] in (check_shrink, check_expand) for key in launch.plans))
    assert grown[0] == grown[1] > 0


def test_nothing_is_written_before_a_batch_is_refused() -> None:
    """Metadata that is elsewhere, where no group of it is to be looked at; rows that there are not, within debug."""
    a, b = weights((8, 16))
    h, output = poisoned(2, 9, 16, dtype=torch.float32), torch.ones(9, 24).half().to(DEVICE)
    batch = Meta().refill((0, 1, -1) * 3)
    *tensors, flag, _ = batch.arguments(9)
    elsewhere = [*(each.to("meta") for each in tensors), flag, torch.tensor([0])]
    with pytest.raises(ValueError, match=r"^token_lora_mapping: expected a tensor on .* like inputs, got one on meta"):
        vllm.lora_shrink(some_x(9), a, h, *elsewhere, 1.0)
    with pytest.raises(ValueError, match=r"^token_lora_mapping: expected a tensor on .* like inputs, got one on meta"):
        vllm.lora_expand(torch.zeros_like(h), b, output, *elsewhere)
    batch.indices[3] = 9
    with csgmv.debug():
        with pytest.raises(ValueError, match=r"permutation\[3\]: expected .* got 9"):
            vllm.lora_shrink(some_x(9), a, h, *batch.arguments(9), 1.0)
        with pytest.raises(ValueError, match=r"permutation\[3\]: expected .* got 9"):
            vllm.lora_expand(torch.zeros_like(h), b, output, *batch.arguments(9))
    assert h.isnan().all()
    assert output.eq(1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 33, 700])
def test_graphs_replay_other_batches(tokens: int, dtype: torch.dtype) -> None:
    """Captured with one batch, with others in the same tensors a replay has the bits of eager calls; none waits."""
    a, b = weights((512, 128, 128), 1024, dtype)
    x, meta = some_x(tokens, 1024, dtype), Meta(max_tokens=1024)
    h, output = poisoned(3, tokens, 16, dtype=torch.float32), torch.zeros(tokens, 768, dtype=dtype, device=DEVICE)

    def layer() -> torch.Tensor:
        arguments = meta.arguments(tokens, specialised=False)
        vllm.lora_shrink(x, a, h, *arguments, 1.0)
        vllm.lora_expand(h, b, output, *arguments, add_inputs=False)
        return output.clone()

    meta.refill([0] * tokens)
    layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer()
    draw = torch.Generator().manual_seed(5)
    for ids in (
        *([*torch.randint(-1, 4, (tokens,), generator=draw).tolist()[:-1], 1] for _ in range(3)),
        [3] * tokens,
        [-1] * (tokens - 1) + [0],
    ):
        meta.refill(ids)
        output.zero_()
        torch.cuda.set_sync_debug_mode("error")
        try:
            eager = layer()
            h.fill_(float("nan"))
            output.zero_()
            graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(output, eager)
        assert_close(output, expanded(shrunk(x, a, ids), b, ids, output * 0, 0, True), dtype)


def test_signatures_are_those_of_vllm() -> None:
    """Positional calls written for vLLM 0.33 bind; csgmv's own option is for keywords alone."""
    meta = [
        "token_lora_mapping", "token_indices_sorted_by_lora_ids", "num_tokens_per_lora", "lora_token_start_loc",
        "lora_ids", "no_lora_flag_cpu", "num_active_loras",
    ]  # fmt: skip
    for function, before, after in (
        (vllm.lora_shrink, ["inputs", "lora_a_weights", "output_tensor"], ["scaling"]),
        (vllm.lora_expand, ["inputs", "lora_b_weights", "output_tensor"], ["offset_start", "add_inputs"]),
    ):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == [*before, *meta, *after, "batch_invariant"]
        assert parameters["batch_invariant"].kind == inspect.Parameter.KEYWORD_ONLY
