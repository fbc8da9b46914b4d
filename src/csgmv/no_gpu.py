"""What to tell a user whose command needs a GPU where torch finds none: why that may be, and what to look at next."""

from __future__ import annotations

import os

import torch


def told() -> str:
    """'needs a GPU, and torch finds none: …'."""
    return f"needs a GPU, and torch finds none: {_advice()}"


def _advice() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build for CPUs alone; install the one for your GPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, so see whether that names one"
    tool = "nvidia-smi" if torch.version.hip is None else "rocm-smi"
    return f"see whether `{tool}` lists one, and whether its driver is new enough for torch {torch.__version__}"
