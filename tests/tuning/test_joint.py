"""Pairs are chosen by the pair's own time, from parts that were searched by themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from csgmv import footprint, rules
from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig, from_row
from csgmv.tuning.experience import Experience
from csgmv.tuning.hunt import Shared
from csgmv.tuning.joint import JOIN
from csgmv.tuning.plan import Batch, Task, parts
from csgmv.tuning.record import Record
from csgmv.tuning.search import search
from searching import H200, FakeBench, drive

JOINT = Task(rules.Key("add_lora", 1536, (1536, 256, 256), 24, 3, "bfloat16", 16, 8), (Batch(40, 8, 8),))
SHRINK, EXPAND = (JOINT._replace(key=part) for part in parts(JOINT.key))


def shrink_us(config: ShrinkConfig, best_split: int) -> float:
    """Least at one split_k, at eight warps; each step away from these costs a tenth."""
    steps = abs(config.split_k.bit_length() - best_split.bit_length()) + abs(config.num_warps.bit_length() - 4)
    return 10.0 * 1.1**steps


def expand_us(config: ExpandConfig) -> float:
    return 8.0 + abs(config.block_n - 128) / 64 + abs(config.column_tiles - 2) / 4


def alone(op: str) -> Callable[[rules.Row], float]:
    """By itself, shrink is fastest without splits, whose sums take a launch more."""

    def cost(row: rules.Row) -> float:
        config = from_row(op, row)
        return shrink_us(config, 1) if isinstance(config, ShrinkConfig) else expand_us(config)  # type: ignore[arg-type]

    return cost


def pair(row: rules.Row) -> float:
    """In the pair it is fastest with four."""
    config = from_row("add_lora", row)
    assert isinstance(config, AddLoraConfig)
    return shrink_us(config.shrink, 4) + expand_us(config.expand) - (1.5 if config.overlap else 0.0)


def searched(fails: Callable[[str, rules.Row], str | None] = lambda _op, _row: None) -> Shared:
    """Both parts, searched by themselves; `fails` says why a row of one does."""
    shared = Shared(Experience(H200))
    for task in (SHRINK, EXPAND):
        op = task.key.op
        drive(task, FakeBench(alone(op), partial(fails, op)), shared)
    assert set(shared.rankings) == set(parts(JOINT.key))
    return shared


def winner(record: Record | None) -> AddLoraConfig:
    assert record is not None
    config = from_row("add_lora", min(record.finalists, key=lambda finalist: finalist.p50_us).row)
    assert isinstance(config, AddLoraConfig)
    return config


def test_the_pairs_own_time_decides() -> None:
    """The best shrink by itself has no splits; the pair's has four, and overlaps where that pays."""
    shared = searched()
    best = from_row("shrink", shared.rankings[SHRINK.key].best()[0])
    assert best.split_k == 1  # type: ignore[union-attr]
    found = winner(drive(JOINT, FakeBench(pair), shared))
    assert (found.shrink.split_k, found.overlap) == (4, True)
    assert expand_us(found.expand) <= 8.5


def test_a_pair_walks_to_neighbours_that_no_part_tried() -> None:
    """Register caps are in no grid, and work in neither part here; where the pair gains by one it is found."""

    def refused(op: str, row: rules.Row) -> str | None:
        return "wrong result" if from_row(op, row).maxnreg else None  # type: ignore[union-attr]

    def cost(row: rules.Row) -> float:
        config = from_row("add_lora", row)
        return pair(row) * (0.9 if config.shrink.maxnreg or config.expand.maxnreg else 1.0)  # type: ignore[union-attr]

    found = winner(drive(JOINT, FakeBench(cost), searched(refused)))
    assert found.shrink.maxnreg or found.expand.maxnreg


def test_both_overlaps_are_weighed() -> None:
    """Where it costs, it is left out."""
    found = winner(drive(JOINT, FakeBench(lambda row: pair(row) + (5.0 if row[-1] else 0.0)), searched()))
    assert not found.overlap


def test_overlap_is_not_tried_where_the_device_lacks_it() -> None:
    """Programmatic dependent launch came with compute capability 9.0."""
    bench = FakeBench(pair)
    device = H200._replace(limits=H200.limits._replace(programmatic_launch=False))
    assert drive(JOINT, bench, searched(), device=device) is not None
    assert not any(row[-1] for row in bench.screened)


def test_it_waits_for_its_parts() -> None:
    """It asks for nothing until both rankings are there; then for rows that fit the device, the default first."""
    shared = Shared(Experience(H200))
    waiting = search(JOINT, H200, FakeBench(pair), shared, lambda _, rows: dict.fromkeys(rows, 1), None)
    assert next(waiting) == ()
    assert waiting.send({}) == ()
    ready = searched()
    shared.rankings.update(ready.rankings)
    rows = waiting.send({})
    assert all(footprint.resource_fault(row, JOINT.key, H200.limits) is None for row in rows)
    defaults = [ready.rankings[part.key].default for part in (SHRINK, EXPAND)]
    assert rows[0] == (*(defaults[0] or ()), *(defaults[1] or ()), False)


def test_no_more_is_compiled_than_allowed() -> None:
    """Of pairs, each of which needs one binary here, beside the default."""
    compiled = set[rules.Row]()
    drive(JOINT, FakeBench(pair), searched(), compiled=compiled)
    assert len(compiled) <= 1 + sum(allowance.binaries for allowance in JOIN[True])


def test_where_there_is_time_more_is_compiled() -> None:
    """Each allowance is granted several times over, and what it buys is no worse."""
    results = []
    for effort in (1, 3):
        shared, compiled = searched(), set[rules.Row]()
        shared.effort = effort
        record = drive(JOINT, FakeBench(pair), shared, compiled=compiled)
        assert record is not None
        results.append((len(compiled), record.finalists[0].p50_us))
    (few, slow), (many, fast) = results
    assert 1.5 * few < many <= 1 + 3 * sum(allowance.binaries for allowance in JOIN[True])
    assert fast <= slow


def test_parts_without_a_config_leave_the_default() -> None:
    """Where no shrink works by itself, the pair's default is still timed."""
    shared = Shared(Experience(H200))
    drive(SHRINK, FakeBench(alone("shrink"), fails=lambda _: "wrong result"), shared)
    drive(EXPAND, FakeBench(alone("expand")), shared)
    record = drive(JOINT, FakeBench(pair), shared)
    assert record is not None
    assert record.default is not None
    assert record.default.p50_us == pytest.approx(pair(record.default.row), abs=0.02)
