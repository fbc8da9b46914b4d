"""The dtypes that kernels take, and their names in keys, options and raw results."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from csgmv import rules

BY_NAME: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in rules.DTYPE_BYTES}
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in BY_NAME.items()}


def name_of(argument: str, dtype: object, *others: object) -> str:
    """The name of a dtype that kernels take; the `others` may come too, but not here.

    Raises:
        TypeError, ValueError: it is no dtype, or another one; naming the argument, what was expected and what came.
    """
    if isinstance(dtype, torch.dtype) and dtype in NAMES:
        return NAMES[dtype]
    *first, last = map(str, (*NAMES, *others))
    wanted = TypeError if not isinstance(dtype, torch.dtype) else ValueError
    raise wanted(f"{argument}: expected {', '.join(first)} or {last}, got {dtype!r}")
