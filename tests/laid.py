"""Tables that a test may lay something over: afterwards they are what they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from csgmv import chunk_sizes, dispatch, fallback, launch


@contextlib.contextmanager
def tables(known: fallback.Tables | None = None, sizes: chunk_sizes.ChunkSizes | None = None) -> Iterator[None]:
    """These in place of the generated ones, or those where there are none given; nothing is remembered of them yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_laid", [] if known is None else [known])
        patch.setattr(dispatch, "_remembered", {})
        patch.setattr(launch, "plans", {})
        patch.setattr(chunk_sizes, "_laid", [] if sizes is None else [sizes])
        _forget()
        yield
    _forget()


def _forget() -> None:
    dispatch.target.cache_clear()
    chunk_sizes._tuned.cache_clear()
