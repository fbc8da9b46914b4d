"""sglang's functions on csgmv's kernels: same names, argument meanings and results, whatever LoRABatchInfo holds."""

from __future__ import annotations

import gc
import inspect
from types import SimpleNamespace

import pytest
import torch

from csgmv import reference
from csgmv.integrations import sglang
from csgmv.segments import Segments

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RANKS, SCALINGS = (5, 0, 16, 3), (0.5, 2.0, -1.25, 3.0)
IDS = (2, -1, 0, 0, 3, 2, 1, 2, -1, 0, 3)
OFFSETS = (0, 21, 30, 34)


def batch_info(ids=IDS, *, static=False):
    """The attributes of sglang's LoRABatchInfo, which is what its csgmv backend would hand over."""
    if static:
        batch = Segments.allocate(40, len(RANKS), chunk_size=16, device=DEVICE)
        batch.update_from_tokens(ids, RANKS, SCALINGS)
    else:
        batch = Segments.from_tokens(ids, RANKS, SCALINGS, chunk_size=16, device=DEVICE)
    used = int((batch.seg_indptr.diff() > 0).sum())
    return SimpleNamespace(
        use_cuda_graph=static, bs=len(ids), num_segments=used, seg_indptr=batch.seg_indptr, seg_lens=None,
        weight_indices=batch.weight_indices, lora_ranks=batch.lora_ranks, scalings=batch.scalings,
        max_len=16, permutation=batch.permutation,
    )  # fmt: skip


def tensors(num_slices=3, max_rank=16, input_dim=72):
    generator = torch.Generator().manual_seed(3)
    shapes = (
        (len(IDS), input_dim),
        (len(RANKS), num_slices * max_rank, input_dim),
        (len(RANKS), OFFSETS[-1], max_rank),
    )
    x, lora_a, lora_b = (torch.randn(*shape, generator=generator).half().to(DEVICE) / 4 for shape in shapes)
    base = torch.randn(len(IDS), OFFSETS[-1], generator=generator).half().to(DEVICE)
    return x, lora_a, lora_b, base


@pytest.mark.parametrize("static", [False, True])
def test_the_two_functions_compute_the_layer(static):
    """Shrink, then expand onto the base, equal the float32 reference; the base is changed in place and returned."""
    info = batch_info(static=static)
    x, lora_a, lora_b, base = tensors()
    want = reference.add_lora(base, x, lora_a, lora_b, sglang.segments(info), OFFSETS)
    h = sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3)
    offsets = torch.tensor(OFFSETS, device=DEVICE)
    got = sglang.chunked_sgmv_lora_expand_forward(h, lora_b, info, offsets, 21, base)
    assert got is base
    assert h.dtype == x.dtype
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=2e-2)


def test_no_base_output_means_zeros():
    """base_output=None gives a new tensor, zero in the rows without an adapter."""
    info = batch_info()
    x, lora_a, lora_b, base = tensors()
    h = sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3)
    got = sglang.chunked_sgmv_lora_expand_forward(h, lora_b, info, torch.tensor(OFFSETS, device=DEVICE), 21, None)
    want = reference.add_lora(torch.zeros_like(base), x, lora_a, lora_b, sglang.segments(info), OFFSETS)
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=2e-2)
    assert got.dtype == x.dtype
    assert not got[[row for row, slot in enumerate(IDS) if slot in (-1, 1)]].any()


def test_split_k_reaches_the_kernel(monkeypatch):
    """split_k replaces that field of the config that the launch would have had, and the result stays right."""
    seen = []
    launched = sglang.lora_shrink
    monkeypatch.setattr(
        sglang, "lora_shrink", lambda *args, config: seen.append(config) or launched(*args, config=config)
    )
    info = batch_info()
    x, lora_a, *_ = tensors()
    h = sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3, split_k=3)
    sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3)
    assert seen[0].split_k == 3
    assert seen[1] is None
    want = reference.lora_shrink(x, lora_a, sglang.segments(info), 3)
    defined = ~want.isnan()
    torch.testing.assert_close(h.float()[defined], want[defined], rtol=1e-2, atol=2e-2)
    with pytest.raises(ValueError, match="split_k"):
        sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3, split_k=0)


def test_segments_share_the_tensors_and_count_the_capacity_in_a_graph():
    """No copies: sglang refills its tensors in place. With use_cuda_graph the count is weight_indices' length."""
    for static in (False, True):
        info = batch_info(static=static)
        segments = sglang.segments(info)
        for name in ("permutation", "seg_indptr", "weight_indices", "lora_ranks", "scalings"):
            assert getattr(segments, name) is getattr(info, name)
        assert segments.chunk_size == 16
        assert segments.num_tokens == info.permutation.shape[0]
        assert segments.num_segments == (info.weight_indices.shape[0] if static else info.num_segments)
    assert segments.num_segments > info.num_segments


