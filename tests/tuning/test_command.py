"""`csgmv tune` turns its options into a plan and says plainly what it cannot do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
from pathlib import Path

import pytest
import torch

from csgmv import dispatch, fallback, footprint, kernel_hash, misses, record_misses, rules
from csgmv.models import LayerShape
from csgmv.tuning import command, fleet
from csgmv.tuning.plan import Keys, Plan
from csgmv.tuning.session import Step, Summary
from csgmv.tuning.tuner import tune
from fabricated import LLAMA, document, put, record
from laid import tables
from rigs import HERE, StillRig
from searching import HashBench


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    """One line that says why and what does work."""
    with pytest.raises(
        ValueError, match=r"^tune needs a GPU, and torch finds none: .*; --dry-run and --ray work without$"
    ):
        run("--layer", "o:96:48", "--rank", "12", "--out", str(tmp_path / "configs"))
    assert not (tmp_path / "configs").exists()


def test_dry_run_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its batch and the size of its space."""
    options = ("--chunk-sizes", "16", "--tokens", "5", "300", "--dtype", "float16", "--dry-run")
    assert run("--layer", "o:96:48+24", "--rank", "12", *options) == 0
    output = capsys.readouterr().out
    assert "add_lora 96 → 2·12 → 48+24, float16, chunk 16, bucket 4 (5 tokens, 5 adapters): " in output
    assert "configs fit" in output
    if not torch.cuda.is_available():
        assert output.startswith(f"no GPU here: one like {dispatch.target(torch.device('cpu')).gpu} is assumed\n")
        assert output.endswith("6 keys\n")


def test_a_models_layers_for_several_tensor_parallel_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shape that two sizes share is tuned once; the options reach the tuner; the summary is printed."""
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    seen = {}

    def tune(plan, folder, **options):  # type: ignore[no-untyped-def]
        seen.update(plan=plan, folder=folder, **options)
        for step in (Step(plan.tasks()[0], None, 1, 5),):
            options["report"](step)
        return Summary(tuned=3, fresh=2, failed=1, left=4)

    monkeypatch.setattr(command, "tune", tune)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.no_gpu.launch, "INTERPRETED", False)
    options = ("--tp", "1", "2", "1", "--time-budget", "7.5", "--force", "--ops", "expand", "--adapters", "1", "3")
    status = run(
        "--model", str(tmp_path), "--layer", "mine:40:8", "--rank", "16", "--out", str(tmp_path / "c"), *options
    )
    plan = seen["plan"]
    assert [layer.name for layer in plan.layers] == ["mine", *["qkv", "o", "gate_up", "down"] * 2]
    assert LayerShape("qkv", 96, (48, 16, 16)) in plan.layers
    assert (plan.max_rank, plan.ops, plan.adapters, plan.dtype) == (16, ["expand"], [1, 3], torch.bfloat16)
    assert (seen["folder"], seen["time_budget"], seen["force"]) == (tmp_path / "c", 7.5, True)
    assert status == 1
    captured = capsys.readouterr()
    assert "[1/5] expand   16 → 8, bfloat16" in captured.out
    assert "no config works" in captured.out
    assert "3 keys tuned" in captured.out
    assert "4 keys are left" in captured.out
    assert "1 keys have no config that works" in captured.err


def test_something_to_tune_is_needed() -> None:
    """Neither a model nor a layer is an error that names both options."""
    with pytest.raises(ValueError, match="--model, --adapter, --layer: expected one of them"):
        run("--rank", "12", "--dry-run")


KEY = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)  # that of a fabricated document
OTHERS = [
    rules.Key("add_lora", 96, (48, 24), 12, 2, "float16", 32, 4),
    rules.Key("expand", 0, (256,), 32, 1, "float32", 48, 64),
]


@pytest.fixture
def missed(tmp_path: Path) -> Path:
    """A file of three misses, of different operations, ranks, dtypes and chunk sizes."""
    path = tmp_path / "misses.json"
    with tables(fallback.Tables({})):
        record_misses(path)
        for key in (*OTHERS, KEY):
            dispatch.choose(key, torch.device("cpu"))
        record_misses(None)
    return path


def test_keys_that_were_missed_are_tuned(missed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them and no other, whatever their dtype, rank and operation."""
    assert run("--from-misses", str(missed), "--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "configs fit" in line]
    assert [line.partition(" (")[0] for line in lines] == [
        "expand   32 → 256, float32, chunk 48, bucket 64",
        "shrink   1024 → 3·64, bfloat16, chunk 16, bucket 8",
        "add_lora 96 → 2·12 → 48+24, float16, chunk 32, bucket 4",
    ]


def test_what_contradicts_a_file_of_misses_is_refused(missed: Path, tmp_path: Path) -> None:
    """By the options' names; so is a file without any, and neither a rank nor a file."""
    options = ("--rank", "8", "--chunk-sizes", "16", "--dry-run")
    with pytest.raises(ValueError, match=r"--from-misses: expected no other option .*, got --rank, --chunk-sizes"):
        run("--from-misses", str(missed), *options)
    with tables():
        record_misses(tmp_path / "none.json")
        record_misses(None)
    with pytest.raises(ValueError, match="--from-misses: expected a file with misses, got none in"):
        run("--from-misses", str(tmp_path / "none.json"), "--dry-run")
    with pytest.raises(ValueError, match="--rank: expected the adapters' rank, such as 64,"):
        run("--layer", "o:96:48", "--dry-run")
    with pytest.raises(FileNotFoundError):
        run("--from-misses", str(tmp_path / "nowhere.json"), "--dry-run")


def test_results_of_other_kernels_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Just these; where there are none, or another option says what to tune, that is told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # then results of any GPU count
    current = document(record(chunk_size=64))
    current["runs"][0]["kernel_hash"] = kernel_hash.kernel_hash()
    put(tmp_path, "current.json", current)
    stale = "--stale", "--out", str(tmp_path), "--dry-run"
    with pytest.raises(ValueError, match=r"--stale: expected results of other kernels in .*, got none among 1 of"):
        run(*stale)
    put(tmp_path, "old.json", document(record()))
    assert run(*stale) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "configs fit" in line]
    assert [line.partition(" (")[0] for line in lines] == ["shrink   1024 → 3·64, bfloat16, chunk 16, bucket 8"]
    with pytest.raises(ValueError, match="--stale: expected no other option on what to tune, got --rank"):
        run(*stale, "--rank", "8")


