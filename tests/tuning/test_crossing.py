"""Heats become races of records: rows that work are timed, whatever others do; nothing that is there is lost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from crossed import WHERE, RowBench, chosen, folder, layer, own
from csgmv import records, rules
from csgmv.tuning.compile import Binary
from csgmv.tuning.crossing import Crossing, Step, Summary
from csgmv.tuning.heats import Heat, heat
from csgmv.tuning.record import Archive
from csgmv.tuning.worker import Failure
from fabricated import DEFAULT
from rigs import HERE
from searching import Farm

ROWS = [tuple(own(stages, 8)) for stages in range(1, 6)]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return folder(tmp_path / "configs", layer(1024, 3), layer(512, 2))


def heat_of(configs: Path, rows: Sequence[rules.Row] = ROWS, input_dim: int = 1024, chunk_size: int = 16) -> Heat:
    (result,) = (
        one for one in chosen(configs).results if (one.key.input_dim, one.key.chunk_size) == (input_dim, chunk_size)
    )
    return heat(result, rows)


def cross(configs: Path, bench: RowBench, *heats: Heat, farm: Farm | None = None) -> Summary:
    return Crossing(bench, farm or Farm(), Archive(configs, *WHERE, HERE.run)).run(heats)


def lengths(configs: Path, one: Heat) -> dict[rules.Row, float]:
    (result,) = (each for each in chosen(configs).results if each.key == one.result.key)
    return records.at_length(result)


def test_rows_are_timed_on_the_batches_that_decided(configs: Path) -> None:
    """All in turn, the winner and the default among them; what is kept are medians of the geometric means."""
    one, bench = heat_of(configs), RowBench()
    assert cross(configs, bench, one)[:3] == (1, 5, 0)
    assert [(batch.tokens, rows) for _, batch, rows in bench.raced] == [(101, one.all_rows), (32, one.all_rows)]
    assert one.all_rows[:2] == (tuple(own(3, 1)), tuple(DEFAULT))
    assert [row for _, row in bench.checked] == list(one.all_rows)
    (result,) = (each for each in chosen(configs).results if each.key == one.result.key)
    (race,) = result.races
    assert race.samples == 12 * 8 * 2
    for row, us in race.times.items():
        assert us == pytest.approx(statistics.geometric_mean([bench.us(row), bench.us(row) / 2]), abs=0.006)
    assert lengths(configs, one)[ROWS[3]] == pytest.approx(48 / 31, rel=1e-3)


def test_a_wrong_row_is_refused_before_it_is_timed(configs: Path) -> None:
    """Or one that does not compile; the others are timed."""
    one, bench = heat_of(configs), RowBench(wrong=ROWS[1:2])

    class Broken(Farm):
        def submit(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, list[Future[Binary]]]:
            found = super().submit(key, rows)
            found[ROWS[4]][0] = Future()
            found[ROWS[4]][0].set_exception(Failure("OutOfResources: shared memory"))
            return found

    summary = cross(configs, bench, one, farm=Broken())
    assert [(refused.row, refused.reason) for refused in summary.refused] == [
        (ROWS[1], "WrongResult: wrong result"),
        (ROWS[4], "OutOfResources: shared memory"),
    ]
    assert {*ROWS} & {*lengths(configs, one)} == {ROWS[0], ROWS[2], ROWS[3]}


def test_a_row_that_crashes_costs_itself_alone(configs: Path) -> None:
    """Which of them it was is found out by halves, each beside the winner."""
    one, bench = heat_of(configs), RowBench(crashing=ROWS[2:3])
    summary = cross(configs, bench, one)
    assert [(refused.key, refused.row) for refused in summary.refused] == [(one.result.key, ROWS[2])]
    assert {*ROWS} & {*lengths(configs, one)} == {*ROWS} - {ROWS[2]}
    assert summary.rows == 4
    assert all(rows[0] == one.beside[0] for _, _, rows in bench.raced)


def test_without_the_winner_there_is_no_race(configs: Path) -> None:
    """Its time is what the others are compared with; the default may be missing."""
    one = heat_of(configs)
    before = {path: path.read_bytes() for path in configs.rglob("*.json")}
    assert cross(configs, RowBench(wrong=one.beside[:1]), one).races == 0
    assert {path: path.read_bytes() for path in configs.rglob("*.json")} == before
    assert cross(configs, RowBench(wrong=one.beside[1:]), one).races == 1


def test_keys_at_which_another_row_is_faster_are_told(configs: Path) -> None:
    """By more than ties are given."""
    one, other = heat_of(configs), heat_of(configs, input_dim=512)
    assert cross(configs, RowBench(), one).beaten == [one.result.key]
    assert cross(configs, RowBench(), other._replace(rows=tuple(ROWS[1:]))).beaten == []


def test_a_heat_that_compiles_lets_others_pass(configs: Path) -> None:
    """And is run once it is compiled; how far it has come is told after each."""
    slow, quick = heat_of(configs), heat_of(configs, ROWS[:2], 512)
    waiting: list[Future[Binary]] = []

    class Slow(Farm):
        def submit(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, list[Future[Binary]]]:
            found = super().submit(key, rows)
            if key == slow.result.key:
                waiting.append(Future())
                found[rows[0]].append(waiting[0])
            return found

    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        if step.heat == quick:
            waiting[0].set_result(Binary(1024, 32, 0))

    Crossing(RowBench(), Slow(), Archive(configs, *WHERE, HERE.run), report).run([slow, quick])
    assert [step.heat for step in steps] == [quick, slow]
    assert [(step.done, step.total) for step in steps] == [(4, 11), (11, 11)]


def test_when_the_time_is_up_the_rest_is_left(configs: Path) -> None:
    """What was timed until then is kept."""
    heats, bench = [heat_of(configs), heat_of(configs, input_dim=512)], RowBench()
    crossing = Crossing(bench, Farm(), Archive(configs, *WHERE, HERE.run))
    bench.before_race = lambda: time.sleep(0.05)
    summary = crossing.run(heats, time.monotonic() + 0.06)
    assert (summary.races, summary.left) == (1, 1)
    assert len(lengths(configs, heats[0])) > 2
    assert crossing.run(heats, -math.inf).left == 2
