"""The one int32 buffer that all tensors of a batch are parts of, so that a single copy fills them from the host.

In the order of the parts: lora_ranks, scalings (their bits), seg_indptr, weight_indices, permutation. Each begins at a
multiple of 16 bytes; the last one may be shorter than there is room.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch

from csgmv.adapters import Adapters
from csgmv.grouping import HostGrouping

_SMALL = 2**16 // 4  # numbers; the driver takes this much of pageable memory into its own before a copy returns

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class _Layout(NamedTuple):
    """Where the parts of a buffer begin, and how it is split into them and what fills them up."""

    ranks: int
    scalings: int
    indptr: int
    indices: int
    permutation: int
    lengths: tuple[int, ...]
    places: tuple[int, int, int, int]  # of the parts but for the last, among the lengths


@functools.lru_cache(maxsize=4096)
def _layout(num_loras: int, num_segments: int) -> _Layout:
    starts, lengths, places = [0], list[int](), list[int]()
    for size in (num_loras, num_loras, num_segments + 1, num_segments):
        starts.append(starts[-1] + size + -size % 4)
        places.append(len(lengths))
        lengths += [size, -size % 4] if size % 4 else [size]
    of_ranks, of_scalings, of_indptr, of_indices = places
    ranks, scalings, indptr, indices, permutation = starts
    split = tuple(lengths), (of_ranks, of_scalings, of_indptr, of_indices)
    return _Layout(ranks, scalings, indptr, indices, permutation, *split)


def length(num_loras: int, num_segments: int, rows: int) -> int:
    """Numbers of a buffer for so many slots, segments and rows."""
    return _layout(num_loras, num_segments).permutation + rows


def parts(buffer: torch.Tensor, num_loras: int, num_segments: int) -> Parts:
    """permutation, seg_indptr, weight_indices, lora_ranks and scalings, in the order of `Segments.tensors`."""
    layout = _layout(num_loras, num_segments)
    found = buffer.split_with_sizes([*layout.lengths, buffer.numel() - layout.permutation])
    ranks, scalings, indptr, indices = layout.places
    return found[-1], found[indptr], found[indices], found[ranks], found[scalings].view(torch.float32)


def staged(
    adapters: Adapters, grouping: HostGrouping | None, num_loras: int, num_segments: int, device: torch.device
) -> torch.Tensor:
    """What is to be copied to the beginning of a buffer on the device: zeros stand wherever nothing is known.

    It is fresh memory each time: a copy from pageable memory has been read when it returns, and of pinned memory
    PyTorch's allocator hands a block out again only after the copies that read it. So a ring of buffers is not needed.

    Args:
        adapters: those that are on the host are in it.
        grouping: None for a copy of the adapters alone.
        num_loras, num_segments: of the buffer, at least those of the batch.
        device: of the buffer.
    """
    ranks, scalings, indptr, indices, permutation, _, _ = _layout(num_loras, num_segments)
    count = indptr if grouping is None else permutation + len(grouping.permutation)
    content = np.zeros(count, np.int32)
    if not isinstance(adapters.ranks, torch.Tensor):
        content[ranks : ranks + len(adapters.ranks)] = adapters.ranks
    if not isinstance(adapters.scalings, torch.Tensor):
        content.view(np.float32)[scalings : scalings + len(adapters.scalings)] = adapters.scalings
    if grouping is not None:
        starts, slots, rows = grouping
        content[indptr : indptr + len(starts)] = starts
        content[indptr + len(starts)] = len(rows)
        content[indices : indices + len(slots)] = slots
        content[permutation:] = rows
    host = torch.from_numpy(content)
    return host.pin_memory() if count > _SMALL and device.type == "cuda" else host
