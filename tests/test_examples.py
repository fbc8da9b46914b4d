"""The examples run as they are, with a GPU or without one."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import csgmv
from csgmv import examples, launch
from csgmv.examples import kernels, transformers, tune_and_overlay

GPU = torch.cuda.is_available()


def test_kernels_agree_with_plain_torch(capsys: pytest.CaptureFixture[str]) -> None:
    """The third sequence has no adapter; the difference is a rounding of the largest value."""
    kernels.main()
    text = capsys.readouterr().out
    assert "rows that changed: [True, True, True, True, True, False, False]" in text
    found = re.search(r"float32: (\S+) \(of values up to (\S+)\)", text)
    assert found
    assert float(found[1]) < 0.01 * float(found[2])


def test_three_adapters_generate_in_one_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """The row without one gives what the bare model does, and at least one with an adapter something else."""
    pytest.importorskip("transformers")
    transformers.main()
    lines = re.findall(r"^(.+?)  +\[.*\] → (\[.*\]), bare: (\[.*\])$", capsys.readouterr().out, re.MULTILINE)
    served = {name: (row, bare) for name, row, bare in lines}
    assert [*served] == ["chat", "sql", "french", "no adapter"]
    same = {name: row == bare for name, (row, bare) in served.items()}
    assert same["no adapter"]
    assert not all(same.values())


@pytest.mark.skipif(GPU, reason="is about machines without a GPU")
def test_tuning_is_explained_where_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """What would be done, by what command, and what a launch gets today."""
    tune_and_overlay.main()
    text = capsys.readouterr().out
    assert f"tunes 640 → 1536 at rank 24: {len(tune_and_overlay.PLAN.tasks())} keys" in text
    assert "csgmv tune --model" in text
    assert "gets, nearest dimensions" in text


@pytest.mark.gpu
def test_tuning_gives_a_launch_its_own_config(capsys: pytest.CaptureFixture[str]) -> None:
    """The layer's key is exact afterwards."""
    tune_and_overlay.main()
    assert re.search(r"before: (?!exact).*\n(.*\n)+after:  exact: ", capsys.readouterr().out)


def test_an_example_is_a_program() -> None:
    """Interpreted without being told so where there is no GPU; each is named in the package's own words."""
    named = {f"csgmv.examples.{module.name}" for module in pkgutil.iter_modules(examples.__path__)}
    assert named == {*re.findall(r"python -m (\S+)", examples.__doc__ or "")}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(csgmv.__file__).parents[1])
    command = [sys.executable, "-m", "csgmv.examples.kernels"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert ("interpreted" in done.stdout) == launch.INTERPRETED
