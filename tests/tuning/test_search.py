"""The search finds the best config by what a bench tells it, and survives what goes wrong with a candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from csgmv import records, rules
from csgmv.config import ExpandConfig, ShrinkConfig, from_row, to_row
from csgmv.tuning import space
from csgmv.tuning.compile import Binary
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Task, parts
from csgmv.tuning.race import FINALISTS
from csgmv.tuning.record import Record
from csgmv.tuning.search import FIRST, STEPS, Shared, search
from csgmv.tuning.worker import Failure

H200 = space.Device(rules.Limits(shared_memory=232448, programmatic_launch=True), sm_count=132)
SHRINK = Task(rules.Key("shrink", 1536, (), 24, 3, "bfloat16", 64, 8), 300, 5, 5)
EXPAND = Task(rules.Key("expand", 0, (1536, 256, 256), 24, 3, "bfloat16", 64, 8), 300, 5, 5)
JOINT = Task(rules.Key("add_lora", 1536, (1536, 256, 256), 24, 3, "bfloat16", 64, 8), 300, 5, 5)
LAUNCHES = 10


class FakeBench:
    """Times configs by a formula; `fails` maps a row to a reason, `error` is every check's result."""

    def __init__(self, cost: Callable[[rules.Row], float], fails: Callable[[rules.Row], str | None] = lambda _: None):
        self.cost, self.fails = cost, fails
        self.screened: list[rules.Row] = []
        self.raced: list[list[rules.Row]] = []

    def check(self, _: rules.Key, row: rules.Row) -> float:
        """Whatever `fails` says."""
        assert row not in self.screened
        if reason := self.fails(row):
            raise Failure(reason)
        return 0.001

    def screen(self, _: Task, row: rules.Row, stop_above: float) -> Screening:
        """By the formula."""
        self.screened.append(row)
        cost = self.cost(row)
        return Screening(cost, LAUNCHES * (1 if cost > stop_above else 3), cost > stop_above)

    def race(self, _: Task, rows: Sequence[rules.Row], rounds: int) -> tuple[list[list[float]], int]:
        """By the formula, with a jitter that repeats every three rounds."""
        self.raced.append(list(rows))
        return [[self.cost(row) + 0.01 * (i % 3) for i in range(rounds)] for row in rows], LAUNCHES


def drive(
    task: Task,
    bench: FakeBench,
    shared: Shared | None = None,
    broken: Callable[[rules.Row], str | None] = lambda _: None,
    device: space.Device = H200,
) -> Record | None:
    """Run a search to its end; `broken` says why a row does not compile."""
    found: list[Record] = []
    generator = search(task, device, bench, shared or Shared(), lambda _, record: found.append(record))
    rows = next(generator)
    try:
        while True:
            outcomes = {}
            for row in rows:
                reason = broken(row)
                outcomes[row] = Failure(reason) if reason else Binary(4096, 64, 0)
            rows = generator.send(outcomes)
    except StopIteration:
        return found[0] if found else None


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


def joint_cost(row: rules.Row) -> float:
    cut = len(rules.FIELDS["shrink"])
    return shrink_cost(row[:cut]) + expand_cost(row[cut:-1]) - (1.5 if row[-1] else 0.0)


def winner(record: Record) -> rules.Row:
    return min(record.finalists, key=lambda finalist: finalist.p50_us).row


