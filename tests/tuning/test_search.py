"""The search finds the best config by what a bench tells it, and survives what goes wrong with a candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from csgmv import records, rules
from csgmv.config import ExpandConfig, ShrinkConfig, from_row
from csgmv.tuning import model, space
from csgmv.tuning.experience import Experience
from csgmv.tuning.hunt import LEADERS, Shared
from csgmv.tuning.plan import Batch, Task, family
from csgmv.tuning.race import FINALISTS
from csgmv.tuning.record import Record
from csgmv.tuning.search import EXPLORE
from csgmv.tuning.worker import Failure
from searching import H200, FakeBench, drive

SHRINK = Task(rules.Key("shrink", 1536, (), 24, 3, "bfloat16", 64, 8), (Batch(300, 5, 5),))
EXPAND = Task(rules.Key("expand", 0, (1536, 256, 256), 24, 3, "bfloat16", 64, 8), (Batch(300, 5, 5),))


def shrink_cost(row: rules.Row) -> float:
    """Least at block_k 256, split_k 4, 8 warps, 4 stages; each step away costs a tenth."""
    config = from_row("shrink", row)
    assert isinstance(config, ShrinkConfig)
    steps = abs(math.log2(config.split_k / 4)) + abs(config.block_k.bit_length() - 9)
    return 10.0 * 1.1 ** (steps + abs(config.num_warps.bit_length() - 4) + abs(config.num_stages - 2))


def expand_cost(row: rules.Row) -> float:
    config = from_row("expand", row)
    assert isinstance(config, ExpandConfig)
    return 8.0 + abs(config.block_n - 128) / 64 + abs(config.column_tiles - 2) / 4


BEST_EXPAND, OTHER_EXPAND = ExpandConfig(64, 256, 32, 3, 8, 1), ExpandConfig(64, 128, 32, 1, 4, 1)


def winner(record: Record) -> rules.Row:
    return min(record.finalists, key=lambda finalist: finalist.p50_us).row


def test_the_search_walks_from_the_best_tilings() -> None:
    """Eight warps are in no config of this key's grid: the walk to neighbours gets there, and on from there."""
    grid, _ = space.shortlist(SHRINK, H200, 1000)
    assert all(config.num_warps != 8 for config in grid)
    record = drive(SHRINK, FakeBench(lambda row: shrink_cost(row) * (1.0 if row[5] == 8 else 1.3)))
    assert record is not None
    assert winner(record)[5] == 8


def test_a_record_holds_all_that_was_measured() -> None:
    """Every candidate once, the finalists with resources, the default's own time, the check, what was pruned."""
    bench = FakeBench(shrink_cost)
    record = drive(SHRINK, bench)
    assert record is not None
    assert Counter(row for row, *_ in record.candidates) == Counter(bench.screened)
    assert [us for _, us, *_ in record.candidates] == sorted(us for _, us, *_ in record.candidates)
    default = space.default_row(SHRINK.key, H200.limits)
    assert record.default is not None
    assert record.default.row == default
    assert record.default.p50_us == pytest.approx(shrink_cost(default) + 0.01, abs=0.005)  # type: ignore[arg-type]
    assert [finalist.row for finalist in record.finalists] == [row for row, *_ in record.candidates[:FINALISTS]]
    assert (record.finalists[0].shared_bytes, record.finalists[0].registers) == (4096, 64)
    assert (record.accuracy.cases, record.accuracy.max_error, record.accuracy.tolerance) == (1, 0.001, 1.6e-2)
    assert record.pruned["slower by the model of bytes and waves"] > 100
    assert (record.tokens, record.adapters, record.num_segments, record.tuned_on) == (300, 5, 5, 1)
    (shown,) = record.batches
    assert shown[:3] == (300, 5, 5)
    assert shown[3:] == (record.default.p50_us, record.finalists[0].p50_us)


def test_losers_stop_early() -> None:
    """A config that is clearly slower than the best so far is left after one sample; the others are not."""
    record = drive(SHRINK, FakeBench(shrink_cost))
    assert record is not None
    stopped = [us for _, us, _, early in record.candidates if early]
    going = [us for _, us, _, early in record.candidates if not early]
    assert stopped
    assert min(stopped) > 1.2 * min(going)


def test_ties_fall_to_a_fixed_order() -> None:
    """When all configs are equally fast, two searches name the same finalists, in row order with None first."""
    first, second = (drive(EXPAND, FakeBench(lambda _: 5.0)) for _ in range(2))
    assert first is not None
    assert first == second
    rows = [finalist.row for finalist in first.finalists]
    assert rows == sorted(rows, key=rules.row_order)
    finalists = tuple(map(timing, first.finalists))
    result = records.Result("G", "3.6.0", EXPAND.key, None, finalists, first.noise_us, "")
    assert records.winner(result).row == rows[0]  # type: ignore[union-attr]


def timing(finalist: object) -> records.Timing:
    return records.Timing(finalist.row, finalist.p50_us, finalist.samples)  # type: ignore[attr-defined]


