"""What a config is checked on reaches every path of the kernels; on a GPU, times are of cold launches."""

from __future__ import annotations

import itertools

import pytest
import torch

from batches import DEVICE
from csgmv import footprint, measure, rules
from csgmv.tuning import lab as lab_module
from csgmv.tuning import space
from csgmv.tuning.lab import Lab, Screening, WrongResult, ragged_batch
from csgmv.tuning.plan import Batch, Task
from csgmv.workload import Workload

CPU, HERE = torch.device("cpu"), torch.empty(0, device=DEVICE).device
LIMITS = footprint.Limits(shared_memory=101376)
KEYS = [
    rules.Key("shrink", 72, (), 12, 3, "float32", 7, 8),
    rules.Key("expand", 0, (40, 24, 8), 12, 3, "float16", 7, 8),
    rules.Key("add_lora", 72, (40, 24), 24, 2, "float32", 16, 8),
    rules.Key("add_lora", 40, (24,), 1, 1, "float32", 16, 8),
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key.op}-r{key.max_rank}")
def test_the_check_batch_is_ragged(key: rules.Key) -> None:
    """Mixed ranks, 0 too, an adapter without rows, rows without an adapter, several segments, one of a single row."""
    batch = ragged_batch(key, CPU)
    ranks, used = batch.ranks, {adapter for adapter in batch.ids if adapter is not None}
    assert max(ranks) == key.max_rank
    assert 0 in ranks
    assert None in batch.ids
    assert used < set(range(len(ranks)))
    assert sum(ranks[adapter] == key.max_rank for adapter in used) >= 2
    assert key.max_rank == 1 or any(0 < ranks[adapter] < key.max_rank for adapter in used)
    lengths = batch.segments.seg_indptr.diff()
    assert lengths.max() == key.chunk_size
    assert lengths.min() == 1
    assert len(set(batch.segments.scalings.tolist())) > 1
    assert batch.lora_a.isnan().any()
    assert batch.lora_b.isnan().any()


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key.op}-r{key.max_rank}")
def test_the_default_passes_the_check(key: rules.Key) -> None:
    """On a GPU, or interpreted at sizes that a CPU can do."""
    row = space.default_row(key, LIMITS)
    assert row is not None
    assert 0 <= Lab(HERE).check(key, row) < 2e-3


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is NaN; a config that gives it is never timed."""
    lab, row = Lab(CPU), space.default_row(KEYS[0], LIMITS)
    for error in (0.1, float("nan"), float("inf")):
        monkeypatch.setattr(Workload, "error", lambda *_, error=error: error)
        with pytest.raises(WrongResult):
            lab.check(KEYS[0], row)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("op", rules.OPS)
def test_screening_and_race_agree(op: str) -> None:
    """Both time the same thing; a second of two equal configs in a race is as fast as the first."""
    device = torch.device("cuda", torch.cuda.current_device())
    dims = {"shrink": (1024, ()), "expand": (0, (1024, 512)), "add_lora": (1024, (1024, 512))}[op]
    task = Task(rules.Key(op, *dims, 64, 2, "bfloat16", 16, 8), (Batch(100, 7, 7),))
    row = space.default_row(task.key, LIMITS)
    assert row is not None
    lab = Lab(device)
    lab.check(task.key, row)
    screening = lab.screen(task, row, float("inf"))
    (first, second), launches = lab.race(task.key, task.batches[0], [row, row], 9)
    assert 2 <= launches <= measure.MOST_COPIES
    median = sorted(first)[4]
    assert sorted(second)[4] == pytest.approx(median, rel=0.05)
    assert screening.p50_us == pytest.approx(median, rel=0.2)
    assert not screening.stopped_early
    assert lab.screen(task, row, 0.0).stopped_early


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key.op}-r{key.max_rank}")
def test_timed_launches_work_on_the_batch(key: rules.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every copy has the batch's shapes and segments, memory of its own, and gives finite numbers."""
    monkeypatch.setattr(measure, "l2_bytes", lambda _: 30_000)
    lab, batch = Lab(HERE), Batch(40, 5, 5)
    copies = lab._copies(key, batch)
    assert len(copies) >= 2
    for copy in copies:
        result = copy.run(key.op, None)
        assert result.shape == (40, sum(key.slice_widths) or key.num_slices * key.max_rank)
        assert result.isfinite().all()
        assert (copy.segments.num_segments, copy.segments.chunk_size) == (-(-8 // key.chunk_size) * 5, key.chunk_size)
    names = {"shrink": ("x", "lora_a"), "expand": ("h", "lora_b", "base_output")}.get(
        key.op, ("x", "lora_a", "lora_b", "base_output")
    )
    places = [(getattr(copy, name).data_ptr(), getattr(copy, name).nbytes) for copy in copies for name in names]
    places.sort()
    assert all(start + size <= following for (start, size), (following, _) in itertools.pairwise(places))
    assert all(start % 16 == 0 for start, _ in places)


def test_copies_are_made_once_until_the_arena_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an arena has outgrown is not held on to: a GPU might not have room for both."""
    monkeypatch.setattr(measure, "l2_bytes", lambda _: 1 << 16)
    lab, key = Lab(HERE), KEYS[0]
    small, large = Batch(8, 2, 2), Batch(512, 2, 2)
    first = lab._copies(key, small)
    assert lab._copies(key, small) is first
    assert lab._copies(key._replace(max_rank=8), small) is not first
    lab._copies(key, large)
    again = lab._copies(key, small)
    assert again is not first
    assert again[0].x.untyped_storage().data_ptr() != first[0].x.untyped_storage().data_ptr()


@pytest.mark.gpu
def test_copies_are_cold() -> None:
    """Reading 4 MB that L2 could hold takes as long as out of memory: more than 4 TB/s would give it away."""
    device = torch.device("cuda", torch.cuda.current_device())
    tensors = [torch.ones(1 << 21, dtype=torch.float16, device=device) for _ in range(32)]
    cold = measure.ColdGraph([tensor.sum for tensor in tensors], device)
    warm = measure.ColdGraph([tensors[0].sum] * 32, device)
    (cold_us, warm_us) = (sorted(times)[2] for times in measure.interleaved([cold, warm], 5))
    assert cold_us > warm_us


def test_copies_exceed_the_cache_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems are copied up to 64 times, those larger than the cache twice."""
    monkeypatch.setattr(measure, "l2_bytes", lambda _: 50_000_000)
    assert measure.num_copies(1_000, CPU) == 64
    assert measure.num_copies(10_000_000, CPU) == 15
    assert measure.num_copies(800_000_000, CPU) == 2


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ((70.0, 10.0, 11.0), Screening(11.0, 9, False)),  # the first one was hit by something
        ((10.0, 70.0, 11.0), Screening(11.0, 9, False)),
        ((40.0, 30.0), Screening(30.0, 6, True)),
    ],
    ids=["a bad first", "a bad second", "both are slow"],
)
def test_one_bad_sample_does_not_end_a_screening(
    samples: tuple[float, ...], expected: Screening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two have to be above the mark, and the lesser counts then; else it is the median of three."""
    left = iter(samples)

    class Graph:
        def __init__(self, *_: object) -> None:
            pass

        def sample(self) -> float:
            return next(left)

    monkeypatch.setattr(measure, "ColdGraph", Graph)
    monkeypatch.setattr(lab_module, "_UPLOAD_SHOWS_US", 0.0)
    lab = Lab(HERE)
    monkeypatch.setattr(lab, "_calls", lambda *_: [lambda: None] * 3)
    task = Task(KEYS[0], (Batch(40, 5, 5),))
    row = space.default_row(KEYS[0], LIMITS)
    assert row is not None
    screening = lab.screen(task, row, 20.0)
    assert screening.p50_us == pytest.approx(expected.p50_us)
    assert screening[1:] == expected[1:]
    assert next(left, None) is None
