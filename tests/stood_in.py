"""What the tuner's compiling processes do, for an H200 that need not be there, in a process of its own.

    python tests/stood_in.py

prints as JSON what becomes of some configs (what their binaries take, or why there are none), and whether CUDA was
asked for anything. The launcher, which needs libcuda to be linked, is left out where there is none.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import tempfile
from typing import Any

import torch
from triton.backends.nvidia import driver

from csgmv import rules
from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig, to_row
from csgmv.tuning.compile import Compiler
from csgmv.tuning.target import CompileTarget
from csgmv.tuning.worker import reason

H200 = CompileTarget(90, 232_448)
SHRINK = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 64, 1)
PAIR = rules.Key("add_lora", 1024, (2048, 1024), 64, 2, "bfloat16", 16, 1)
CASES: dict[str, tuple[rules.Key, Any]] = {
    "small": (SHRINK, ShrinkConfig(16, 16, 64)),
    "large": (SHRINK, ShrinkConfig(64, 64, 128, num_stages=4)),
    "spilling": (SHRINK, ShrinkConfig(128, 64, 128, maxnreg=104)),
    "too large": (SHRINK, ShrinkConfig(128, 64, 256, num_stages=8)),
    "pair": (PAIR, AddLoraConfig(ShrinkConfig(16, 16, 64, split_k=2), ExpandConfig(16, 64, 16), overlap=True)),
}


def _compiled(compiler: Compiler, key: rules.Key, row: rules.Row, index: int) -> Any:
    try:
        return compiler.compile(key, row, index)._asdict()
    except Exception as error:  # noqa: BLE001 - as in the process that serves
        return reason(error)


def main() -> None:
    """Print it."""
    if ctypes.util.find_library("cuda") is None:
        vars(driver)["CudaLauncher"] = lambda *_: lambda *_: None
    compiler, found = Compiler("cuda:0", H200), dict[str, list[Any]]()
    for name, (key, config) in CASES.items():
        (described,) = compiler.describe(key, [to_row(config)])
        assert isinstance(described, tuple), described
        found[name] = [_compiled(compiler, key, to_row(config), index) for index in range(len(described))]
    print(json.dumps({"found": found, "cuda": torch.cuda.is_initialized()}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        main()
