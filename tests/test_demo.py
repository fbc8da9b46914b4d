"""`csgmv demo`: many adapters, checked; the exit status tells whether all is right."""

from __future__ import annotations

import pytest
import torch

from csgmv import cli, demo, launch, models, rules, workload

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="times on a GPU are tested by test_a_run_on_a_gpu")


@pytest.fixture
def narrow(monkeypatch):
    """The demo's batch on two layers a 32nd as wide: the real ones take half a minute, and CI runs those too."""
    layers = (models.LayerShape("qkv", 48, (40, 16, 7)), models.LayerShape("o", 64, (48,)))
    monkeypatch.setattr(demo, "QWEN3_EMBEDDING_0_6B", layers)


@pytest.mark.usefixtures("narrow")
def test_every_operation_of_every_layer_is_run_and_right(capsys):
    """A line each, with the step that its config came from; no times without a GPU."""
    assert cli.main(["demo"]) == 0
    text = capsys.readouterr().out
    table = [line.split() for line in text.splitlines() if line.startswith(("qkv ", "o "))]
    assert [row[:2] for row in table] == [[layer, op] for layer in ("qkv", "o") for op in rules.OPS]
    assert all(row[2] == "24" for row in table)
    assert max(len(line) for line in text.splitlines() if line.startswith(("qkv ", "o "))) <= 80
    assert "All 6 results are right." in text
    assert "µs" not in text


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("off", [1.0, float("nan")])
def test_a_wrong_result_is_told_and_fails(off, monkeypatch, capsys):
    """Exit status 1: a script can rely on it."""
    right = workload.Workload.run

    def run(work, op, *rest):
        return right(work, op, *rest) + (off if op == "expand" else 0)

    monkeypatch.setattr(workload.Workload, "run", run)
    assert cli.main(["demo"]) == 1
    text = capsys.readouterr().out
    assert text.count("WRONG: ") == 2
    assert "2 of 6 results are WRONG." in text


@pytest.mark.parametrize("batch", [*demo.ON_GPU, *demo.INTERPRETED])
def test_a_batch_has_many_adapters_and_rows_without_one(batch):
    """Every adapter has rows; ranks and therefore layouts differ, up to 64; one row in eight has no adapter."""
    ids = demo.ids(batch)
    assert len(ids) == batch.tokens
    assert {adapter for adapter in ids if adapter is not None} == set(range(len(batch.ranks)))
    assert len(set(batch.ranks)) > 2
    assert max(batch.ranks) == 64
    assert ids.count(None) == batch.tokens // 8


def test_a_line_has_both_times_and_their_ratio():
    """On a GPU; without one there are none."""
    line = demo.Line("qkv", demo.INTERPRETED[0], "expand", "exact", 1e-3, True, (30.0, 12.0))
    assert line.cells[-4:] == ["1.0e-03", "30.0", "12.0", "2.50×"]
    assert len(line.cells) == len(demo.HEADER) + len(demo.TIMES)
    on_cpu = next(
        demo.lines(models.LayerShape("o", 64, (48,)), demo.INTERPRETED[0], torch.float16, torch.device("cpu"))
    )
    assert on_cpu.times_us is None


@pytest.mark.gpu
def test_the_demo_on_a_gpu(capsys):
    """Two batches of four layers and three operations, all right, all timed."""
    assert cli.main(["demo"]) == 0
    assert "All 24 results are right." in capsys.readouterr().out
