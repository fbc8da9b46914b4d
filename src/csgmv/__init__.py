"""csgmv: many LoRA adapters in one batch, by Triton kernels whose tuned launch configs are part of the package.

Names are imported when they are first asked for, so that the command line can say, before Triton is imported, that
kernels are to be interpreted.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from csgmv._version import __version__

if TYPE_CHECKING:
    from csgmv.binaries import warmup
    from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig
    from csgmv.dispatch import explain
    from csgmv.expand import lora_expand
    from csgmv.layer import add_lora
    from csgmv.misses import record_misses
    from csgmv.overlay import load_overlay
    from csgmv.segments import Segments
    from csgmv.shrink import lora_shrink

__all__ = [
    "AddLoraConfig",
    "ExpandConfig",
    "Segments",
    "ShrinkConfig",
    "__version__",
    "add_lora",
    "explain",
    "load_overlay",
    "lora_expand",
    "lora_shrink",
    "record_misses",
    "warmup",
]

_HOMES = {
    "AddLoraConfig": "config",
    "ExpandConfig": "config",
    "Segments": "segments",
    "ShrinkConfig": "config",
    "add_lora": "layer",
    "explain": "dispatch",
    "load_overlay": "overlay",
    "lora_expand": "expand",
    "lora_shrink": "shrink",
    "record_misses": "misses",
    "warmup": "binaries",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'csgmv' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"csgmv.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
