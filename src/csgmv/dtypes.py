"""The dtypes that kernels take, and their names in keys, options and raw results."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from csgmv import rules

BY_NAME: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in rules.DTYPE_BYTES}
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in BY_NAME.items()}


def name_of(argument: str, dtype: object) -> str:
    """The name of a dtype that kernels take.

    Raises:
        TypeError: it is none, naming the argument, what was expected and what came.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in NAMES:
        *others, last = BY_NAME.values()
        raise TypeError(f"{argument}: expected {', '.join(map(str, others))} or {last}, got {dtype!r}")
    return NAMES[dtype]
