"""Which kernels a measurement was made with: results of others are stale.

Standard library only, like `rules`, and for the same reason.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from pathlib import Path

# A source's hash → that of a later one whose binaries are the same for every row that the table had then, as
# `python tests/same_binaries.py REVISION` found: what was measured with the one holds for the other.
SAME_BINARIES: Mapping[str, str] = {
    # Before slices could be tensors of their own, and of a day in between: f12c1d5 and 169881f.
    "sha256:85aa47cfd3b0eff0eb516d26038f021ab182c9c23ee661fbefbb331cdd65456c": (
        "sha256:4e4d92fe9321de3f068021933af09d0b361eea4d1c2f77767b7491d3f67e7ad9"
    ),
    "sha256:b6f5ef72e53ee53df30a6ee273e0025d47125a64ec4a992d2ad8fd6f89988616": (
        "sha256:4e4d92fe9321de3f068021933af09d0b361eea4d1c2f77767b7491d3f67e7ad9"
    ),
}


def same_kernels(recorded: str, today: str) -> bool:
    """Whether what was measured with kernels of the one hash holds for those of the other, a later one."""
    for _ in SAME_BINARIES:
        if recorded == today:
            break
        recorded = SAME_BINARIES.get(recorded, recorded)
    return recorded == today


def kernel_hash(folder: Path | None = None) -> str:
    """A hash of the source of every jitted function of the package's modules; comments, docstrings and layout do not
    enter it, nor does what is not jitted.
    """
    folder = Path(__file__).parent if folder is None else folder
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(by) for by in node.decorator_list):
                if ast.get_docstring(node) is not None:
                    del node.body[0]
                digest.update(f"{ast.unparse(node)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
