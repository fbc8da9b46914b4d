"""A plan names each key once, with the batches that look it up."""

from __future__ import annotations

import operator
from collections import Counter

import pytest
import torch

from csgmv import rules
from csgmv.models import QWEN3_EMBEDDING_0_6B, LayerShape
from csgmv.segments import Segments
from csgmv.tuning.plan import TOKENS, Batch, Keys, Plan, Task, adapter_ids, parts

SMALL = (LayerShape("o", 80, (48,)), LayerShape("down", 176, (48,)))


def test_layers_that_expand_alike_share_a_key() -> None:
    """o and down differ in what they shrink, not in what they expand."""
    keys = [task.key for task in Plan(SMALL, 8, chunk_sizes=[16], tokens=[5]).tasks()]
    assert [key.op for key in keys].count("expand") == 1
    assert [key.op for key in keys].count("shrink") == 2
    assert len(set(keys)) == len(keys)


def one_task(**options: object) -> Task:
    (task,) = Plan(SMALL[:1], 8, ops=["shrink"], **options).tasks()  # type: ignore[arg-type]
    return task


def test_of_batches_that_share_a_key_the_fullest_and_the_sparsest_decide() -> None:
    """8, 32 and 128 tokens over 8 adapters are all 8 segments of 16, of which a sixteenth, a quarter or all is used."""
    task = one_task(chunk_sizes=[16], tokens=[8, 128, 32], adapters=[8])
    assert task.deciding == (Batch(128, 8, 8), Batch(8, 8, 8))
    assert task.batches == (*task.deciding, Batch(32, 8, 8))
    assert task.key.segment_bucket == 8


def test_batches_that_are_much_alike_are_one_case() -> None:
    """Less than four times the tokens, or so few of them that only latencies count."""
    assert one_task(chunk_sizes=[16], tokens=[128, 64], adapters=[8]).deciding == (Batch(128, 8, 8),)
    assert one_task(chunk_sizes=[16], tokens=[8, 1], adapters=[1]).deciding == (Batch(1, 1, 1),)


def test_batches_of_one_adapter_are_timed_with_the_key_that_serves_them() -> None:
    """They make no key of their own beside others; alone they do."""
    task = one_task(chunk_sizes=[16], tokens=[64], adapters=[1, 8])
    assert task.batches == (Batch(64, 8, 8), Batch(64, 1, 4))
    assert task.tuned_on == 1
    assert one_task(chunk_sizes=[16], tokens=[64], adapters=[1]).batches == (Batch(64, 1, 4),)


