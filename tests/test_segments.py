"""Segments: every row with an adapter is in exactly one segment of its slot, in order, whatever the batch."""

from __future__ import annotations

import copy
import pickle
from array import array
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csgmv import arguments, grouping
from csgmv.adapters import Adapters
from csgmv.grouping import group_tokens, segment_capacity
from csgmv.segments import Segments

gpu = pytest.mark.gpu
unhurried = settings(deadline=None, max_examples=60)  # a busy machine is no fault


def expected(ids, ranks, chunk_size):
    """What segments of these per-token ids must be: [(slot, rows)], by a loop that anyone can follow."""
    wanted = []
    for slot, rank in enumerate(ranks):
        rows = [row for row, id_ in enumerate(ids) if id_ == slot and rank > 0]
        wanted += [(slot, rows[at : at + chunk_size]) for at in range(0, len(rows), chunk_size)]
    return wanted


def found(segments):
    """[(slot, rows)] of the segments that have rows; checks on the way that only a tail is empty."""
    permutation, indptr = segments.permutation.tolist(), segments.seg_indptr.tolist()
    slots = segments.weight_indices.tolist()
    assert len(indptr) == segments.num_segments + 1
    assert len(slots) == segments.num_segments
    assert indptr[0] == 0
    assert all(0 <= slot < max(segments.lora_ranks.numel(), 1) for slot in slots)
    result = [(slot, permutation[start:end]) for slot, start, end in zip(slots, indptr, indptr[1:])]
    filled = [part for part in result if part[1]]
    assert result[: len(filled)] == filled, "an empty segment stands before one with rows"
    return filled


def tokens_of(lens, ids):
    return [id_ for length, id_ in zip(lens, ids) for _ in range(length)]


@st.composite
def batches(draw, max_loras=6):
    """Sequence lengths, ids, ranks, scalings and chunk size; slots of rank 0 and rows without an adapter among them."""
    ranks = draw(st.lists(st.sampled_from([0, 1, 12, 64, 256]), max_size=max_loras))
    sequences = draw(
        st.lists(st.tuples(st.integers(0, 37), st.sampled_from([-1, None, *range(len(ranks))])), max_size=13)
    )
    lens, ids = [length for length, _ in sequences], [id_ for _, id_ in sequences]
    scalings = [0.5 + 0.25 * slot for slot in range(len(ranks))]
    return lens, ids, ranks, scalings, draw(st.sampled_from([1, 3, 16, 64]))


@unhurried
@given(batches())
def test_from_sequences_gathers_every_row_with_an_adapter(batch):
    """The segments are those of the loop: complete, in order, none longer than chunk_size, none empty."""
    lens, ids, ranks, scalings, chunk_size = batch
    segments = Segments.from_sequences(lens, ids, ranks, scalings, chunk_size=chunk_size, device="cpu")
    wanted = expected(tokens_of(lens, ids), ranks, chunk_size)
    assert found(segments) == wanted
    assert segments.num_segments == len(wanted)
    assert segments.num_tokens == sum(lens)
    assert segments.permutation.numel() == sum(len(rows) for _, rows in wanted)
    assert segments.lora_ranks.tolist() == ranks
    assert segments.scalings.tolist() == scalings


@unhurried
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), max_size=40), st.integers(1, 5))
def test_short_runs_are_gathered_as_long_ones_are(runs, chunk_size):
    """Row by row or run by run: the same bytes, and both those of the loop."""
    lens, ids = [length for length, _ in runs], [id_ for _, id_ in runs]
    ranks = [8, 0, 16, 1]
    by_row, by_run = grouping._gather_rows(lens, ids, ranks), grouping._gather_runs(lens, ids, ranks)
    assert by_row == by_run
    wanted = expected(tokens_of(lens, ids), ranks, chunk_size)
    assert array("i", by_row.permutation).tolist() == [row for _, rows in wanted for row in rows]
    assert by_row.cut(chunk_size).num_segments == len(wanted)


