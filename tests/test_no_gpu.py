"""What a command that needs a GPU says where there is none."""

from __future__ import annotations

import pytest
import torch

from csgmv import no_gpu


@pytest.mark.parametrize(
    ("cuda", "hip", "visible", "told"),
    [
        (None, None, "0", "is a build for CPUs alone; install the one for your GPU"),
        ("13.0", None, "", "CUDA_VISIBLE_DEVICES is '', so see whether that names one"),
        ("13.0", None, None, "see whether `nvidia-smi` lists one"),
        (None, "7.0", None, "see whether `rocm-smi` lists one"),
    ],
)
def test_the_likeliest_reason_is_told(cuda, hip, visible, told, monkeypatch):
    """First a torch that could not use any, then what hides them, then the driver."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^tune needs a GPU, and torch finds none: ") as caught:
        no_gpu.require("tune", "--dry-run works without")
    assert told in str(caught.value)
    assert str(caught.value).endswith("; --dry-run works without")


def test_interpreted_kernels_measure_nothing(monkeypatch):
    """Also where there is a GPU; kernels that run on it need no word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(no_gpu.launch, "INTERPRETED", True)
    with pytest.raises(ValueError, match=r"^bench needs kernels that run on the GPU: unset TRITON_INTERPRET$"):
        no_gpu.require("bench")
    monkeypatch.setattr(no_gpu.launch, "INTERPRETED", False)
    no_gpu.require("bench")
