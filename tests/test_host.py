"""`csgmv bench --host`: which calls are timed, how, and how it is told."""

from __future__ import annotations

import re
import time

import pytest
import torch

from batches import DEVICE
from csgmv import cli, host, launch, models, rules

LAYER = models.LayerShape("small", 48, (32, 16))


def test_each_call_is_made_in_turn_with_the_gpu_idle() -> None:
    """A run of calls begins when the one before is done; what a call costs comes out, and waiting is not counted."""
    made: list[str] = []

    def slow() -> None:
        made.append("slow")
        time.sleep(0.0002)

    found = host.costs({"slow": slow, "quick": lambda: made.append("quick")}, wait=lambda: made.append("wait"))
    assert [each.name for each in found] == ["slow", "quick"]
    assert found[0].least >= 200_000
    assert found[1].least <= found[1].median < 100_000
    runs = re.findall(r"w(s+|q+)", "".join(each[0] for each in made))
    assert {len(run) for run in runs} == {host._CALLS}
    assert [run[0] for run in runs] == ["s", "q"] * host._RUNS


@pytest.mark.skipif(not launch.INTERPRETED, reason="is about the interpreter; a GPU times for real")
def test_the_operations_and_look_ups_are_timed() -> None:
    """All of them on calls that are known already: their plans and configs are found, not made."""
    calls = host.calls(LAYER, torch.float16, torch.device(DEVICE))
    for op in rules.OPS:
        assert torch.is_tensor(calls["add_lora" if op == "add_lora" else f"lora_{op}"]())
    plans = dict(launch.plans)
    assert calls["plan of a known call"]() in plans.values()
    assert calls["config of a known key"]().config.shrink
    assert calls["torch.empty"]().shape == (host.ADAPTERS, 2 * host.RANK)
    assert calls["dict.get, a table's key"]() is None is calls["nothing"]()
    assert launch.plans == plans


def test_figures_are_microseconds_over_calling_nothing() -> None:
    """And multiples of torch.empty."""
    costs = [host.Cost("torch.empty", 3100.0, 3000.0), host.Cost("add_lora", 18100.0, 15200.0)]
    text = host.table([*costs, host.Cost("nothing", 100.0, 50.0)])
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["torch.empty", "3.00", "2.95", "1.00"],
        ["add_lora", "18.00", "15.15", "6.00"],
    ]


def test_host_is_all_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no Markdown and no JSON of it."""
    for other in (["--markdown"], ["--json", "file.json"]):
        assert cli.main(["bench", "--host", *other]) == 2
        assert "csgmv: error: --host: expected without --markdown and --json" in capsys.readouterr().err


@pytest.mark.skipif(not launch.INTERPRETED, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The host has nobody to launch for."""
    assert cli.main(["bench", "--host"]) == 2
    assert "bench needs a GPU" in capsys.readouterr().err


def test_the_command_prints_the_table_and_how_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layer is the first of those named."""
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU of the test")
    monkeypatch.setattr(host, "calls", lambda layer, dtype, device: {f"{layer.name} {dtype} {device}": None})
    monkeypatch.setattr(host, "costs", lambda calls, **_: [host.Cost(name, 9e3, 8e3) for name in (*calls, "nothing")])
    argv = ["bench", "--host", "--layer", "mine:48:32+16", "--layer", "other:16:16", "--dtype", "float16"]
    monkeypatch.setattr(host, "table", lambda found: found[0].name)
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert text.startswith("mine torch.float16 cuda:0\n\nGPU of the test, torch ")
    assert "mine, 48 → 2·32 → 32+16, float16: 8 tokens" in text


@pytest.mark.gpu
def test_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure is positive, and a look-up is cheaper than an allocation."""
    assert cli.main(["bench", "--host"]) == 0
    lines = re.findall(r"^(\S.+?)  +([\d.]+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    figures = {name: float(figure) for name, figure in lines}
    assert len(figures) == 7
    assert min(figures.values()) > 0
    assert figures["plan of a known call"] < figures["torch.empty"] < figures["add_lora"]
