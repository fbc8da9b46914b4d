"""Without a GPU kernels are interpreted, and tests marked `gpu` are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Triton looks at this once, when it is imported; nothing above imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def same_tables() -> Iterator[None]:
    """What a test lays over the tables is gone after it, whichever test comes next."""
    from csgmv import chunk_sizes, dispatch, launch

    before = [(module, module._laid, [*module._laid]) for module in (dispatch, chunk_sizes)]
    yield
    for module, laid, held in before:
        if module._laid is not laid or [*map(id, laid)] != [*map(id, held)]:
            laid[:] = held
            module._laid = laid
            dispatch.target.cache_clear()
            dispatch._remembered.clear()
            launch.plans.clear()


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """Interpreted launches take half the time: see `interpreting`."""
    from csgmv import launch

    if not launch.INTERPRETED:
        yield
        return
    import interpreting

    with interpreting.quick():
        yield
