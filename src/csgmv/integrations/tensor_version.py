"""Whether a tensor still holds what it held, without looking at it."""

from __future__ import annotations

import torch


def version(tensor: torch.Tensor) -> int:
    """Grows with every change in place; -1 for inference tensors, which count none and are taken not to change."""
    return -1 if tensor.is_inference() else tensor._version
