"""The chunk size of a batch whose caller names none: the second generated table, or a built-in default.

Which batches it knows is a matter of what was timed; the others take the nearest one's. The answer is remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from csgmv import dispatch, fallback, rules, tuned

ChunkSizes = Mapping[fallback.Head, Mapping[rules.Cell, int]]


def default_chunk_size(rows: int) -> int:
    """The chunk size where nothing was measured, by the rows that use an adapter."""
    return 16 if rows < 2048 else 64


def choose(rows: int, adapters: int, device: torch.device) -> int:
    """The chunk size for a batch on this device.

    Args:
        rows: rows that use an adapter, or at most that many.
        adapters: adapters that have rows, or at most that many.
        device: where the Segments will be. On the CPU, where nothing is timed, the default is taken.
    """
    if device.type != "cuda":
        return default_chunk_size(rows)
    return _tuned(rules.batch_cell(rows, adapters), device) or default_chunk_size(rows)


def possible(max_tokens: int, max_loras: int, device: torch.device) -> set[int]:
    """Every chunk size that `choose` gives batches of up to so many rows and adapters (each at least 1)."""
    rows, adapters = ([*_powers_of_two(most), most] for most in (max_tokens, max_loras))  # each cell has one of these
    return {choose(each, few, device) for each in rows for few in adapters}


def _powers_of_two(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length())]


_laid: list[ChunkSizes] = []  # at most one


def table() -> ChunkSizes:
    """The generated table, empty in a tree or wheel that has none; or what was laid over it (`lay`)."""
    return _laid[0] if _laid else tuned.tables().chunk_sizes


def lay(over: ChunkSizes) -> None:
    """Look batches up in this table from now on; what was remembered of another is forgotten."""
    _laid[:] = [over]
    _tuned.cache_clear()


@functools.cache
def _tuned(cell: rules.Cell, device: torch.device) -> int | None:
    where = dispatch.target(device)
    return resolve(cell, where.gpu, where.triton, table())


def resolve(cell: rules.Cell, gpu: str, triton: str, sizes_of: ChunkSizes) -> int | None:
    """The nearest cell's chunk size, under the nearest Triton version that has one; None for a GPU that has none.

    Nothing is borrowed between GPUs.
    """
    versions = (version for name, version in sizes_of if name == gpu)
    for version in fallback.nearest_versions(triton, versions):
        sizes = sizes_of[gpu, version]
        nearest = rules.nearest_cell(cell, sizes)
        if nearest is not None:
            return sizes[nearest]
    return None
