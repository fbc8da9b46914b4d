"""How operators of torch.library are defined, under the name that this package has there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Inductor must not hand over other strides than an eager call would get: the wrappers refuse what is not contiguous.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)
_library = torch.library.Library("csgmv", "FRAGMENT")


def _in_place(*_: Any) -> None:
    """A mutation that the schema declares, and nothing else."""


def define(name: str, schema: str, call: Callable[..., Any], fake: Callable[..., Any] | None = None) -> Any:
    """The operator csgmv::name, which Dynamo puts into a graph as it is.

    Args:
        name: of the operator.
        schema: its arguments, of which those that it writes are declared, and what it returns.
        call: what it does.
        fake: what it returns, without values; None where it only writes.
    """
    _library.define(f"{name}{schema}", tags=_TAGS)
    _library.impl(name, call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"csgmv::{name}", fake or _in_place, lib=_library)
    return getattr(torch.ops.csgmv, name).default