def test_more_rows_than_are_numbered_beforehand():
    """A batch beyond the numbers at hand gets more of them, and the next small one is none the worse."""
    rows = grouping._LEAST_NUMBERED + 5
    for lens in ([rows, 3, rows], [2, 3, 2]):
        segments = Segments.from_sequences(lens, [1, 0, 1], [8, 8], [1.0, 1.0], chunk_size=64, device="cpu")
        assert found(segments) == expected(tokens_of(lens, [1, 0, 1]), [8, 8], 64)


@unhurried
@given(batches())
def test_from_tokens_equals_from_sequences(batch):
    """Naming the adapter of each token gives the same tensors as naming that of each sequence."""
    lens, ids, ranks, scalings, chunk_size = batch
    by_token = Segments.from_tokens(tokens_of(lens, ids), ranks, scalings, chunk_size=chunk_size, device="cpu")
    by_sequence = Segments.from_sequences(lens, ids, ranks, scalings, chunk_size=chunk_size, device="cpu")
    for name in ("permutation", "seg_indptr", "weight_indices", "lora_ranks", "scalings"):
        assert torch.equal(getattr(by_token, name), getattr(by_sequence, name)), name
    assert (by_token.num_segments, by_token.num_tokens) == (by_sequence.num_segments, by_sequence.num_tokens)


@unhurried
@given(batches(), st.data())
def test_device_grouping_finds_the_same_segments_with_a_capacity(batch, data):
    """group_tokens, which must not know how many there are, fills the capacity's tail with empty segments.

    Ids that are no slot, on either side, count as none.
    """
    _, _, ranks, scalings, chunk_size = batch
    ids = data.draw(st.lists(st.integers(-3, len(ranks) + 2), max_size=60))
    num_segments = segment_capacity(len(ids), len(ranks), chunk_size)
    dtype = data.draw(st.sampled_from([torch.int8, torch.int32, torch.int64]))
    grouped = group_tokens(torch.tensor(ids, dtype=dtype), torch.tensor(ranks).int(), chunk_size, num_segments)
    segments = Segments(
        grouped.permutation, grouped.seg_indptr, grouped.weight_indices, torch.tensor(ranks),
        torch.tensor(scalings), chunk_size, num_segments, len(ids),
    )  # fmt: skip
    assert found(segments) == expected(ids, ranks, chunk_size)