def test_the_best_is_found_by_walking_from_the_best_tilings() -> None:
    """Eight warps are in no shortlisted config of this key: the walk to neighbours gets there."""
    bench = FakeBench(shrink_cost)
    record = drive(SHRINK, bench)
    assert record is not None
    best = from_row("shrink", winner(record))
    assert (best.split_k, best.block_k, best.num_warps, best.num_stages) == (4, 256, 8, 2)  # type: ignore[union-attr]


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
    assert record.default.p50_us == pytest.approx(shrink_cost(default) + 0.01)  # type: ignore[arg-type]
    assert [finalist.row for finalist in record.finalists] == [row for row, *_ in record.candidates[:FINALISTS]]
    assert (record.finalists[0].shared_bytes, record.finalists[0].registers) == (4096, 64)
    assert (record.accuracy.cases, record.accuracy.max_error, record.accuracy.tolerance) == (1, 0.001, 1.6e-2)
    assert record.pruned["slower by the model of bytes and waves"] > 1000
    assert (record.tokens, record.adapters, record.num_segments) == (300, 5, 5)


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
    result = records.Result("G", "3.6.0", EXPAND.key, 1, 1, 1, None, finalists, first.noise_us, "")
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
    bench.race = lambda task, rows, rounds: (
        [[us + i // 3 for i, us in enumerate(s)] for s in race(task, rows, rounds)[0]],
        1,
    )  # type: ignore[method-assign]
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
    best = from_row("shrink", winner(record))
    assert (best.split_k, best.num_warps) == (4, 4)  # type: ignore[union-attr]


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

    def fail_once(task: Task, rows: Sequence[rules.Row], rounds: int) -> tuple[list[list[float]], int]:
        calls.append(list(rows))
        if len(calls) == 1:
            raise Failure("crashed with exit status -9")
        return race(task, rows, rounds)

    bench.race = fail_once  # type: ignore[method-assign]
    record = drive(SHRINK, bench)
    assert record is not None
    assert record.failed == {"crashed with exit status -9": 1}
    assert calls[0][-1] not in [row for row, *_ in record.candidates]


def parts_ranked() -> Shared:
    shared = Shared()
    drive(SHRINK, FakeBench(shrink_cost), shared)
    drive(EXPAND, FakeBench(expand_cost), shared)
    assert set(shared.rankings) == set(parts(JOINT.key))
    return shared


def test_add_lora_joins_the_best_parts() -> None:
    """The best shrink, the best expand, and the overlap where it pays."""
    found = parts_ranked()
    best = [found.rankings[part].best()[0] for part in parts(JOINT.key)]
    record = drive(JOINT, FakeBench(joint_cost), found)
    assert record is not None
    assert winner(record) == (*best[0], *best[1], True)


def test_add_lora_weighs_several_splits_and_both_overlaps() -> None:
    """A split that is second best by itself wins where the joint time says so; overlap too may cost."""
    found = parts_ranked()

    def cost(row: rules.Row) -> float:
        return joint_cost(row) + (5.0 if row[-1] else 0.0) - (3.0 if row[4] == 6 else 0.0)

    bench = FakeBench(cost)
    record = drive(JOINT, bench, found)
    assert record is not None
    assert (winner(record)[4], winner(record)[-1]) == (6, False)
    assert len(bench.screened) <= 20


def test_overlap_is_not_tried_where_the_device_lacks_it() -> None:
    """Programmatic dependent launch came with compute capability 9.0."""
    found = parts_ranked()
    bench = FakeBench(joint_cost)
    device = H200._replace(limits=H200.limits._replace(programmatic_launch=False))
    assert drive(JOINT, bench, found, device=device) is not None
    assert not any(row[-1] for row in bench.screened)


def test_add_lora_waits_for_its_parts() -> None:
    """It asks for nothing until both rankings are there."""
    found = Shared()
    waiting = search(JOINT, H200, FakeBench(joint_cost), found, None)
    assert next(waiting) == ()
    assert waiting.send({}) == ()
    found.rankings.update(parts_ranked().rankings)
    rows = waiting.send({})
    assert all(rules.resource_fault(row, JOINT.key, H200.limits) is None for row in rows)
    assert to_row(from_row("add_lora", rows[0])) == rows[0]


def test_what_was_compiled_for_other_buckets_is_screened_too() -> None:
    """A binary serves all numbers of segments: a second bucket compiles few of its own and tries the first one's."""
    shared, asked = Shared(), []
    drive(SHRINK, FakeBench(shrink_cost), shared)
    other = SHRINK._replace(key=SHRINK.key._replace(segment_bucket=64), tokens=3000, num_segments=50)
    shape = SHRINK.key._replace(segment_bucket=1)
    before = set(shared.asked[shape])
    bench = FakeBench(lambda row: asked.append(row) or shrink_cost(row))  # type: ignore[func-returns-value]
    drive(other, bench, shared)
    assert before <= set(asked)
    assert len(set(asked) - before) <= FIRST["shrink"] + sum(STEPS)
    elsewhere = SHRINK._replace(key=SHRINK.key._replace(chunk_size=32))
    bench = FakeBench(shrink_cost)
    drive(elsewhere, bench, shared)
    assert not before <= set(bench.screened)
