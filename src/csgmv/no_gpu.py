"""For commands that need a GPU where there is none: why that may be, and what to look at next."""

from __future__ import annotations

import os

import torch

from csgmv import launch


def require(command: str, instead: str = "") -> None:
    """See that there is a GPU, on which kernels run.

    Args:
        command: that needs it.
        instead: what works without.

    Raises:
        ValueError: torch finds none, or kernels are interpreted; says what to do.
    """
    if not torch.cuda.is_available():
        reason = f"needs a GPU, and torch finds none: {_advice()}"
    elif launch.INTERPRETED:
        reason = "needs kernels that run on the GPU: unset TRITON_INTERPRET"
    else:
        return
    raise ValueError("; ".join(filter(None, (f"{command} {reason}", instead))))


def _advice() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build for CPUs alone; install the one for your GPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, so see whether that names one"
    tool = "nvidia-smi" if torch.version.hip is None else "rocm-smi"
    return f"see whether `{tool}` lists one, and whether its driver is new enough for torch {torch.__version__}"
