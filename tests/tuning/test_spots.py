"""Keys are drawn from what `csgmv tune` would tune, always the same ones; what they lose is told by one race."""

from __future__ import annotations

import itertools

import pytest
import torch

from crossed import own
from csgmv import fallback, footprint, raw_results, records, rules
from csgmv.models import layer_shapes
from csgmv.tuning.plan import Plan
from csgmv.tuning.spots import Asked, Spot, drawn, unraced, verdict
from fabricated import BETTER, DEFAULT, document, finalist, record

WHERE = fallback.Target("NVIDIA H200", "3.6.0", footprint.LIMITS["9.0"], "9.0", 132)
ASKED = Asked(("qwen3-0.6b", "Qwen/Qwen3-1.7B"), (8, 32), (1, 2), ("shrink", "add_lora"))
KEY = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)  # a fabricated record's
TABLE = tuple(own(3))


def tables(*keys: rules.Key) -> fallback.Tables:
    return fallback.Tables({WHERE[:2]: fallback.by_layer(dict.fromkeys(keys, TABLE))}, {WHERE.gpu: ("9.0", 132)})


def test_the_same_keys_are_drawn_each_time() -> None:
    """By the seed; another one draws others. None comes twice, although layers share some."""
    keys = [spot.key for spot in drawn(ASKED, WHERE, tables(), 3)]
    assert keys == [spot.key for spot in drawn(ASKED, WHERE, tables(), 3)]
    assert len({*keys}) == len(keys)
    others = [spot.key for spot in drawn(ASKED, WHERE, tables(), 4)]
    assert {*others} == {*keys}
    assert others[:50] != keys[:50]
    assert {key.op for key in keys[:20]} == {"shrink", "add_lora"}


def test_they_are_what_the_tuner_would_tune() -> None:
    """For a model at a rank: no launch of another key is judged."""
    asked = Asked(("qwen3-0.6b",), (8,), (2,), rules.OPS)
    plan = Plan(layer_shapes("qwen3-0.6b", 2), 8, dtype=torch.bfloat16)
    assert {spot.key for spot in drawn(asked, WHERE, tables(), 0)} == {task.key for task in plan.tasks()}


def test_models_ranks_and_sizes_take_turns() -> None:
    """So that a short run has of all."""
    first = list(itertools.islice(drawn(ASKED, WHERE, tables(), 0), 8))
    assert len({(spot.model, spot.tp, spot.key.max_rank) for spot in first}) == 8


def test_what_has_a_row_of_its_own_is_not_drawn() -> None:
    """The others are served by it."""
    some = [spot.key for spot in drawn(ASKED, WHERE, tables(), 0) if spot.key.op == "shrink"][:5]
    left = list(drawn(ASKED, WHERE, tables(*some), 0))
    assert not {*some} & {spot.key for spot in left}
    assert any(spot.served.source in some for spot in left)


def test_a_model_that_cannot_be_split_is_told_of() -> None:
    """And the others are drawn from."""
    told: list[str] = []
    asked = ASKED._replace(models=("Qwen/Qwen3-1.7B",), tp=(1, 3))
    assert {spot.tp for spot in drawn(asked, WHERE, tables(), 0, told.append)} == {1}
    assert [text.partition(":")[0] for text in told] == ["Qwen/Qwen3-1.7B, tp 3"] * 2
    with pytest.raises(ValueError, match="max_rank: expected 1 to 256, got 300"):
        list(drawn(ASKED._replace(ranks=(300,)), WHERE, tables(), 0))


def spot(row: rules.Row | None) -> Spot:
    return Spot("m", 1, "qkv", KEY, fallback.Served(row, "default"))


def result(*times: tuple[rules.Row, float], **more: object) -> records.Result:
    races = [{"run": 0, "samples": 96, "times": [[list(row), us] for row, us in times]}] if times else []
    (found,) = raw_results.results(document(record(races=races, **more)))  # type: ignore[arg-type]
    return found


RACE = ((tuple(BETTER), 10.0), (tuple(DEFAULT), 15.0), (TABLE, 11.0))


def test_the_table_s_row_is_judged_by_its_race() -> None:
    """By the winner's time in it, not by that of the record's own race."""
    judged = verdict(spot(TABLE), result(*RACE))
    assert judged is not None
    assert (judged.table_us, judged.own_us, judged.default_us) == (11.0, 10.0, 15.0)
    assert judged.loss == pytest.approx(0.1)
    assert unraced(spot(TABLE), result(*RACE)) is None
    assert verdict(spot(TABLE), result()) is None
    needed = unraced(spot(TABLE), result())
    assert needed is not None
    assert needed.all_rows == (tuple(BETTER), tuple(DEFAULT), TABLE)


def test_what_the_record_timed_itself_needs_no_race() -> None:
    """The winner loses nothing, the built-in default what it takes longer; a default that does not run says nothing."""
    for row, loss in ((tuple(BETTER), 0.0), (None, 0.5)):
        assert unraced(spot(row), result()) is None
        judged = verdict(spot(row), result())
        assert judged is not None
        assert judged.loss == loss
    alone = result(default=None, finalists=[finalist(BETTER, 20.0)], others=[])
    assert unraced(spot(None), alone) is None
    assert verdict(spot(None), alone) is None


@pytest.mark.parametrize(("us", "noise_us", "slower"), [(15.2, 0.1, True), (15.1, 0.1, False), (15.2, 0.3, False)])
def test_slower_than_the_default_is_what_exceeds_the_noise(us: float, noise_us: float, slower: bool) -> None:
    """And 1 % of the default's time, which is 15 µs here."""
    judged = verdict(spot(TABLE), result(*RACE[:2], (TABLE, us), noise_us=noise_us))
    assert judged is not None
    assert judged.slower == slower