def test_many_tokens_are_dealt_unevenly() -> None:
    """As requests are; a few an adapter are dealt evenly."""
    rows = Counter(adapter_ids(320, 8))
    assert set(rows) == set(range(8))
    assert rows[0] > 2 * rows[7]
    assert max(Counter(adapter_ids(200, 8)).values()) == 25
    assert one_task(chunk_sizes=[64], tokens=[320], adapters=[8]).batches[0].num_segments == sum(
        -(-count // 64) for count in rows.values()
    )


def test_keys_are_those_of_the_segments_that_the_batch_gives() -> None:
    """Uneven groups: 37 tokens over 5 adapters are 2 of 8 and 3 of 7 rows, two segments of 4 each."""
    task = one_task(chunk_sizes=[4], tokens=[37], adapters=[5])
    assert (task.batches[0].num_segments, task.key.segment_bucket) == (10, rules.segment_bucket(10))


def test_no_more_adapters_than_tokens() -> None:
    """By default as many as there are tokens; what was asked for beyond that is left out."""
    options = {"chunk_sizes": [16], "ops": ["expand"]}
    (task,) = Plan(SMALL[:1], 8, tokens=[3], **options).tasks()  # type: ignore[arg-type]
    assert {batch.adapters for batch in task.batches} == {1, 3}
    (task,) = Plan(SMALL[:1], 8, tokens=[3], adapters=[2, 9], **options).tasks()  # type: ignore[arg-type]
    assert {batch.adapters for batch in task.batches} == {2}


def test_rows_are_gathered() -> None:
    """Adapters are even, but not in turn: an identity permutation would hide what the gather costs."""
    ids = adapter_ids(40, 4)
    assert sorted(ids) == sorted(list(range(4)) * 10)
    assert list(ids) not in ([i % 4 for i in range(40)], sorted(ids))
    assert ids == adapter_ids(40, 4)


def test_the_longest_batches_are_of_prompts() -> None:
    """Their rows are neighbours, so that adapters change rarely; those of shorter batches are in any order."""
    changes = {
        tokens: sum(map(operator.ne, ids, ids[1:])) for tokens in (8192, 30720) if (ids := adapter_ids(tokens, 8))
    }
    assert changes[8192] > 4000
    assert 8 <= changes[30720] < 30720 // 512 + 8
    assert len(adapter_ids(30720, 8)) == 30720


def test_the_default_plan_has_a_few_hundred_keys_and_parts_come_first() -> None:
    """A whole model: an add_lora key's shrink and expand stand before it."""
    tasks = Plan(QWEN3_EMBEDDING_0_6B, 64).tasks()
    keys = [task.key for task in tasks]
    assert 200 <= len(keys) <= 300
    cells = {(t, a) for t in TOKENS for a in (1, 8, 32) if a <= t}
    for chunk_size in rules.CHUNK_SIZES:
        shown = [b[:2] for t in tasks if t.key.op == "add_lora" and t.key.chunk_size == chunk_size for b in t.batches]
        assert set(shown) == cells
        assert len(shown) == len(cells) * len(QWEN3_EMBEDDING_0_6B)
    for index, key in enumerate(keys):
        if key.op == "add_lora":
            assert all(part in keys[:index] for part in parts(key))


def test_what_is_tuned_is_what_a_batch_may_get() -> None:
    """A chunk size that the codegen expects and the tuner leaves out would leave the second table empty."""
    assert tuple(Plan(SMALL, 8).chunk_sizes) == rules.CHUNK_SIZES


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
    assert all(t.key.segment_bucket == rules.segment_bucket(t.batches[0].num_segments) for t in tasks)


def test_keys_are_tuned_on_the_batches_that_a_plan_would_tune_them_on() -> None:
    """On those that decide, of any rank and dtype; of a plan's batches of one adapter a key by itself knows nothing."""
    planned = {
        task.key: task
        for rank, dtype in ((64, torch.bfloat16), (12, torch.float16))
        for task in Plan(SMALL, rank, chunk_sizes=(16, 128), dtype=dtype).tasks()
    }
    tasks = Keys([*planned, *planned]).tasks()
    assert {task.key for task in tasks} == planned.keys()
    assert len(tasks) == len(planned)
    assert {(key.max_rank, key.dtype) for key in planned} == {(64, "bfloat16"), (12, "float16")}
    for task in tasks:
        assert task.deciding == planned[task.key].deciding
    ops = [task.key.op == "add_lora" for task in tasks]
    assert ops == sorted(ops)


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 48, 128, 4096])
def test_every_batch_of_a_key_looks_it_up(chunk_size: int) -> None:
    """Of any bucket and chunk size, usual or not, with several adapters where that is possible."""
    for bucket in (1, 2, 4, 16, 64, 256, 1024):
        if bucket * chunk_size > 2**18:
            continue
        (task,) = Keys([rules.Key("shrink", 64, (), 8, 1, "float16", chunk_size, bucket)]).tasks()
        assert len({*task.batches}) == len(task.batches)
        assert 1 <= task.tuned_on <= len(task.batches)
        for batch in task.batches:
            ids = adapter_ids(batch.tokens, batch.adapters)
            made = Segments.from_tokens(
                ids, [8] * batch.adapters, [1.0] * batch.adapters, chunk_size=chunk_size, device=torch.device("cpu")
            )
            assert (made.num_segments, made.chunk_size) == (batch.num_segments, chunk_size)
            assert rules.segment_bucket(made.num_segments) == bucket
        assert bucket == 1 or any(batch.adapters > 1 for batch in task.batches)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "keys: expected at least one, got none"),
        ([rules.Key("shrink", 64, (), 300, 1, "float16", 16, 8)], "max_rank: expected 1 to 256, got 300"),
    ],
)
def test_impossible_keys_are_refused(keys: list[rules.Key], message: str) -> None:
    """As impossible plans are."""
    with pytest.raises(ValueError, match=message):
        Keys(keys).tasks()
