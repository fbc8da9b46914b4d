"""csgmv.debug: launches look at what the batch's tensors hold; off, they are as they were. What is looked for is in
wrong_batches.py.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import csgmv
from batches import DEVICE, Batch, make_batch
from csgmv import Segments, batch_faults, dispatch, launch, operators
from csgmv.integrations import sglang
from wrong_operations import batch_info

gpu = pytest.mark.gpu


def calls(batch: Batch) -> dict[str, Any]:
    """Each operation on one batch."""
    h = torch.ones(len(batch.x), batch.num_slices * batch.lora_b.shape[2], dtype=batch.x.dtype, device=DEVICE)
    offsets, segments = batch.slice_offsets, batch.segments
    return {
        "shrink": lambda: csgmv.lora_shrink(batch.x, batch.lora_a, segments, batch.num_slices),
        "expand": lambda: csgmv.lora_expand(h, batch.lora_b, segments, offsets, batch.base_output),
        "add_lora": lambda: csgmv.add_lora(batch.base_output, batch.x, batch.lora_a, batch.lora_b, segments, offsets),
    }


@pytest.mark.parametrize("op", ["shrink", "expand", "add_lora"])
def test_a_bad_batch_is_refused_on_every_call(op: str) -> None:
    """Also where the kind of call is known already, and only there the tensors were changed; nothing is written."""
    batch = make_batch([4, 3], 4, 32, [8, 4], 9, chunk_size=4)
    call = calls(batch)[op]
    call()
    with csgmv.debug():
        call()
        batch.segments.permutation[1] = 9
        before = batch.base_output.clone()
        for _ in range(2):
            with pytest.raises(ValueError, match=r"segments\.permutation\[1\]: expected a row of x, 0 … 8, got 9"):
                call()
        assert torch.equal(batch.base_output, before)


def test_ranks_are_compared_with_the_weights() -> None:
    """Which the host cannot where ranks were put in on the GPU: a kernel would cut them short."""
    batch = make_batch([4, 3], 4, 32, [8, 4], 9, chunk_size=4)
    ranks = torch.tensor([4, 5], dtype=torch.int32, device=DEVICE)
    batch.segments = batch.segments.with_adapters(ranks, batch.segments.scalings)
    calls(batch)["add_lora"]()
    with csgmv.debug(), pytest.raises(ValueError, match=r"segments\.lora_ranks\[1\]: expected 0 … 4, got 5"):
        calls(batch)["add_lora"]()


def test_metadata_of_others_is_looked_at() -> None:
    """A LoRABatchInfo whose segments are longer than it says."""
    batch, info = make_batch([4, 3], 4, 32, [8, 4], 9, chunk_size=4), batch_info()
    info.max_len = 1
    with csgmv.debug(), pytest.raises(ValueError, match=r"seg_indptr\[1\]: expected at most 1 rows in segment 0"):
        sglang.chunked_sgmv_lora_shrink_forward(batch.x, batch.lora_a, info, 2)


def test_off_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """And plans that were there are there again, unless other tables were laid meanwhile."""
    batch = make_batch([4, 3], 4, 32, [8, 4], 9, chunk_size=4)
    call = calls(batch)["add_lora"]
    call()
    plans, known = launch.plans, {**launch.plans}
    with csgmv.debug(), csgmv.debug():
        call()
        assert launch.plans is not plans
    assert launch.plans is plans
    assert plans == known
    monkeypatch.setattr(batch_faults, "check_contents", lambda *_: pytest.fail("looked at"))
    call()
    tables = dispatch.tables()
    with csgmv.debug():
        dispatch.lay(tables)
    assert launch.plans is plans
    assert not plans
    monkeypatch.setattr(dispatch, "_laid", [])


def test_one_mode_for_all_threads() -> None:
    """It ends when the last one leaves it."""
    plans, inside, leave = launch.plans, threading.Event(), threading.Event()

    def other() -> None:
        with csgmv.debug():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with csgmv.debug():
        pass
    assert launch.debugging
    leave.set()
    thread.join()
    assert not launch.debugging
    assert launch.plans is plans


def test_compiled_graphs_are_looked_at() -> None:
    """Their operators call the same functions."""
    batch = make_batch([4, 3], 4, 32, [8, 4], 9, chunk_size=4)

    def call() -> None:
        operators.lora_shrink(batch.x, batch.lora_a, batch.segments, 2, None, False, None, False)

    call()
    batch.segments.weight_indices[0] = 7
    with csgmv.debug(), pytest.raises(ValueError, match=r"weight_indices\[0\]: expected an adapter slot, 0 … 1, got 7"):
        call()


def test_what_csgmv_makes_has_no_fault() -> None:
    """From sequences and tokens, refilled, with and without rows, with a slot that is empty in one layer."""
    made = [
        Segments.from_sequences([5, 0, 3, 2], [1, 0, None, 1], [8, 4], [1.0, -0.5], chunk_size=4, device=DEVICE),
        Segments.from_tokens([], [], [], device=DEVICE),
        Segments.from_tokens([-1, -1], [8], [1.0], device=DEVICE),
        Segments.allocate(7, 3, chunk_size=2, device=DEVICE),
        Segments.allocate(0, 0, device=DEVICE),
    ]
    made[3].check()
    made[3].update_from_tokens([2, 2, 0, -1, 2], [8, 0, 4], [1.0, float("3e38"), 2.0])
    made.append(made[3].with_adapters(made[3].lora_ranks * 0, made[3].scalings * float("nan")))
    for segments in made:
        segments.check()


@gpu
def test_on_the_gpu_too() -> None:
    """Grouped there, and then spoilt there; a capture is let pass, but an explicit check within one is refused."""
    ids, ranks = torch.tensor([1, -1, 0, 1, 1], device="cuda"), torch.tensor([8, 4], device="cuda")
    segments = Segments.from_tokens(ids, ranks, torch.tensor([1.0, 2.0], device="cuda"), chunk_size=2)
    x, lora_a = torch.ones(5, 32, device="cuda"), torch.ones(2, 8, 32, device="cuda")
    with csgmv.debug():
        csgmv.lora_shrink(x, lora_a, segments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            csgmv.lora_shrink(x, lora_a, segments)
        with pytest.raises(ValueError, match="being captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            segments.check()
        segments.permutation[2] = 5
        with pytest.raises(ValueError, match=r"permutation\[2\]: expected a row of x, 0 … 4, got 5"):
            csgmv.lora_shrink(x, lora_a, segments)
