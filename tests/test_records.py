"""Which of the rows that were timed at a key wins, and whether it is baked."""

from __future__ import annotations

from typing import Any

import pytest

from csgmv import records
from fabricated import BETTER, DEFAULT, finalist, the_result

OTHER = [16, 64, 128, 1, 2, 8, 3, 96, True]


@pytest.mark.parametrize(
    ("record_", "others", "times"),
    [
        ({}, [[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]], [20.0, 12.5, 13.0]),
        ({"tuned_us": 29.95}, [[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]], [30.0, 15.0, 12.0]),
        ({"default_us": None}, [[9, 6, 6, None, 12.5], [80, 1, 5, None, 13.0]], [20.0, 12.5, 13.0]),
        ({"finalists": []}, [[9, 6, 6, 15.0, None], [80, 1, 5, 12.0, None]], [30.0, 15.0, 12.0]),
    ],
)
def test_each_batch_takes_the_time_of_what_the_table_has(
    record_: dict[str, Any], others: list[Any], times: list[float]
) -> None:
    """The winner's where its row is baked, else the default's; also where a batch's segments are of another bucket."""
    found = list(records.batches(the_result(others=others, **record_)))
    assert found == [(101, 5, 7, times[0]), (9, 6, 6, times[1]), (80, 1, 5, times[2])]


def test_a_batch_that_the_row_does_not_run_on_is_left_out() -> None:
    """There is no time to tell; whether the other config runs on it does not matter."""
    tuned, kept = the_result(others=[]), the_result(tuned_us=29.95, others=[])
    more = records.BatchTimes(9, 6, 6, 15.0, None), records.BatchTimes(80, 1, 5, None, 13.0)
    found = [[batch.tokens for batch in records.batches(one._replace(batches=more))] for one in (tuned, kept)]
    assert found == [[80], [9]]


def test_the_fastest_finalist_wins() -> None:
    """Wherever it stands."""
    result = the_result(finalists=[finalist(OTHER, 22.0), finalist(BETTER, 20.0)])
    assert records.baked_row(result) == tuple(BETTER)


def test_ties_within_the_noise_fall_to_the_first_row() -> None:
    """Whichever of them was a hair faster in this run: the next run would say the reverse."""
    one = the_result(finalists=[finalist(OTHER, 20.1), finalist(BETTER, 20.0)], noise_us=0.2)
    two = the_result(finalists=[finalist(BETTER, 20.1), finalist(OTHER, 20.0)], noise_us=0.2)
    assert records.baked_row(one) == records.baked_row(two) == tuple(OTHER)


@pytest.mark.parametrize(
    ("tuned_us", "noise_us", "baked"),
    [(29.8, 0.05, False), (29.6, 0.05, True), (29.0, 1.5, False), (28.0, 1.5, True), (31.0, 0.0, False)],
)
def test_a_row_is_baked_only_if_it_beats_the_default(tuned_us: float, noise_us: float, baked: bool) -> None:
    """By more than the noise and more than 1 % of the default's time (30 µs); otherwise the table says None."""
    assert records.baked_row(the_result(tuned_us=tuned_us, noise_us=noise_us)) == (tuple(BETTER) if baked else None)


def test_where_the_default_cannot_run_the_winner_is_baked() -> None:
    """Whatever its time: there is nothing to beat."""
    result = the_result(default_us=None, tuned_us=99.0)
    assert records.baked_row(result) == tuple(BETTER)
    assert records.gain(result) == float("inf")


def test_without_finalists_the_default_stays() -> None:
    """Every candidate failed, and the default ran."""
    result = the_result(finalists=[])
    assert records.baked_row(result) is None
    assert records.gain(result) == 0.0


def test_slowdowns_compare_like_with_like() -> None:
    """Full-length times with the winner's at full length, what was only screened with its time in screening."""
    other, screened = [16, *BETTER[1:]], [16, 16, 64, 1, 1, 4, 2, 96, True]
    candidates = [[BETTER, 22.0, 12, False], [other, 11.0, 12, False], [screened, 33.0, 3, True]]
    result = the_result(candidates=candidates, finalists=[finalist(BETTER, 20.0), finalist(other, 25.0)])
    assert records.slowdowns(result) == {
        tuple(BETTER): 1.0,
        tuple(other): 1.25,
        tuple(screened): 1.5,
        tuple(DEFAULT): 1.5,
    }
    assert records.slowdowns(the_result(finalists=[], candidates=[])) == {tuple(DEFAULT): 1.0}
    unscreened = the_result(default=None, finalists=[finalist(BETTER, 20.0)], candidates=[[screened, 33.0, 3, True]])
    assert records.slowdowns(unscreened) == {tuple(BETTER): 1.0}


def test_a_race_is_compared_within_itself() -> None:
    """By the winner's time in it. Of two races the last counts, and the record's own times before either."""
    slow = [16, 16, 64, 1, 1, 4, 2, 96, True]
    races = [
        {"run": 0, "samples": 96, "times": [[BETTER, 10.0], [DEFAULT, 99.0], [OTHER, 11.0], [slow, 30.0]]},
        {"run": 0, "samples": 96, "times": [[BETTER, 40.0], [OTHER, 50.0]]},
    ]
    result = the_result(races=races)
    length = {tuple(BETTER): 1.0, tuple(DEFAULT): 1.5, tuple(OTHER): 1.25, tuple(slow): 3.0}
    assert records.at_length(result) == length
    assert records.in_screening(result) == {tuple(BETTER): 1.0, tuple(slow): 31.5 / 20.0}
    assert records.slowdowns(result) == length