def test_segments_are_made_once_a_batch():
    """The same until an attribute is replaced by another value or tensor; two batches do not disturb each other."""
    first, second = batch_info(), batch_info(static=True)
    made = sglang.segments(first), sglang.segments(second)
    for _ in range(3):
        assert (sglang.segments(first), sglang.segments(second)) == made
    replaced = {name: getattr(first, name).clone() for name in ("permutation", "seg_indptr", "weight_indices")}
    replaced |= {name: getattr(first, name).clone() for name in ("lora_ranks", "scalings")}
    replaced |= {"num_segments": first.num_segments - 1, "max_len": 32, "use_cuda_graph": True}
    for name, value in replaced.items():
        before = sglang.segments(first)
        setattr(first, name, value)
        after = sglang.segments(first)
        assert after is not before
        assert after is sglang.segments(first)
        counted = first.weight_indices.shape[0] if first.use_cuda_graph else first.num_segments
        assert (after.num_segments, after.chunk_size) == (counted, first.max_len)
        for tensor in ("permutation", "seg_indptr", "weight_indices", "lora_ranks", "scalings"):
            assert getattr(after, tensor) is getattr(first, tensor)
    first.max_len = None
    with pytest.raises(ValueError, match="max_len"):
        sglang.segments(first)


def test_few_batches_are_kept():
    """A server makes a new one for every step; an id that comes again is never taken for the batch that had it."""
    for count in range(1, 40):
        info = batch_info(IDS[:count] * 2)
        assert sglang.segments(info).num_tokens == info.permutation.shape[0]
        assert len(sglang._batches) <= sglang._MOST_BATCHES


def test_signatures_are_those_of_sglang():
    """Keyword calls written for sglang 0.5.11 and 0.5.23 bind."""
    shrink = inspect.signature(sglang.chunked_sgmv_lora_shrink_forward)
    expand = inspect.signature(sglang.chunked_sgmv_lora_expand_forward)
    assert list(shrink.parameters) == ["x", "weights", "batch_info", "num_slices", "split_k"]
    assert list(expand.parameters) == [
        "x", "weights", "batch_info", "slice_offsets", "max_slice_size", "base_output", "slice_offsets_cpu",
    ]  # fmt: skip
    assert shrink.parameters["split_k"].default is None
    assert expand.parameters["slice_offsets_cpu"].default is None


@pytest.fixture
def reads(monkeypatch):
    """Counts the tensors whose values are fetched."""
    fetched = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: fetched.append(1) or tolist(tensor))
    return fetched


def test_offsets_are_read_once_per_tensor(reads):
    """The same tensor is not read again; another one with the same values is."""
    offsets = torch.tensor(OFFSETS, device=DEVICE)
    assert [sglang._read_offsets(offsets) for _ in range(5)] == [OFFSETS] * 5
    assert len(reads) == 1
    assert sglang._read_offsets(offsets.clone()) == OFFSETS
    assert len(reads) == 2
    assert sglang._read_offsets(list(OFFSETS)) == OFFSETS


def test_offsets_changed_in_place_are_read_again():
    """A write, and a swap of the storage, are both noticed."""
    offsets = torch.tensor(OFFSETS, device=DEVICE)
    sglang._read_offsets(offsets)
    offsets[1] = 20
    assert sglang._read_offsets(offsets) == (0, 20, 30, 34)
    offsets.data = torch.tensor((0, 1, 2, 3), device=DEVICE)
    assert sglang._read_offsets(offsets) == (0, 1, 2, 3)


def test_offsets_are_forgotten_with_their_tensor():
    """A dead tensor's entry goes, so that neither memory nor a reused id can be mistaken."""
    before = len(sglang._remembered)
    offsets = torch.tensor(OFFSETS, device=DEVICE)
    sglang._read_offsets(offsets)
    assert len(sglang._remembered) == before + 1
    del offsets
    gc.collect()
    assert len(sglang._remembered) == before


def test_offsets_made_under_inference_mode_are_remembered_too(reads):
    """Such tensors count no versions; sglang serves under inference_mode."""
    with torch.inference_mode():
        offsets = torch.tensor(OFFSETS, device=DEVICE)
        assert sglang._read_offsets(offsets) == sglang._read_offsets(offsets) == OFFSETS
    assert len(reads) == 1


def test_host_offsets_are_preferred(reads):
    """With slice_offsets_cpu nothing is read from the other tensor, whatever it holds."""
    info = batch_info()
    x, _, lora_b, base = tensors()
    h = torch.zeros(len(IDS), 3 * 16, dtype=x.dtype, device=DEVICE)
    host = torch.tensor(OFFSETS)
    wrong = torch.tensor((0, 1), device=DEVICE)
    before = base.clone()
    reads.clear()  # of what the batch was made from
    for _ in range(2):
        sglang.chunked_sgmv_lora_expand_forward(h, lora_b, info, wrong, 21, base, host)
    assert len(reads) == 1
    assert torch.equal(base, before)


@pytest.mark.gpu
def test_offsets_on_the_gpu_are_never_read_during_a_capture():
    """Unknown ones are refused with the way out; known ones are used, and the graph replays the layer."""
    info = batch_info(static=True)
    x, lora_a, lora_b, base = tensors()
    offsets = torch.tensor(OFFSETS, device=DEVICE)

    def layer():
        h = sglang.chunked_sgmv_lora_shrink_forward(x, lora_a, info, 3)
        return sglang.chunked_sgmv_lora_expand_forward(h, lora_b, info, offsets, 21, base)

    refused = pytest.raises(ValueError, match="slice_offsets: cannot be read from the GPU during a capture")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        sglang._read_offsets(offsets)
    layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer()
    want = reference.add_lora(base, x, lora_a, lora_b, sglang.segments(info), OFFSETS)
    graph.replay()
    torch.testing.assert_close(base.float(), want, rtol=1e-2, atol=2e-2)
