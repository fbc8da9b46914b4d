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
    assert no_gpu.told().startswith("needs a GPU, and torch finds none: ")
    assert told in no_gpu.told()