def test_dry_run_counts_what_need_not_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is a GPU: what is in the folder, of this GPU and these kernels; unless it is to be measured again."""
    where = dispatch.Target("NVIDIA H200", "3.6.0", footprint.LIMITS["9.0"], "9.0", 132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(command.dispatch, "target", lambda _: where)
    monkeypatch.setattr(command, "current_run", lambda _, seed: dataclasses.replace(HERE.run, seed=seed))
    there = "--layer", "o:96:48", "--rank", "8", "--chunk-sizes", "16", "--tokens", "1", "--out", str(tmp_path)
    assert run(*there, "--dry-run") == 0
    assert capsys.readouterr().out.endswith("\n3 keys; 0 of them need not be measured again\n")
    tune(Plan([LayerShape("o", 96, (48,))], 8, [16], [1], ops=["expand"]), tmp_path, rig=StillRig(HashBench()))
    assert run(*there, "--dry-run") == 0
    assert capsys.readouterr().out.endswith("\n3 keys; 1 of them need not be measured again\n")
    assert run(*there, "--dry-run", "--force") == 0
    assert capsys.readouterr().out.endswith("\n3 keys\n")


def test_noisy_keys_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those whose default varied by more than so many percent of its time, though their records are fresh."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # then results of any GPU count
    noisy = "--noisy", "10", "--out", str(tmp_path)
    put(tmp_path, "quiet.json", document(record(noise_us=3.0)))
    with pytest.raises(ValueError, match=r"--noisy: expected results with noise of more than 10 % in .*, got none"):
        run(*noisy, "--dry-run")
    put(tmp_path, "loud.json", document(record(noise_us=3.5), max_rank=32))
    assert run(*noisy, "--dry-run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "configs fit" in line]
    assert [line.partition(" (")[0] for line in lines] == ["shrink   1024 → 3·32, bfloat16, chunk 16, bucket 8"]
    with pytest.raises(ValueError, match="--noisy: expected no other option on what to tune, got --from"):
        run(*noisy, "--dry-run", "--from-misses", "m.json", "--rank", "8")
    with pytest.raises(ValueError, match="--stale: expected no other option on what to tune, got --noisy"):
        run("--stale", "--dry-run", *noisy)
    asked = {}
    monkeypatch.setattr(command, "tune", lambda *_, **options: asked.update(options) or Summary(1, 0, 0, 0))
    monkeypatch.setattr(command.no_gpu, "require", lambda *_: None)
    with pytest.raises(ValueError, match="--noisy: expected without --ray"):
        run(*noisy, "--ray")
    assert run(*noisy) == 0
    assert asked["force"] is True


def test_what_was_tuned_is_loaded_at_once(
    missed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that tuned launches with the results, and says how many of the keys have their own."""
    asked = {}

    def tune(plan: Plan | Keys, folder: Path, **_: object) -> Summary:
        asked.update(plan=plan)
        put(folder, "a.json", document(record()))
        return Summary(tuned=1, fresh=0, failed=0, left=2)

    where = dispatch.Target("NVIDIA H200", "3.6.0", footprint.UNLIMITED, "9.0", 132)
    monkeypatch.setattr(command, "tune", tune)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.no_gpu.launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with tables(fallback.Tables({}), {}):
        monkeypatch.setattr(dispatch, "target", _target := lambda _: where)
        _target.cache_clear = lambda: None  # type: ignore[attr-defined]
        gpu = torch.device("cuda", 0)
        dispatch._warn_untuned.cache_clear()
        with pytest.warns(UserWarning, match="no configs tuned for NVIDIA H200"):
            before = dispatch.choose(KEY, gpu)
        assert run("--from-misses", str(missed), "--out", str(tmp_path / "configs"), "--then-load") == 0
        after = dispatch.choose(KEY, gpu)
        monkeypatch.undo()
    assert {*asked["plan"].keys} == {one.key for one in misses.read(missed)} == {KEY, *OTHERS}
    assert (before.step, after.step) == ("default", "exact")
    assert capsys.readouterr().out.splitlines()[-1] == (
        "loaded: 1 rows, 0 keys that keep the default, chunk sizes for 1 cells of batches; "
        "1 of the 3 keys asked for launch with their own"
    )


