"""How a batch's rows are dealt to programs: tiles of block_m rows of one adapter.

A segment that is longer than a tile is cut into several tiles. Where tiles are longer than chunk_size, as many
neighbouring segments as fill a tile form a group, and its segments of one adapter are a run: mostly there is one, since
long requests are cut into many segments. Every group has a program, for its first run. For runs that begin within a
group there are programs of their own: the n-th of them finds the n-th such run. There cannot be more of these than
adapters, less one, since an adapter's segments are neighbours. So no program has more than one tile to work on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from csgmv.segments import Segments

_SCANNED = tl.constexpr(512)  # segments looked at in one step


@triton.jit
def _inner_run(weight_indices, num_segments, group, number):
    """The segment that begins the run of this number, from 0, among those that begin within a group; num_segments where
    there is none.
    """
    found = num_segments
    before = 0  # runs in the segments that have been looked at
    for first in tl.range(0, num_segments, _SCANNED, num_stages=1):
        segments = first + tl.arange(0, _SCANNED)
        inner = (segments < num_segments) & (segments % group != 0)
        adapters = tl.load(weight_indices + segments, mask=inner, other=0)
        begins = (adapters != tl.load(weight_indices + segments - 1, mask=inner, other=0)).to(tl.int32)
        match = (begins == 1) & (before + tl.cumsum(begins) == number + 1)
        found = tl.minimum(found, tl.min(tl.where(match, segments, num_segments)))
        before += tl.sum(begins)
    return found


@triton.jit
def tile(weight_indices, seg_indptr, program, first_row, num_segments, group, GROUPED: tl.constexpr):
    """What this program works on: the adapter, and the positions (exclusive end) of its rows from first_row on.

    Not GROUPED: program is a segment. Where there is nothing to do, the positions end before they start.
    """
    if GROUPED:
        groups = tl.cdiv(num_segments, group)
        segment = program * group
        if program >= groups:
            segment = _inner_run(weight_indices, num_segments, group, program - groups)
        last = tl.minimum((segment // group + 1) * group, num_segments)
        # All that a program has to know of its group is fetched at once, so that no load waits for another.
        adapter = tl.load(weight_indices + segment, mask=segment < num_segments, other=0)
        start = tl.load(seg_indptr + segment)
        segments = segment + tl.arange(0, 16)  # a tile has at most 256 rows, a segment counts for at least 16
        adapters = tl.load(weight_indices + segments, mask=segments < last, other=-1)
        ends = tl.load(seg_indptr + 1 + segments, mask=segments < last, other=0)
        following = tl.min(tl.where(adapters != adapter, segments, last))
        end = tl.max(tl.where(segments < following, ends, 0))
    else:
        adapter = tl.load(weight_indices + program)
        start = tl.load(seg_indptr + program)
        end = tl.load(seg_indptr + program + 1)
    return adapter, start + first_row, end


def deal(segments: Segments, group: int, block_m: int) -> tuple[int, int]:
    """What the grid has to be for this many segments a group and block_m rows a tile.

    Returns:
        Programs for segments, or for groups and the runs that begin within one; and tiles that each of these is cut
        into.
    """
    num_segments = segments.num_segments
    if group == 1:
        longest = segments.chunk_size
        if segments.num_tokens < longest:
            longest = segments.num_tokens
        return num_segments, -(-longest // block_m)
    groups = -(-num_segments // group)
    adapters = segments.active_adapters or segments.lora_ranks.numel()
    return groups + max(0, min(adapters - 1, num_segments - groups)), 1
