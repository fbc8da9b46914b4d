"""The one int32 buffer that all tensors of a batch are parts of, so that a single copy fills them from the host.

In the order of the parts: lora_ranks, scalings (their bits), seg_indptr, weight_indices, permutation. Each begins at a
multiple of 16 bytes; the last one may be shorter than there is room.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from csgmv.adapters import Adapters
from csgmv.grouping import HostGrouping

# Bytes. "Memory copies from host to device of a memory block of 64 KB or less" do not wait (CUDA C++ Programming Guide,
# Asynchronous Concurrent Execution), and pinned memory takes longer to get than they do. Of AMD's nothing is known.
_SMALL = 2**16 if torch.version.hip is None else 0

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class _Layout(NamedTuple):
    """Of a buffer, in the order of its parts.

    Attributes:
        rooms: of each part, to where the next one begins; the last has as much as it needs.
        lengths: how it is split into all parts but the last, and what fills them up.
        places: of those parts among the lengths.
    """

    rooms: tuple[int, int, int, int, int]
    lengths: tuple[int, ...]
    places: tuple[int, int, int, int]


@functools.lru_cache(maxsize=4096)
def _layout(num_loras: int, num_segments: int) -> _Layout:
    sizes = num_loras, num_loras, num_segments + 1, num_segments
    lengths, places = list[int](), list[int]()
    for size in sizes:
        places.append(len(lengths))
        lengths += [size, -size % 4] if size % 4 else [size]
    ranks, scalings, indptr, indices = (size + -size % 4 for size in sizes)
    return _Layout((ranks, scalings, indptr, indices, 0), tuple(lengths), (places[0], places[1], places[2], places[3]))


def length(num_loras: int, num_segments: int, rows: int) -> int:
    """Numbers of a buffer for so many slots, segments and rows."""
    return sum(_layout(num_loras, num_segments).lengths) + rows


def parts(buffer: torch.Tensor, num_loras: int, num_segments: int) -> Parts:
    """permutation, seg_indptr, weight_indices, lora_ranks and scalings, in the order of `Segments.tensors`."""
    _, lengths, (ranks, scalings, indptr, indices) = _layout(num_loras, num_segments)
    found = buffer.split_with_sizes([*lengths, buffer.numel() - sum(lengths)])
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
    given = [b"" if isinstance(each, torch.Tensor) else each.tobytes() for each in (adapters.ranks, adapters.scalings)]
    layout = _layout(num_loras, num_segments)
    filled = [part.ljust(4 * room, b"\0") for part, room in zip([*given, *(grouping or ())], layout.rooms)]
    content = bytearray().join(filled)
    if not content:
        return torch.empty(0, dtype=torch.int32, device="cpu")
    host = torch.frombuffer(content, dtype=torch.int32)
    return host.pin_memory() if len(content) > _SMALL and device.type == "cuda" else host
