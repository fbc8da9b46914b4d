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
    from csgmv import columns, fallback, files, kernel_hash, raw_results, readme_block, records, rules, shares
    from csgmv.baking import choose, collect, left_out
else:
    _package = types.ModuleType("_csgmv_source")
    _package.__path__ = [str(ROOT / "src" / "csgmv")]
    sys.modules[_package.__name__] = _package
    for _name in (
        "columns",
        "fallback",
        "files",
        "kernel_hash",
        "raw_results",
        "readme_block",
        "records",
        "rules",
        "shares",
        "baking.choose",
        "baking.collect",
        "baking.left_out",
    ):
        globals()[_name.rpartition(".")[2]] = importlib.import_module(f"{_package.__name__}.{_name}")

__all__ = [
    "ROOT",
    "choose",
    "collect",
    "columns",
    "fallback",
    "files",
    "kernel_hash",
    "left_out",
    "raw_results",
    "readme_block",
    "records",
    "rules",
    "shares",
]
