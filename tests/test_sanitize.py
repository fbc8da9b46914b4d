"""What compute-sanitizer is run over comes out right without it, covers what it should, and findings are counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import cases
import sanitize
from csgmv import config as configs
from csgmv import footprint, rules
from fences import Fenced

CLEAN = "========= COMPUTE-SANITIZER\n42 launches, all right\n========= ERROR SUMMARY: 0 errors\n"
RACES = "========= Error: Race reported\n========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n"
ONE = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\n"


@pytest.mark.parametrize(("text", "count"), [(CLEAN, 0), (RACES, 3), (ONE, 1), ("Killed", None)])
def test_findings(text: str, count: int | None) -> None:
    """The number that the tool sums up with; None where it never came to that."""
    assert sanitize.findings(text) == count


def test_launches_cover_every_way_through_the_kernels() -> None:
    """Split-K, staged, sliced, prefetched, overlapped, tiles below and above a segment, each operation and dtype."""
    made = [case for _, case in sanitize.representative()]
    assert 36 <= len(made) <= 60
    parts = [part for case in made if case.config for part in rules.parts(case.op, case.config)]
    for kind in ("shrink", "expand"):
        fields = [fields for op, _, fields in parts if op == kind]
        for name in ("block_m", "block_n", "block_k", "column_tiles", "num_warps", "num_stages"):
            assert len({each[name] for each in fields}) > 1, name
    assert {fields["split_k"] > 1 for op, _, fields in parts if op == "shrink"} == {False, True}
    assert {fields["sliced_k"] for op, _, fields in parts if op == "shrink"} == {False, True}
    assert {fields["prefetch"] for op, _, fields in parts if op == "expand"} == {False, True}
    pairs = [configs.from_row("add_lora", case.config) for case in made if case.op == "add_lora" and case.config]
    assert {pair.overlap for pair in pairs} == {False, True}
    assert {case.op for case in made} == {*rules.OPS}
    groups = {footprint.group_size(fields["block_m"], 16) > 1 for _, _, fields in parts}
    assert groups == {False, True}
    assert {case.padded for case in made} == {False, True}
    assert len({case.grouping for case in made}) == 4


@pytest.mark.parametrize("number", range(0, 41, 10))
def test_launches_come_out_right(number: int) -> None:
    """A sample of them, without a sanitizer."""
    sanitize.make([*sanitize.representative()][number].case, sanitize.DEVICE)


def test_a_wrong_launch_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are compared, so that a launch that does nothing is not called clean."""
    monkeypatch.setattr(sanitize.exercise, "call", lambda _, operands: operands.output.tensor)
    with pytest.raises(AssertionError, match="is off by"):
        sanitize.make(
            next(each.case for each in sanitize.representative() if each.case.op == "expand"), sanitize.DEVICE
        )


def test_only_numbers_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no number stays as the allocator gave it."""
    fenced = Fenced((3, 2, 5), torch.float16, sanitize.CPU)
    fenced.tensor[0, 1, :2] = torch.tensor([1.0, 2.0])
    fenced.tensor[2, 0, 1] = 3.0
    fenced.tensor[2, 0, 3:] = 4.0
    monkeypatch.setattr(torch, "empty_strided", lambda shape, _, **how: torch.full(shape, -1.0, **how))
    laid = sanitize._laid(fenced, sanitize.CPU)
    assert laid[2, 0].tolist() == [-1.0, 3.0, -1.0, 4.0, 4.0]
    assert laid[0, 1].tolist() == [1.0, 2.0, -1.0, -1.0, -1.0]
    assert int((laid != -1).sum()) == 5


def test_initcheck_is_spared_what_is_loaded_to_be_dropped() -> None:
    """Ranks that are no multiple of 8 where max_rank is one."""
    assert [name for name, case in sanitize.representative() if sanitize.loads_past_the_rank(case)] == [
        "ranks that are no multiples of 8"
    ]


def test_every_tool_and_what_was_planted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """0 if the tools find nothing but what they must find; else 1, and what they said."""
    calls: list[tuple[str, ...]] = []
    reports = {"clean": CLEAN, "found": ONE}
    faulty: set[tuple[str, ...]] = set()

    def process(program: list[str], **_: object) -> SimpleNamespace:
        tool, planted = program[program.index("--launch") + 1], "--planted" in program
        call = ("sanitizer" if program[0] == "tool" else "plain", tool, *(["planted"] if planted else []))
        calls.append(call)
        found = planted != (call in faulty)
        return SimpleNamespace(
            returncode=sanitize.FOUND if found else 0, stdout=reports["found" if found else "clean"], stderr=""
        )

    monkeypatch.setattr(sanitize.subprocess, "run", process)
    assert sanitize.run(sanitize.TOOLS, "tool") == 0
    assert calls[0] == ("plain", "memcheck")
    assert {("sanitizer", tool) for tool in sanitize.TOOLS} <= {*calls}
    assert {call for call in calls if "planted" in call} == {
        ("sanitizer", tool, "planted") for tool in sanitize.PLANTED
    }
    assert capsys.readouterr().out.endswith("all clean\n")
    for call in [each for each in dict.fromkeys(calls) if each[0] == "sanitizer"]:
        faulty = {call}
        assert sanitize.run(sanitize.TOOLS, "tool") == 1, call
        assert capsys.readouterr().out.endswith("findings, see above\n")


@pytest.mark.skipif(not sanitize.INTERPRETED, reason="is about where there is no GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """With an exit status of its own."""
    assert sanitize.main([]) == sanitize.NO_TOOL
    assert "needs a GPU" in capsys.readouterr().err


def test_cases_repeat_by_their_line() -> None:
    """What a launch is can be given to every_batch too."""
    for _, case in sanitize.representative():
        assert cases.read(case.line()) == case
