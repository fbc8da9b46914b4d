"""Which kernels a measurement was made with: results of others are stale.

Standard library only, like `rules`, and for the same reason.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path


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
