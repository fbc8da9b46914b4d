"""csgmv: many LoRA adapters in one batch, by Triton kernels whose tuned launch configs are part of the package.

`Segments` gather a batch by adapter. `add_lora` applies the adapters; `lora_shrink` (x → h) and `lora_expand`
(h → output) are its two halves. `warmup` compiles what a model can need before requests come. `explain` says which
config a launch gets and why, `record_misses` which launches have none of their own, `load_overlay` loads such as were
tuned since.

Names are imported when they are first asked for, so that the command line can say, before Triton is imported, that
kernels are to be interpreted.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from csgmv._version import __version__

__table_digest__: str | None
"""Of the raw results that the built-in table was made from, "sha256:…": tells tables apart, whatever the version says.
None in a tree without a generated table. Nothing that is loaded at run time (`load_overlay`) is in it."""

if TYPE_CHECKING:
    from csgmv.binaries import warmup
    from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig
    from csgmv.debugging import debug
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
    "__table_digest__",
    "__version__",
    "add_lora",
    "debug",
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
    "debug": "debugging",
    "explain": "dispatch",
    "load_overlay": "overlay",
    "lora_expand": "expand",
    "lora_shrink": "shrink",
    "record_misses": "misses",
    "warmup": "binaries",
}


def __getattr__(name: str) -> Any:
    if name == "__table_digest__":
        value = importlib.import_module("csgmv.tuned").tables().digest
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"csgmv.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'csgmv' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
