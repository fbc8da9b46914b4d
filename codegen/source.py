"""The modules of csgmv that the codegen shares, where what a result must be and which row is best stand once.

They are loaded from the source tree under a package name of their own, since `import csgmv` would run its `__init__`,
which imports torch; a build environment has none.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from csgmv import columns, fallback, figures, files, kernel_hash, records, rules, shares
    from csgmv.baking import choose, collect, left_out
else:
    _package = types.ModuleType("_csgmv_source")
    _package.__path__ = [str(ROOT / "src" / "csgmv")]
    sys.modules[_package.__name__] = _package
    columns, fallback, figures, files, kernel_hash, records, rules, shares = (
        importlib.import_module(f"_csgmv_source.{name}")
        for name in ("columns", "fallback", "figures", "files", "kernel_hash", "records", "rules", "shares")
    )
    choose, collect, left_out = (
        importlib.import_module(f"_csgmv_source.baking.{name}") for name in ("choose", "collect", "left_out")
    )

__all__ = [
    "ROOT",
    "choose",
    "collect",
    "columns",
    "fallback",
    "figures",
    "files",
    "kernel_hash",
    "left_out",
    "records",
    "rules",
    "shares",
]
