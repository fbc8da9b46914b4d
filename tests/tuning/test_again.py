"""What is to be measured again: which keys, on which batches, and where their records lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton

from csgmv import records
from csgmv.baking.collect import collect
from csgmv.tuning import again
from csgmv.tuning.plan import Batch
from csgmv.tuning.record import name
from fabricated import document, put, record

BATCHES = [[101, 5, 7, 30.0, 20.0], [32, 32, 32, 15.0, 12.5], [128, 1, 8, 12.0, 13.0]]


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then results of any GPU are looked at."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("_no_gpu")
def test_a_key_is_measured_again_on_the_batches_of_its_record(tmp_path: Path) -> None:
    """All of them, also that of one adapter, and as many decide: else the new record would say less than the old."""
    put(tmp_path, "loud.json", document(record(noise_us=9.0, batches=BATCHES, tuned_on=2)))
    for keys in (again.noisy(tmp_path, 10.0), again.stale(tmp_path)):
        (task,) = keys.tasks()
        assert task.batches == (Batch(101, 5, 7), Batch(32, 32, 32), Batch(128, 1, 8))
        assert task.deciding == task.batches[:2]


@pytest.mark.usefixtures("_no_gpu")
def test_where_the_default_cannot_run_noise_is_the_winners(tmp_path: Path) -> None:
    """Nothing else has a time then."""
    put(tmp_path, "loud.json", document(record(default_us=None, noise_us=2.5)))
    (result,) = (found.result for found in collect(tmp_path).found)
    best = records.winner(result)
    assert best is not None
    percent = 100 * result.noise_us / best.p50_us
    assert len(again.noisy(tmp_path, 0.9 * percent).tasks()) == 1
    with pytest.raises(ValueError, match="--noisy: expected results with noise of more than"):
        again.noisy(tmp_path, 1.1 * percent)


def test_on_a_gpu_records_lie_where_the_tuner_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the old one would stay beside the new."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    content = document(record(noise_us=9.0), triton=triton.__version__)
    misplaced = put(tmp_path, "loud.json", content)
    with pytest.raises(ValueError, match=r"loud\.json: expected the name nvidia-h200.*\.json, as the tuner gives it"):
        again.noisy(tmp_path, 10.0)
    (result,) = (found.result for found in collect(tmp_path).found)
    misplaced.unlink()
    put(tmp_path, str(name("NVIDIA H200", triton.__version__, result.key)), content)
    assert [task.key for task in again.noisy(tmp_path, 10.0).tasks()] == [result.key]
