"""What was measured at one key corrects the model at keys near it, and less so at those far away."""

from __future__ import annotations

import pytest

from csgmv import rules
from csgmv.config import ExpandConfig, to_row
from csgmv.tuning import model
from csgmv.tuning.experience import Experience, far_apart
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Batch, Task
from searching import H200


def task(segments: int, chunk_size: int = 16, rank: int = 24) -> Task:
    key = rules.Key("expand", 0, (1536, 256), rank, 2, "bfloat16", chunk_size, segments)
    return Task(key, (Batch(chunk_size * segments, 4, segments),))


GOOD, BAD, PLAIN = (ExpandConfig(16, block_n, 32, 2, 4, 1) for block_n in (64, 128, 32))
NEAR, FAR = task(32), task(1024, 128)


def learned() -> Experience:
    """At 16 segments GOOD takes half of what the model says, BAD twice that, PLAIN just that."""
    experience, at = Experience(H200), task(16)
    factors = {GOOD: 0.5, BAD: 2.0, PLAIN: 1.0}
    screened = {
        to_row(config): Screening(factor * model.predicted_us(config, at, H200), 3, False)
        for config, factor in factors.items()
    }
    experience.learn(at, screened)
    return experience


def correction(experience: Experience, config: ExpandConfig, at: Task, like: ExpandConfig | None = None) -> float:
    return experience.estimate(config, at, like=like) / model.predicted_us(config, at, H200)


def test_where_nothing_is_known_the_model_is_believed() -> None:
    """Before anything was learned, and for another family."""
    assert correction(Experience(H200), GOOD, NEAR) == 1.0
    assert correction(learned(), GOOD, task(32, rank=12)) == 1.0


def test_a_config_that_was_off_is_expected_to_be_off_again() -> None:
    """At the key itself by as much, near it by most of that, far from it by little."""
    experience = learned()
    assert correction(experience, GOOD, task(16)) == pytest.approx(0.5)
    assert correction(experience, BAD, task(16)) == pytest.approx(2.0)
    assert 0.5 < correction(experience, GOOD, NEAR) < 0.7
    assert correction(experience, GOOD, NEAR) < correction(experience, GOOD, FAR) < 1.0
    assert correction(experience, PLAIN, NEAR) == pytest.approx(1.0)


def test_configs_of_one_tiling_are_alike() -> None:
    """Another number of warps is expected to be off by less; a neighbour is like what it was walked from."""
    experience, kin = learned(), ExpandConfig(16, 64, 32, 2, 8, 1)
    assert correction(experience, GOOD, NEAR) < correction(experience, kin, NEAR) < 1.0
    other = ExpandConfig(16, 256, 32, 2, 4, 1)
    assert correction(experience, other, NEAR) == 1.0
    assert correction(experience, other, NEAR, like=GOOD) == pytest.approx(correction(experience, GOOD, NEAR))
    assert correction(experience, BAD, NEAR, like=GOOD) > 1.0


def test_only_what_differs_within_a_key_counts() -> None:
    """A GPU that is twice as slow as the model throughout teaches nothing."""
    experience, at = Experience(H200), task(16)
    configs = (GOOD, BAD, PLAIN)
    experience.learn(at, {to_row(c): Screening(2 * model.predicted_us(c, at, H200), 3, False) for c in configs})
    assert [correction(experience, config, NEAR) for config in configs] == pytest.approx([1.0] * 3)


def test_the_far_ones_come_first() -> None:
    """The ends, then the middle, then what lies between; every task once."""
    tasks = [task(segments) for segments in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    ordered = [one.key.segment_bucket for one in far_apart(tasks)]
    assert set(ordered[:2]) == {1, 256}
    assert ordered[2] == 16
    assert sorted(ordered) == [one.key.segment_bucket for one in tasks]
