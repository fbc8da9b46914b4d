"""Triton's interpreter made quicker; and less kind: programs in another order, dots that sum every row alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Twice as quick: Triton's language is patched once a launch, not at every call of one jitted function by another;
    integer operations are not done a second time in int64 to see whether they overflow (`watchful` has that back); and
    tensors, which are all on the CPU, are not copied onto themselves after each launch.
    """
    patch_lang, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_once(fn: Any) -> Any:
        languages = interpreter.tl in fn.__globals__.values(), interpreter.tl.core in fn.__globals__.values()
        if languages in patched:
            return None
        patched.add(languages)
        return patch_lang(fn)

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        patch.setattr(interpreter.GridExecutor, "__call__", start)
        patch.setattr(interpreter.GridExecutor, "_init_args_hst", lambda _, *given: given)
        patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
        options = interpreter.InterpreterOptions(sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        yield


@contextlib.contextmanager
def watchful() -> Iterator[None]:
    """An int32 operation that overflows raises."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(debug=True))
        yield


@contextlib.contextmanager
def backwards() -> Iterator[None]:
    """The last program of a grid comes first, as may be on a GPU: what one overwrites of another's is not mended."""
    builder = interpreter.interpreter_builder
    set_grid_idx = builder.set_grid_idx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "set_grid_idx", lambda x, y, z: set_grid_idx(builder.grid_dim[0] - 1 - x, y, z))
        yield


def _matmul(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.einsum("...mk,...kn->...mn", a.astype(dtype), b.astype(dtype))


@contextlib.contextmanager
def rows_alike() -> Iterator[None]:
    """Interpreted dots treat every row alike: numpy's own, through BLAS, sum a row in an order that depends on where in
    the matrix it stands, which shows in float32.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", _matmul)
        yield
