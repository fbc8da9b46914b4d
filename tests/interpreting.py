"""Triton's interpreter made quicker; and less kind: programs in another order, dots that sum every row alike.

It is imported where it is used: on a GPU nobody needs it, and not every version of it goes with every numpy.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import triton

from csgmv import rules

_KNOWN = (3, 9)  # the Triton whose interpreter `quick` and `watchful` know their way about in


@functools.cache
def _interpreter() -> Any:
    from triton.runtime import interpreter

    return interpreter


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Twice as quick: Triton's language is patched once a launch, not at every call of one jitted function by another;
    integer operations are not done a second time in int64 to see whether they overflow (`watchful` has that back); and
    tensors, which are all on the CPU, are not copied onto themselves after each launch.
    """
    if rules.version_numbers(triton.__version__)[:2] != _KNOWN:
        yield
        return
    interpreter = _interpreter()
    executor, patch_lang = interpreter.GridExecutor, interpreter._patch_lang
    launch, languages = executor.__call__, (triton.language, triton.language.core)
    patched: set[tuple[bool, ...]] = set()

    def patch_once(fn: Any) -> Any:
        known = [*fn.__globals__.values()]
        seen = tuple(any(language is each for each in known) for language in languages)
        if seen in patched:
            return None
        patched.add(seen)
        return patch_lang(fn)

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        patch.setattr(executor, "__call__", start)
        patch.setattr(executor, "_init_args_hst", lambda _, *given: given)
        patch.setattr(executor, "_restore_args_dev", lambda *_: None)
        options = interpreter.InterpreterOptions(sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        yield


@contextlib.contextmanager
def watchful() -> Iterator[None]:
    """An int32 operation that overflows raises, in Tritons that look."""
    interpreter = _interpreter()
    with pytest.MonkeyPatch.context() as patch:
        if rules.version_numbers(triton.__version__)[:2] == _KNOWN:
            patch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(debug=True))
        yield


@contextlib.contextmanager
def backwards() -> Iterator[None]:
    """The last program of a grid comes first, as may be on a GPU: what one overwrites of another's is not mended."""
    builder = _interpreter().interpreter_builder
    set_grid_idx = builder.set_grid_idx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "set_grid_idx", lambda x, y, z: set_grid_idx(builder.grid_dim[0] - 1 - x, y, z))
        yield


@contextlib.contextmanager
def only_the_last_program() -> Iterator[None]:
    """Of each launch, for tensors of which the rest would take minutes."""
    executor, builder = _interpreter().GridExecutor, _interpreter().interpreter_builder
    start, set_grid_idx = executor.__call__, builder.set_grid_idx

    def last(self: Any, *args: Any, **kwargs: Any) -> None:
        (programs,) = self.grid

        def set_last(*_: int) -> None:
            builder.grid_dim = (programs, 1, 1)
            set_grid_idx(programs - 1, 0, 0)

        self.grid = (1,)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builder, "set_grid_idx", set_last)
            start(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "__call__", last)
        yield


@contextlib.contextmanager
def rows_alike() -> Iterator[None]:
    """Interpreted dots treat every row alike: numpy's own, through BLAS, sum a row in an order that depends on where in
    the matrix it stands, which shows in float32.
    """
    import numpy as np

    def matmul(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return np.einsum("...mk,...kn->...mn", a.astype(dtype), b.astype(dtype))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", matmul)
        yield