@unhurried
@given(st.lists(st.integers(0, 40), max_size=7), st.integers(1, 20))
def test_segment_capacity_holds_every_batch(counts, chunk_size):
    """No split of the tokens over the slots makes more segments than the capacity."""
    made = sum(-(-count // chunk_size) for count in counts)
    assert made <= segment_capacity(sum(counts), len(counts), chunk_size)


@unhurried
@given(st.integers(0, 60), st.integers(0, 7), st.integers(1, 20))
def test_segment_capacity_is_reached(num_tokens, num_loras, chunk_size):
    """One row for each slot and the rest for the first makes as many segments as the capacity, so it cannot be less."""
    others = max(min(num_tokens, num_loras) - 1, 0)
    counts = [num_tokens - others, *[1] * others][:num_loras]
    made = sum(-(-count // chunk_size) for count in counts)
    assert made == segment_capacity(num_tokens, num_loras, chunk_size)


@unhurried
@given(st.lists(st.tuples(batches(), st.booleans()), min_size=1, max_size=4))
def test_refills_stay_in_place_and_forget_the_batch_before(refills):
    """Refilled with more, fewer, one and none: same storage, same num_segments, and the rows of the last batch only."""
    tokens = max(sum(lens) for (lens, *_), _ in refills) + 5
    segments = Segments.allocate(tokens, 6, chunk_size=7, device="cpu")
    assert found(segments) == []
    assert segments.num_tokens == tokens
    names = ("permutation", "seg_indptr", "weight_indices", "lora_ranks", "scalings")
    before = [getattr(segments, name).data_ptr() for name in names], segments.num_segments
    for (lens, ids, ranks, scalings, _), by_token in refills:
        if by_token:
            segments.update_from_tokens(tokens_of(lens, ids), ranks, scalings)
        else:
            segments.update_from_sequences(lens, ids, ranks, scalings)
        assert found(segments) == expected(tokens_of(lens, ids), ranks, 7)
        unused = [0] * (6 - len(ranks))
        assert segments.lora_ranks.tolist() == ranks + unused
        assert segments.scalings.tolist() == scalings + unused
    assert before == ([getattr(segments, name).data_ptr() for name in names], segments.num_segments)


@unhurried
@given(batches())
def test_regroup_refills_in_place_without_the_host(batch):
    """The refill for ids on the GPU, run here on the CPU, agrees with the loop after another batch was there."""
    lens, ids, ranks, scalings, _ = batch
    tokens = [-1 if id_ is None else id_ for id_ in tokens_of(lens, ids)]
    segments = Segments.allocate(len(tokens) + 3, 6, chunk_size=7, device="cpu")
    segments.update_from_tokens([5] * (len(tokens) + 2), [64] * 6, [1.0] * 6)
    segments._regroup(torch.tensor(tokens, dtype=torch.int32), Adapters.read(ranks, scalings))
    assert found(segments) == expected(tokens, ranks, 7)


def test_inputs_may_be_lists_tensors_and_ranges():
    """Whatever holds the numbers on the host, the segments are the same."""
    lens, ids, ranks, scalings = [3, 0, 5], [1, -1, 0], [8, 16], [1.0, 2.0]
    wanted = Segments.from_sequences(lens, ids, ranks, scalings, chunk_size=2, device="cpu")
    for kind in (torch.tensor, tuple, lambda values: torch.tensor(values)[::1].clone()):
        got = Segments.from_sequences(*map(kind, (lens, ids, ranks, scalings)), chunk_size=2, device="cpu")
        assert found(got) == found(wanted)
        assert torch.equal(got.scalings, wanted.scalings)
    got = Segments.from_tokens(range(3), torch.tensor([4, 4, 4], dtype=torch.uint8), [1, 2, 3], device="cpu")
    assert found(got) == [(0, [0]), (1, [1]), (2, [2])]


def test_tensors_are_int32_and_float32_views_of_one_aligned_buffer():
    """One buffer, so that one copy fills it; each view begins at a multiple of 16 bytes, for wide loads."""
    for segments in (
        Segments.from_sequences([3, 5, 1], [1, 2, 0], [8, 1, 3], [1.0, 2.0, 3.0], chunk_size=2, device="cpu"),
        Segments.allocate(31, 3, chunk_size=5, device="cpu"),
    ):
        tensors = [segments.permutation, segments.seg_indptr, segments.weight_indices, segments.lora_ranks]
        assert {tensor.dtype for tensor in tensors} == {torch.int32}
        assert segments.scalings.dtype == torch.float32
        views = [*tensors, segments.scalings]
        assert len({view.untyped_storage().data_ptr() for view in views}) == 1
        assert all(view.data_ptr() % 16 == 0 for view in views)


def test_the_chunk_size_grows_with_the_batch():
    """That of the rows with an adapter; refilling keeps what was allocated."""
    assert Segments.from_tokens([0] * 5, [8], [1.0], device="cpu").chunk_size == 16
    assert Segments.from_sequences([2047, 9000], [0, None], [8], [1.0], device="cpu").chunk_size == 16
    large = Segments.allocate(4096, 2, device="cpu")
    assert large.chunk_size == 64
    large.update_from_tokens([0] * 5, [8], [1.0])
    assert large.chunk_size == 64


def test_nothing_depends_on_the_default_device():
    """Under a default device that holds no numbers, as servers set a GPU, host work stays on the host."""
    with torch.device("meta"):
        segments = Segments.from_sequences([3, 2], [0, None], [8], [1.0], device="cpu")
        static = Segments.allocate(9, 2, device="cpu")
        static.update_from_tokens([1, 0, 1], [8, 4], [1.0, 2.0])
        static._regroup(torch.tensor([0, 1], device="cpu"), Adapters.read([8, 4], [1.0, 2.0]))
    assert found(segments) == [(0, [0, 1, 2])]
    assert found(static) == [(0, [0]), (1, [1])]


def test_repr_tells_sizes_and_never_contents():
    """The repr is built from what the host knows: a synchronising one would stall whoever logs it."""
    segments = Segments.allocate(40, 3, chunk_size=16, device="cpu")
    assert repr(segments) == (
        "Segments(40 tokens, 5 segments of up to 16 rows, 3 adapter slots, cpu; refillable, these are capacities)"
    )
    exact = Segments.from_tokens([0], [8], [1.0], device="cpu")
    assert repr(exact) == "Segments(1 tokens, 1 segments of up to 16 rows, 1 adapter slots, cpu)"


GOOD = {"seq_lens": [3, 4], "adapter_ids": [0, 1], "lora_ranks": [8, 16], "scalings": [1.0, 2.0]}


def test_only_allocated_segments_are_refilled():
    """Segments cut to one batch have no room for another, and say so."""
    segments = Segments.from_sequences(**GOOD, device="cpu")
    with pytest.raises(ValueError, match=r"expected ones made by Segments\.allocate"):
        segments.update_from_tokens([0], [8], [1.0])


@gpu
@pytest.mark.parametrize(("rows", "refills"), [(0, 1000), (20_000, 30)], ids=["small copies", "pinned memory"])
def test_refilling_again_before_the_first_copy_is_done_is_safe(rows, refills):
    """With the stream held up, many refills are queued; work between them sees each its own batch."""
    segments = Segments.allocate(rows + 64, 2, chunk_size=4)
    sums = torch.zeros(refills, dtype=torch.int64, device="cuda")
    counts = [rows + 1 + step % 63 for step in range(refills)]
    torch.cuda._sleep(1_000_000_000)
    for step, count in enumerate(counts):
        segments.update_from_sequences([count], [0], [8, 8], [float(step), 1.0])
        sums[step].copy_(
            segments.permutation[count - 1] + segments.seg_indptr[-1] + segments.scalings[0].long() * 10**6
        )
    assert sums.tolist() == [count - 1 + count + step * 10**6 for step, count in enumerate(counts)]


@gpu
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_nothing_waits_for_the_gpu(where):
    """Neither building nor refilling synchronises, with ids, ranks and scalings on either side."""
    ids = torch.tensor([1, -1, 0, 1, 1], device=where)
    ranks, scalings = torch.tensor([8, 16], device=where), torch.tensor([1.0, 2.0], device=where)
    static = Segments.allocate(9, 3, chunk_size=2)
    static.update_from_tokens(ids, ranks, scalings)  # the first use of torch's own kernels may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        static.update_from_tokens(ids, ranks, scalings)
        static.update_from_sequences([2, 1], [0, 1], ranks, scalings)
        static.update_from_tokens(ids, ranks, scalings)
        fresh = Segments.from_tokens(ids, ranks, scalings, chunk_size=2, device="cuda")
        text = repr(static) + repr(fresh)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(text, str)
    assert found(fresh) == found(static) == [(0, [2]), (1, [0, 3]), (1, [4])]


@gpu
def test_a_captured_refill_follows_its_ids():
    """With all on the GPU, update_from_tokens can be captured; each replay groups the ids of the moment."""
    ids = torch.zeros(7, dtype=torch.int32, device="cuda")
    ranks, scalings = torch.tensor([8, 16], device="cuda"), torch.tensor([1.0, 2.0], device="cuda")
    segments = Segments.allocate(7, 2, chunk_size=2)
    segments.update_from_tokens(ids, ranks, scalings)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        segments.update_from_tokens(ids, ranks, scalings)
    for batch in ([1, 0, -1, 1, 1, 0, 5], [-1] * 7, [0] * 7):
        ids.copy_(torch.tensor(batch))
        graph.replay()
        assert found(segments) == expected(batch, [8, 16], 2)


@gpu
def test_a_host_refill_is_refused_while_capturing():
    """Its source would be gone when the graph is replayed."""
    segments = Segments.allocate(7, 2, chunk_size=2)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="cannot be captured"), torch.cuda.graph(graph):
        segments.update_from_tokens([0, 1], [8, 8], [1.0, 1.0])


@gpu
def test_device_defaults_to_the_gpu_and_mixed_devices_are_refused():
    """None means the current GPU; sequences on the GPU would need a wait and are refused with the reason."""
    assert Segments.from_tokens([0], [8], [1.0]).permutation.is_cuda
    with pytest.raises(TypeError, match="seq_lens: expected a list or a tensor on the host"):
        Segments.from_sequences(torch.tensor([1], device="cuda"), [0], [8], [1.0])
    with pytest.raises(ValueError, match="device: expected every tensor on cpu or on the host"):
        Segments.from_tokens(torch.tensor([0], device="cuda"), [8], [1.0], device="cpu")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_launched_with_its_own_tensors(copied: Callable[[Segments], Segments]) -> None:
    """Not with those of the original, whose place is known once it has been launched, and which may be gone."""
    segments = Segments.from_sequences([5, 3], [1, 0], [8, 4], [1.0, 0.5], chunk_size=4, device="cpu")
    assert arguments.batch_kind(segments) is arguments.batch_kind(segments)
    twin = copied(segments)
    assert arguments.batch_kind(twin)[1] == tuple(tensor.data_ptr() for tensor in twin.tensors)
    assert [tensor.tolist() for tensor in twin.tensors] == [tensor.tolist() for tensor in segments.tensors]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_refilled_in_its_own_tensors(copied: Callable[[Segments], Segments]) -> None:
    """As the original would be, which stays as it is."""
    segments = Segments.allocate(9, 2, chunk_size=4, device="cpu")
    segments.update_from_tokens([1] * 5, [8, 4], [1.0, 0.5])
    before = [tensor.tolist() for tensor in segments.tensors]
    twin = copied(segments)
    twin.update_from_tokens([0, 1, 0], [8, 4], [1.0, 0.5])
    assert found(twin) == [(0, [0, 2]), (1, [1])]
    assert [tensor.tolist() for tensor in segments.tensors] == before


@pytest.mark.parametrize("static", [False, True])
def test_with_adapters_shares_all_but_ranks_and_scalings(static: bool) -> None:
    """A layer in which slots have other ranks: the same tensors otherwise, and refills are seen by both."""
    contents = ([0, 1, -1, 0], [4, 8], [1.0, 2.0])
    batch = Segments.allocate(4, 2, device="cpu") if static else Segments.from_tokens(*contents, device="cpu")
    ranks = torch.tensor([2, 0], dtype=torch.int32, device="cpu")
    scalings = torch.tensor([0.5, 0.0], device="cpu")
    other = batch.with_adapters(ranks, scalings)
    assert other.lora_ranks is ranks
    assert other.scalings is scalings
    assert all(getattr(other, name) is getattr(batch, name) for name in ("permutation", "seg_indptr", "weight_indices"))
    assert (other.chunk_size, other.num_segments, other.num_tokens) == (batch.chunk_size, batch.num_segments, 4)
    assert (other.least_tokens, other.largest_rank) == (0 if static else 4, 0)
    if static:
        batch.update_from_tokens(*contents)
        assert other.seg_indptr.tolist()[:3] == [0, 2, 3]
        with pytest.raises(ValueError, match=r"expected ones made by Segments\.allocate"):
            other.update_from_tokens(*contents)
