"""A plan names each key once, with the batch that stands for it."""

from __future__ import annotations

import pytest

from csgmv import rules
from csgmv.models import QWEN3_EMBEDDING_0_6B, LayerShape
from csgmv.tuning.plan import CHUNK_SIZES, Plan, adapter_ids, parts

SMALL = (LayerShape("o", 80, (48,)), LayerShape("down", 176, (48,)))


def test_layers_that_expand_alike_share_a_key() -> None:
    """o and down differ in what they shrink, not in what they expand."""
    keys = [task.key for task in Plan(SMALL, 8, chunk_sizes=[16], tokens=[5]).tasks()]
    assert [key.op for key in keys].count("expand") == 1
    assert [key.op for key in keys].count("shrink") == 2
    assert len(set(keys)) == len(keys)


def test_of_batches_that_share_a_key_the_larger_is_timed() -> None:
    """8, 32 and 128 tokens over 8 adapters are all 8 segments of 16."""
    (task,) = Plan(SMALL[:1], 8, chunk_sizes=[16], tokens=[8, 128, 32], ops=["shrink"]).tasks()
    assert (task.tokens, task.adapters, task.num_segments, task.key.segment_bucket) == (128, 8, 8, 8)


def test_keys_are_those_of_the_segments_that_the_batch_gives() -> None:
    """Uneven groups: 37 tokens over 5 adapters are 2 of 8 and 3 of 7 rows, two segments of 4 each."""
    (task,) = Plan(SMALL[:1], 8, chunk_sizes=[4], tokens=[37], adapters=[5], ops=["shrink"]).tasks()
    assert (task.num_segments, task.key.segment_bucket) == (10, 8)


def test_no_more_adapters_than_tokens() -> None:
    """By default 8, or as many as there are tokens; what was asked for beyond that is left out."""
    assert [t.adapters for t in Plan(SMALL[:1], 8, tokens=[3], chunk_sizes=[16], ops=["expand"]).tasks()] == [3]
    tasks = Plan(SMALL[:1], 8, tokens=[3], adapters=[1, 2, 9], chunk_sizes=[16], ops=["expand"]).tasks()
    assert {t.adapters for t in tasks} == {1, 2}


def test_rows_are_gathered() -> None:
    """Adapters are even, but not in turn: an identity permutation would hide what the gather costs."""
    ids = adapter_ids(40, 4)
    assert sorted(ids) == sorted(list(range(4)) * 10)
    assert ids not in ([i % 4 for i in range(40)], sorted(ids))
    assert ids == adapter_ids(40, 4)


def test_the_default_plan_has_a_few_hundred_keys_and_parts_come_first() -> None:
    """A whole model: an add_lora key's shrink and expand stand before it."""
    keys = [task.key for task in Plan(QWEN3_EMBEDDING_0_6B, 64).tasks()]
    assert 200 <= len(keys) <= 300
    for index, key in enumerate(keys):
        if key.op == "add_lora":
            assert all(part in keys[:index] for part in parts(key))


def test_what_is_tuned_is_what_a_batch_may_get() -> None:
    """A chunk size that the codegen expects and the tuner leaves out would leave the second table empty."""
    assert tuple(CHUNK_SIZES) == rules.CHUNK_SIZES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_rank": 257}, "max_rank: expected 1 to 256, got 257"),
        ({"tokens": [0]}, "tokens, adapters: expected positive numbers, got 0"),
        ({"tokens": []}, "plan: expected at least one layer"),
        ({"layers": []}, "plan: expected at least one layer"),
    ],
)
def test_impossible_plans_are_refused(change: dict[str, object], message: str) -> None:
    """Before anything is measured, naming what is wrong."""
    with pytest.raises(ValueError, match=message):
        Plan(**{"layers": SMALL, "max_rank": 8, **change}).tasks()  # type: ignore[arg-type]


def test_a_bucket_is_a_power_of_two() -> None:
    """Of every key in a plan with odd sizes."""
    tasks = Plan(SMALL, 12, chunk_sizes=[7], tokens=[1, 13, 999]).tasks()
    assert all(t.key.segment_bucket == rules.segment_bucket(t.num_segments) for t in tasks)
