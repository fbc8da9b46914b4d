"""How a batch's rows are dealt to programs: tiles of block_m rows of one adapter.

A segment that is longer than a tile is cut into several tiles. Where tiles are longer than chunk_size, as many
neighbouring segments as fill a tile form a group. A program takes one tile of every run of equal adapters in its group:
mostly one run, since long requests are cut into many segments, and one after the other where adapters differ.
"""

from __future__ import annotations

import triton
import triton.language as tl

from csgmv.segments import Segments


@triton.jit
def group_adapters(weight_indices, first, last):
    """The adapters [16] of segments first … last, and these segments; past last they are -1."""
    segments = first + tl.arange(0, 16)  # a tile has at most 256 rows, a segment counts for at least 16
    return tl.load(weight_indices + segments, mask=segments < last, other=-1), segments


@triton.jit
def run_end(adapters, segments, segment, adapter, last):
    """The first segment after `segment` that has another adapter, or `last`."""
    other = (segments > segment) & (adapters != adapter)
    return tl.min(tl.where(other, segments, last))


def deal(segments: Segments, group: int, block_m: int) -> tuple[int, int]:
    """How many groups of this many segments there are, and tiles of block_m rows for each run in a group."""
    longest = segments.chunk_size * group
    if segments.num_tokens < longest:
        longest = segments.num_tokens
    return -(-segments.num_segments // group), -(-longest // block_m)
