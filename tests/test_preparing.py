"""Batches prepared here and by an engine's backend are compared before they are timed."""

from __future__ import annotations

from pathlib import Path

import pytest

import preparing

# Names and arguments are sglang's, what the functions do is as slow and plain as can be.
UTILS = """
from sglang.srt.utils.hf_transformers_utils import AutoConfig

def generate_sequence_lengths(batch, device=None):
    return batch.extend_seq_lens_cpu if batch.forward_mode.is_extend() else [1] * batch.batch_size
"""
BACKEND = """
from sglang.srt.lora.backend.base_backend import BaseLoRABackend
from sglang.srt.lora.utils import generate_sequence_lengths
import torch

class ChunkedSgmvLoRABackend(BaseLoRABackend):
    @staticmethod
    def _get_permutation(ids, batch):
        lens = generate_sequence_lengths(batch)
        rows = [slot for slot, length in zip(ids, lens) for _ in range(length)]
        order = sorted(range(len(rows)), key=lambda row: rows[row])
        return torch.tensor(order, pin_memory=True), [rows[row] for row in order]

    def _get_segments_info(self, rows, chunk_size):
        starts = []
        for at, slot in enumerate(rows):
            if not starts or rows[starts[-1]] != slot or at - starts[-1] == chunk_size:
                starts.append(at)
        return torch.tensor([rows[at] for at in starts]), torch.tensor([*starts, len(rows)])
"""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls."""
    monkeypatch.setattr(preparing, "RUNS", 3)
    monkeypatch.setattr(preparing, "WARM_UP", 1)


def publish(folder: Path, backend: str) -> None:
    """Put the two files where sglang has them."""
    for name, text in (("backend/chunked_backend.py", backend), ("utils.py", UTILS)):
        path = folder / "srt" / "lora" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_both_prepare_the_same_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a line; what is allowed decides the exit status."""
    publish(tmp_path, BACKEND)
    for share, status in ((1e6, 0), (1e-6, 1)):
        monkeypatch.setattr(preparing, "SHARE", share)
        assert preparing.main(str(tmp_path)) == status
        assert capsys.readouterr().out.count("(cpu)") == len(preparing.BATCHES)


def test_others_are_not_timed(tmp_path: Path) -> None:
    """A backend that orders rows otherwise does something else."""
    publish(tmp_path, BACKEND.replace("key=lambda row: rows[row]", "key=lambda row: -rows[row]"))
    with pytest.raises(AssertionError, match="the two do not agree"):
        preparing.main(str(tmp_path))