@pytest.mark.parametrize(("option", "address"), [(("--ray",), None), (("--ray", "head:6379"), "head:6379")])
def test_a_cluster_is_tuned_without_a_gpu_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: tuple[str, ...],
    address: str | None,
) -> None:
    """With the same options, at the address that was given; the rank is the adapter's."""
    pytest.importorskip("transformers")
    seen = {}

    def tune(plan, folder, **options):  # type: ignore[no-untyped-def]
        seen.update(plan=plan, folder=folder, **options)
        return Summary(tuned=3, fresh=0, failed=0, left=0, measuring=80.0)

    monkeypatch.setattr(fleet, "tune", tune)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    adapter = {"r": 24, "target_modules": ["o_proj"], "base_model_name_or_path": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    assert run("--adapter", str(tmp_path), "--out", str(tmp_path / "c"), "--time-budget", "7.5", *option) == 0
    assert (seen["address"], seen["folder"], seen["time_budget"]) == (address, tmp_path / "c", 7.5)
    assert (seen["plan"].layers, seen["plan"].max_rank) == ([LayerShape("o", 96, (96,))], 24)
    assert "the GPUs together were measuring for 80 s" in capsys.readouterr().out


@pytest.mark.parametrize("term", ["dumb", None])
def test_progress_is_a_line_a_key_where_no_bar_can_be(term, monkeypatch, capsys) -> None:
    """In a pipe, and on a terminal that calls itself dumb: nothing but text."""
    monkeypatch.setattr(command, "_outcome", lambda _: "12.30 → 4.10 us, 3.00x")
    if term is not None:
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(command.sys.stdout, "isatty", lambda: True)
    with command._progress() as report:
        report(types.SimpleNamespace(done=1, total=7))
    assert capsys.readouterr().out == "[1/7] 12.30 → 4.10 us, 3.00x\n"
