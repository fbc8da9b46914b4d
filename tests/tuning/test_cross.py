"""`csgmv cross` times what other keys would lend, into the records that are there; regret then has nothing to guess."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from crossed import RowBench, folder, layer
from csgmv import checks
from csgmv.cli import main
from csgmv.tuning.cross import cross
from fabricated import older, put
from rigs import HERE, StillRig


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return folder(tmp_path / "configs", layer(512, 2), older(layer(1024, 3), 3), layer(1536, 4))


def judged(configs: Path) -> set[str | None]:
    """Skips where an installed wheel is tested, which has no codegen."""
    regret, source = pytest.importorskip("codegen.regret"), pytest.importorskip("codegen.source")
    found = source.choose.choose(source.collect.collect(configs).found)
    return {one.judged for one in regret.regrets(found)}


def test_afterwards_every_loss_is_known_at_full_length(configs: Path) -> None:
    """In all ways of leaving out; the rest of each record is as it was."""
    before = [checks.parse(path.read_text()) for path in sorted(configs.rglob("*.json"))]
    assert None in judged(configs)
    summary = cross(configs, StillRig(RowBench()))
    assert (summary.left, summary.refused) == (0, [])
    assert judged(configs) == {"at length"}
    for old, path in zip(before, sorted(configs.rglob("*.json"))):
        new = checks.parse(path.read_text())
        assert new["schema"] == 4
        assert [{**record, "races": []} for record in new["records"]] == [
            {**record, "races": []} for record in old["records"]
        ]
        assert all(record["races"] for record in new["records"])


def test_a_run_that_was_stopped_goes_on(configs: Path) -> None:
    """Nothing that is there is timed again, in this environment; in another all is, beside the old."""

    def timed(bench: RowBench) -> set[object]:
        return {(key, row) for key, batch, rows in bench.raced for row in rows[2:] if batch.tokens == 101}

    bench, calls = RowBench(), [0]

    def stop() -> None:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt

    bench.before_race = stop
    with pytest.raises(KeyboardInterrupt):
        cross(configs, StillRig(bench))
    rest = RowBench()
    assert cross(configs, StillRig(rest)).races > 0
    # The race in which it was stopped had been run on the first of its batches alone.
    kept = {(key, row) for key, batch, rows in bench.raced for row in rows[2:] if batch.tokens == 32}
    assert kept
    assert not kept & timed(rest)
    assert cross(configs, StillRig(RowBench())).races == 0
    other = HERE._replace(run=dataclasses.replace(HERE.run, driver="590.1"))
    again = RowBench()
    assert cross(configs, StillRig(again, site=other)).rows == len(kept | timed(rest))
    content = checks.parse(next(configs.rglob("*k512*.json")).read_text())
    assert {content["runs"][race["run"]]["driver"] for record in content["records"] for race in record["races"]} == {
        HERE.run.driver,
        "590.1",
    }


def test_what_other_kernels_measured_is_left_out(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows are lent all the same."""
    content = layer(512, 2)
    content["runs"][0]["kernel_hash"] = "sha256:" + "0" * 64
    folder(configs, content)
    bench = RowBench()
    cross(configs, StillRig(bench))
    assert capsys.readouterr().out.startswith("2 keys were measured with other kernels; `csgmv tune --stale`")
    assert {key.input_dim for key, _, _ in bench.raced} == {1024, 1536}


def test_files_that_the_tuner_would_not_write_to_are_refused(configs: Path) -> None:
    """By the name that they should have, and the command that gives it."""
    put(configs, "mine.json", layer(2048, 5))
    with pytest.raises(ValueError, match=r"mine\.json: expected the name nvidia-h200/triton-3\.6\.0/shrink-k2048-"):
        cross(configs, StillRig(RowBench()))
    with pytest.raises(ValueError, match="expected results of NVIDIA L4 under Triton"):
        cross(configs, StillRig(RowBench(), site=HERE._replace(gpu="NVIDIA L4")))


def test_a_dry_run_says_what_it_would_cost(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Timings by kind, which come to what a run times; nothing is measured."""
    assert main(["cross", "--configs", str(configs), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "NVIDIA H200, Triton 3.6.0: 6 keys"
    numbers = [int(line.partition(": ")[2].partition(" timings")[0]) for line in lines[1:3]]
    assert sum(numbers) == cross(configs, StillRig(RowBench())).rows
    assert main(["cross", "--configs", str(configs), "--dry-run"]) == 0
    assert ": 0 timings in 0 races at 0 keys, about 0.0 minutes" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2."""
    assert main(["cross", "--configs", str(configs)]) == 2
    assert "csgmv: error: cross needs a GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_small_layer_is_crossed_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tuned, crossed, and crossed again, which finds nothing left; every record has its races."""
    out, sizes = str(tmp_path / "configs"), ("--chunk-sizes", "16", "64", "--tokens", "3", "200", "--rank", "24")
    assert main(["tune", "--layer", "o:192:64+32", *sizes, "--out", out, "--processes", "4"]) == 0
    assert main(["cross", "--configs", out, "--processes", "4"]) == 0
    assert judged(tmp_path / "configs") <= {"at length"}
    assert main(["cross", "--configs", out, "--processes", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 races with 0 rows")
