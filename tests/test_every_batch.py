"""Any batch of any call comes out right and touches nothing else; and what judges that notices what is wrong.

`python tests/every_batch.py` draws more cases, and larger ones on a GPU.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import cases
import every_batch
import exercise
import published
from batches import DEVICE
from cases import Case
from csgmv import config as configs
from csgmv import expand, footprint, launch, rules, shrink
from fences import Fenced, bits, fresh_memory

CPU = torch.device("cpu")
HERE = every_batch.DEVICE
DTYPES = ("float16", "float32")
H200 = footprint.LIMITS["9.0"]
interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="compiles for minutes; python tests/every_batch.py does more")


@pytest.fixture
def made() -> Iterator[list[Fenced]]:
    with fresh_memory() as memory:
        yield memory


@interpreted
@settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(st.randoms(use_true_random=False))
def test_every_batch(draw: random.Random) -> None:
    """Whatever dimensions, strides, layout, config, adapters and grouping: right, repeatable, nothing else touched."""
    case = cases.draw_batch(draw, cases.draw_kind(draw, cases.TINY, DTYPES, H200), cases.TINY)
    note(case.line())
    with fresh_memory() as memory:
        exercise.check(case, CPU, memory)


def a_case(**changes: object) -> Case:
    """One with two adapters, whose last segment does not fill a tile."""
    fields: dict[str, object] = {
        "op": "add_lora",
        "dtype": "float16",
        "input_dim": 72,
        "widths": (24, 40),
        "max_rank": 8,
        "chunk_size": 16,
        "padded": False,
        "batch_invariant": False,
        "x_extra": 3,
        "base_extra": 5,
        "unaligned": "",
        "given_out": True,
        "config": None,
        "source": "the table",
        "num_tokens": 19,
        "idle_rows": 2,
        "ranks": (8, 5),
        "scalings": (-1.5, 2.0),
        "mix": "turns",
        "seed": 1,
    }
    case = Case(**{**fields, **changes})  # type: ignore[arg-type]
    if changes.get("config") == "split":
        part = configs.ShrinkConfig(16, 16, 16, split_k=2, num_stages=2)
        config = part if case.op == "shrink" else configs.AddLoraConfig(part, configs.ExpandConfig(16, 32, 16))
        case = cases.dataclasses.replace(case, config=configs.to_row(config))
    return case


KINDS: dict[str, dict[str, object]] = {
    "shrink": {"op": "shrink"},
    "shrink, h allocated": {"op": "shrink", "given_out": False},
    "shrink, split": {"op": "shrink", "config": "split"},
    "shrink, padded": {"op": "shrink", "padded": True},
    "shrink, padded and split": {"op": "shrink", "padded": True, "config": "split"},
    "shrink, several tiles of a segment": {"op": "shrink", "config": "split", "mix": "one", "chunk_size": 24},
    "expand": {"op": "expand"},
    "add_lora": {},
    "add_lora, split": {"config": "split", "grouping": "on the device"},
    "add_lora, batch_invariant": {"batch_invariant": True},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_some_cases(kind: dict[str, object], made: list[Fenced]) -> None:
    """The cases that the tests below tamper with are fine as they are."""
    exercise.check(a_case(**kind), HERE, made)


@pytest.mark.parametrize("max_rank", [1, 12, 24, 48, 96])
def test_ranks_and_slices_that_others_failed_at(max_rank: int, made: list[Fenced]) -> None:
    """No power of two, or below what a dot takes; mixed, as scalings are; a slice narrower than the rank, one of none,
    four in all. (vllm#49327, punica#17, LoRAX#241, sglang#28091, vllm-ascend#10562)
    """
    ranks = max_rank, max(1, max_rank - 1), 0, max(1, max_rank // 3)
    how = {"widths": (8, 0, 40, 7), "max_rank": max_rank, "ranks": ranks, "scalings": (1.0, -0.5, 1.0, 300.0)}
    exercise.check(a_case(num_tokens=8, **how), HERE, made)


def poke(tensor: torch.Tensor, at: int) -> None:
    """Writes one number so many elements after the tensor's first, which may be outside of it."""
    whole = tensor.as_strided((1,), (1,), tensor.storage_offset() + at)
    whole.fill_(2.0)


# Where a kernel that does a little too much would leave something: in an output, by its shape and the distance of its
# rows; row 1 has the adapter of rank 5, and the last rows have none.
IN_AN_OUTPUT: dict[str, Callable[[torch.Tensor], int]] = {
    "a row after the last": lambda out: out.shape[0] * out.stride(0),
    "a row before the first": lambda out: -out.stride(0),
    "a row without an adapter": lambda out: (out.shape[0] - 1) * out.stride(0),
}
IN_H = {**IN_AN_OUTPUT, "a column past the rank": lambda out: out.stride(0) + 2 * 5}
IN_BASE = {**IN_AN_OUTPUT, "a column after the last": lambda out: out.shape[1]}
IN_A_STAGE: dict[str, Callable[[torch.Tensor], int]] = {
    "a position after the last, in the stage": lambda stage: stage.numel(),
    "a number before the first, in the stage": lambda _: -1,
    "a column past the rank, in the stage": lambda stage: stage.numel() - 1,
}
POKES = [
    *(("shrink", shrink.ShrinkLaunch, 2, name, at) for name, at in IN_H.items()),
    *(("shrink, h allocated", shrink.ShrinkLaunch, 2, name, at) for name, at in IN_H.items()),
    *(("shrink, split", shrink._SumLaunch, 1, name, at) for name, at in IN_H.items()),
    *(("shrink, split", shrink.ShrinkLaunch, 2, name, at) for name, at in IN_A_STAGE.items()),
    *(("expand", expand.ExpandLaunch, 2, name, at) for name, at in IN_BASE.items()),
    *(("add_lora, split", expand.ExpandLaunch, 2, name, at) for name, at in IN_BASE.items()),
    *(("add_lora", shrink.ShrinkLaunch, 2, name, at) for name, at in IN_A_STAGE.items()),
    *(("add_lora, split", shrink.ShrinkLaunch, 2, name, at) for name, at in IN_A_STAGE.items()),
]


@pytest.mark.parametrize(("kind", "launched", "operand", "at"), [(*poke[:3], poke[4]) for poke in POKES],
                         ids=[f"{poke[0]}: {poke[3]}" for poke in POKES])  # fmt: skip
def test_a_store_too_many_is_noticed(
    kind: str,
    launched: type[launch.Launch],
    operand: int,
    at: Callable[[torch.Tensor], int],
    made: list[Fenced],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One number beyond the output, between its rows, in a row of nobody's, in the stage past its end or a rank."""
    start = launched.start

    def and_poke(self: launch.Launch, on: int | None, *operands: Any) -> None:
        start(self, on, *operands)
        poke(operands[operand], at(operands[operand]))

    monkeypatch.setattr(launched, "start", and_poke)
    with pytest.raises(AssertionError, match="has changed where it must not"):
        exercise.check(a_case(**KINDS[kind]), HERE, made)


def test_numbers_that_are_read_before_they_are_written_are_noticed(
    made: list[Fenced], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its first kernel, add_lora would add what happens to be in fresh memory."""
    monkeypatch.setattr(shrink.ShrinkLaunch, "start", lambda *_: None)
    with pytest.raises(AssertionError, match="numbers of the output are not finite"):
        exercise.check(a_case(), HERE, made)


def test_another_result_the_second_time_is_noticed(made: list[Fenced], monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one number."""
    start, calls = expand.ExpandLaunch.start, []

    def now_and_then(self: object, *given: object) -> None:
        start(self, *given)
        calls.append(self)
        if len(calls) == 2:
            bits(given[3])[0, 0] ^= 1

    monkeypatch.setattr(expand.ExpandLaunch, "start", now_and_then)
    with pytest.raises(AssertionError, match="the same call gives other bits"):
        exercise.check(a_case(), HERE, made)


def test_a_row_that_depends_on_its_batch_is_noticed(made: list[Fenced], monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of every number, in batches of a single segment."""
    start = expand.ExpandLaunch.start

    def by_size(self: object, *given: object) -> None:
        start(self, *given)
        if given[4].num_segments == 1:
            bits(given[3]).bitwise_xor_(1)

    monkeypatch.setattr(expand.ExpandLaunch, "start", by_size)
    with pytest.raises(AssertionError, match="has other bits in a batch of its own"):
        exercise.check(a_case(batch_invariant=True), HERE, made)


def test_a_result_that_is_a_little_off_is_noticed(made: list[Fenced], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a hundredth of one row."""
    start = expand.ExpandLaunch.start

    def wrong(self: object, *given: object) -> None:
        start(self, *given)
        given[3][3, : 24 + 40] *= 1.01

    monkeypatch.setattr(expand.ExpandLaunch, "start", wrong)
    with pytest.raises(AssertionError, match="row 3 is off by"):
        exercise.check(a_case(), HERE, made)


def test_cases_come_back_from_their_lines() -> None:
    """Whole runs repeat by their seed, single cases by their line; another seed draws others."""
    some = [case for group in cases.drawn(3, 60, 7, cases.LARGE, DTYPES, H200) for case in group]
    assert len(some) == 60
    assert [cases.read(case.line()) for case in some] == some
    again = [case for group in cases.drawn(3, 60, 7, cases.LARGE, DTYPES, H200) for case in group]
    assert again == some
    assert some != [case for group in cases.drawn(4, 60, 7, cases.LARGE, DTYPES, H200) for case in group]


def test_everything_is_drawn_and_nothing_that_cannot_run() -> None:
    """Of a few hundred kinds: each operation, source, layout, grouping, mix, number of slices, rank of 0 and of all,
    scaling, every field of a config at several values; each config fits the device.
    """
    some = [group[0] for group in cases.drawn(0, 600, 1, cases.LARGE, DTYPES, H200)]
    for case in some:
        assert case.config is None or footprint.resource_fault(case.config, case.key, H200) is None, case
    for name, wanted in {
        "op": {*rules.OPS},
        "dtype": {*DTYPES},
        "source": {*cases.SOURCES},
        "mix": {*cases.MIXES},
        "grouping": {*cases.GROUPINGS},
        "unaligned": {"", *cases.TENSORS},
        "padded": {False, True},
        "batch_invariant": {False, True},
    }.items():
        assert {getattr(case, name) for case in some} == wanted, name
    assert {len(case.widths) for case in some} == {1, 2, 3, 4}
    assert any(width == 0 for case in some for width in case.widths)
    assert any(0 < width < case.max_rank for case in some for width in case.widths)
    assert any(rank == 0 for case in some for rank in case.ranks)
    assert any(rank == case.max_rank for case in some for rank in case.ranks)
    assert {0.0, -1.25, 1e6, -1000.0} <= {scaling for case in some for scaling in case.scalings}
    for op in ("shrink", "expand"):
        rows = [case.config for case in some if case.op == op and case.config]
        for at, field in enumerate(rules.FIELDS[op]):
            values = {row[at] for row in rows}
            assert len(values) >= (2 if field.boolean else 4), (field.name, values)


@interpreted
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts what it did; one case by its line; an exit status that says whether all is well."""
    assert every_batch.main(["--case", a_case().line()]) == 0
    assert capsys.readouterr().out == "all well\n"
    wrong = cases.dataclasses.replace(a_case(), config=(3,) * 18)
    assert every_batch.main(["--case", wrong.line()]) == 1
    assert "ValueError: add_lora config: shrink_block_m: expected a power of two" in capsys.readouterr().out


def test_a_run_finds_the_case_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A group whose process dies is done again one by one, and the line of the one that kills it is printed."""
    deadly = a_case(seed=3)

    class Fragile:
        """Stands in for the processes."""

        def __init__(self, *_: object) -> None:
            self.closed = False

        def submit(self, method: str, lines: list[str], *, limit: float) -> every_batch.Future[list[str]]:
            assert (method, limit) == ("check", every_batch.LIMIT_SECONDS)
            future: every_batch.Future[list[str]] = every_batch.Future()
            if deadly.line() in lines:
                future.set_exception(every_batch.Failure("crashed with exit status -11"))
            else:
                future.set_result([""] * len(lines))
            return future

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(every_batch, "Farm", Fragile)
    groups = [[a_case(seed=1), a_case(seed=2)], [deadly, a_case(seed=4)]]
    assert every_batch.run(groups, 2, float("inf")) == 1
    said = capsys.readouterr().out
    assert said.count("FAILED") == 1
    assert f"FAILED: crashed with exit status -11\n  python tests/every_batch.py --case '{deadly.line()}'" in said
    assert "4 cases, 1 failed" in said
    assert "operation: add_lora 4" in said


@pytest.mark.gpu
def test_published_shapes() -> None:
    """All that vLLM's and sglang's tests of such kernels go through, in float16 and bfloat16, to our tolerances."""
    assert every_batch.run(published.groups(), len(os.sched_getaffinity(0)), float("inf")) == 0


def test_published_shapes_are_all_there() -> None:
    """Hidden sizes from 2 to 128,256, every rank, number of adapters and of slices that either of them has."""
    cases_of = [case for group in published.groups() for case in group]
    widths = {width for case in cases_of for width in case.widths}
    assert {2, 2049, 12345, 128256} <= widths
    assert {case.input_dim for case in cases_of} >= widths - {1024, 4096}
    assert {case.max_rank for case in cases_of} == {*published.RANKS}
    assert {1, 4, 8, 32, 128} == {len(case.ranks) for case in cases_of}
    assert {(case.op, case.dtype) for case in cases_of} == {
        (op, dtype) for op in rules.OPS for dtype in published.DTYPES
    }
    assert {len(case.widths) for case in cases_of} == {1, 2, 3, 4}
    assert len({*cases_of}) == len(cases_of) > 6000


def test_a_published_shape(made: list[Fenced]) -> None:
    """One of the smallest, made as the others are."""
    small = next(case for case in published.vllm() if case.input_dim == 4 and case.dtype == "float16")
    exercise.check(cases.dataclasses.replace(small, num_tokens=20), HERE, made)