def test_the_noise_is_the_spread_of_the_defaults_medians() -> None:
    """Samples that repeat block by block have none; a drift over the blocks shows."""
    bench = FakeBench(shrink_cost)
    still = drive(SHRINK, bench)
    assert still is not None
    assert still.noise_us == 0.0
    race = bench.race
    bench = FakeBench(shrink_cost)
    bench.race = lambda key, batch, rows, rounds: (  # type: ignore[method-assign]
        [[us + i // 3 for i, us in enumerate(s)] for s in race(key, batch, rows, rounds)[0]],
        1,
    )
    drifting = drive(SHRINK, bench)
    assert drifting is not None
    assert drifting.noise_us == pytest.approx(3.0)


@pytest.mark.parametrize("stage", ["compile", "measure"])
def test_a_candidate_that_fails_costs_only_itself(stage: str) -> None:
    """What does not compile, is wrong, crashes or hangs is counted by reason; the best of the rest wins."""

    def bad(row: rules.Row) -> str | None:
        return "took longer than 60 s" if from_row("shrink", row).num_warps == 8 else None

    if stage == "compile":
        record = drive(SHRINK, FakeBench(shrink_cost), broken=bad)
    else:
        record = drive(SHRINK, FakeBench(shrink_cost, fails=bad))
    assert record is not None
    assert record.failed["took longer than 60 s"] > 0
    assert from_row("shrink", winner(record)).num_warps == 4  # type: ignore[union-attr]


def test_nothing_works_no_record() -> None:
    """A key whose every candidate fails leaves no record behind."""
    assert drive(SHRINK, FakeBench(shrink_cost, fails=lambda _: "wrong result")) is None


def test_a_default_that_does_not_run_is_null() -> None:
    """Then any winner is worth a row."""
    default = space.default_row(SHRINK.key, H200.limits)
    record = drive(SHRINK, FakeBench(shrink_cost), broken=lambda row: "OutOfResources" if row == default else None)
    assert record is not None
    assert record.default is None
    assert record.finalists


def test_a_finalist_that_fails_in_the_race_is_dropped() -> None:
    """The race is run again without it."""
    bench = FakeBench(shrink_cost)
    race, calls = bench.race, []

    def fail_once(
        key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int
    ) -> tuple[list[list[float]], int]:
        calls.append(list(rows))
        if len(calls) == 1:
            raise Failure("crashed with exit status -9")
        return race(key, batch, rows, rounds)

    bench.race = fail_once  # type: ignore[method-assign]
    record = drive(SHRINK, bench)
    assert record is not None
    assert record.failed == {"crashed with exit status -9": 1}
    assert calls[0][-1] not in [row for row, *_ in record.candidates]


def test_what_is_compiled_for_other_keys_is_screened_freely() -> None:
    """The first keys of a family have more compiled for them; the later ones find most of what they try there."""
    shared, compiled = Shared(Experience(H200)), set[rules.Row]()
    counts, screened = [], []
    for segments in (8, 1, 512, 64, 16, 128):
        bench = FakeBench(shrink_cost)
        batch = Batch(60 * segments, min(segments, 8), segments)
        task = Task(SHRINK.key._replace(segment_bucket=segments), (batch,))
        before = len(compiled)
        assert drive(task, bench, shared, compiled=compiled) is not None
        counts.append(len(compiled) - before)
        screened.append(len(bench.screened))
    allowed = [1 + sum(round_.binaries for round_ in EXPLORE[leads]) for leads in (True, False)]
    assert all(count <= allowed[0] for count in counts[:LEADERS])
    assert all(count <= allowed[1] for count in counts[LEADERS:])
    assert all(tried > 2 * count for tried, count in zip(screened[LEADERS:], counts[LEADERS:]))
    assert set(shared.pool[family(SHRINK.key)]) == compiled


def test_what_was_learned_at_one_key_is_tried_at_the_next() -> None:
    """A tiling that the model thinks little of wins at five keys; the sixth compiles hardly anything and finds it."""

    def cost(row: rules.Row) -> float:
        config = from_row("expand", row)
        return 20.0 if (config.block_n, config.column_tiles) != (256, 3) else 10.0  # type: ignore[union-attr]

    shared, compiled = Shared(Experience(H200)), set[rules.Row]()
    for segments in (8, 64, 512, 4096, 16):
        task = Task(EXPAND.key._replace(segment_bucket=segments), (Batch(60 * segments, 8, segments),))
        drive(task, FakeBench(cost), shared, compiled=compiled)
    task = Task(EXPAND.key._replace(segment_bucket=32), (Batch(1900, 8, 32),))
    guesses = [shared.experience.estimate(config, task) for config in (BEST_EXPAND, OTHER_EXPAND)]
    plain = [model.predicted_us(config, task, H200) for config in (BEST_EXPAND, OTHER_EXPAND)]
    record = drive(task, FakeBench(cost), shared, compiled=compiled)
    assert record is not None
    if any(cost(row) == 10.0 for row in compiled):
        assert guesses[0] / guesses[1] < plain[0] / plain[1]
        assert cost(winner(record)) == 10.0


def test_batches_that_do_not_decide_are_shown() -> None:
    """The default's and the winner's time on each batch of the key; what decides is the geometric mean of the first."""
    batches = (Batch(300, 5, 5), Batch(8, 8, 8), Batch(64, 8, 8))
    task = Task(SHRINK.key, batches, 2)
    bench = FakeBench(shrink_cost)
    bench.of_batch = lambda batch: 1.0 if batch.tokens == 300 else 0.25 if batch.tokens == 8 else 0.5
    record = drive(task, bench)
    assert record is not None
    assert record.tuned_on == 2
    assert [shown[:3] for shown in record.batches] == [tuple(batch) for batch in batches]
    assert record.default is not None
    for shown, factor in zip(record.batches, (1.0, 0.25, 0.5)):
        assert shown[3] == pytest.approx(factor * (record.default.p50_us / 0.5), rel=0.01)
        assert shown[4] == pytest.approx(factor * (record.finalists[0].p50_us / 0.5), rel=0.01)
