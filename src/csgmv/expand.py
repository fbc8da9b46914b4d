"""Expand: base_output += scaling[adapter] · (h @ B[adapter].T) for every row of every segment, slice by slice.

A program keeps its rows of h on chip and walks over one or several tiles of one slice's output columns. What it reads
from memory mostly is base_output, so each tile's weights and base are on their way before the tile before is done.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.compiler import is_dynamo_compiling

from csgmv import arguments, dispatch, footprint, launch, rules, slices, tiles
from csgmv.config import ExpandConfig
from csgmv.segments import Segments
from csgmv.slices import Sliced, SomeSliced


@triton.jit
def _up_to_rank(k, rank, MAX_RANK: tl.constexpr):
    """Which ranks to load for an adapter that has fewer than MAX_RANK: whole groups of 8, so that the mask does not
    break 16-byte accesses. What they hold past the adapter's own rank may be NaN: it is to be replaced by zero.
    """
    return k < (tl.cdiv(rank, 8) * 8 if MAX_RANK % 8 == 0 else rank)


@triton.jit
def _load_h(
    h_row,
    k,
    rank,
    split_stride,
    splits,
    live,
    FULL: tl.constexpr,
    MAX_RANK: tl.constexpr,
    dtype: tl.constexpr,
):
    """h's tile [BLOCK_M, BLOCK_K], zero beyond rank; float32 partials are summed in their order, then rounded once."""
    mask = live if FULL else live & _up_to_rank(k, rank, MAX_RANK)[None, :]
    pointers = h_row + k[None, :]
    total = tl.load(pointers, mask=mask, other=0.0)
    # Several at a time, so that their loads do not wait for each other; where there is no other, 0 is added.
    TOGETHER: tl.constexpr = 8 if k.shape[0] * live.shape[0] <= 1024 else 2
    present = tl.where(mask, splits, 0)
    for first in tl.range(1, splits, TOGETHER, num_stages=1):
        for ahead in tl.static_range(TOGETHER):
            total += tl.load(pointers + (first + ahead) * split_stride, mask=present > first + ahead, other=0.0)
    return (total if FULL else tl.where((k < rank)[None, :], total, 0.0)).to(dtype)


@triton.jit
def _load_b(b_slice, column, k, rank, width, FULL: tl.constexpr, MAX_RANK: tl.constexpr, EVEN_N: tl.constexpr):
    """B's tile [BLOCK_K, BLOCK_N], zero beyond rank; columns past the slice repeat its last one."""
    b_row = (column if EVEN_N else tl.minimum(column, width - 1)).to(tl.int64)
    pointers = b_slice + b_row[None, :] * MAX_RANK + k[:, None]
    if FULL:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=_up_to_rank(k, rank, MAX_RANK)[:, None], other=0.0)
        tile = tl.where((k < rank)[:, None], tile, 0.0)
    return tile


@triton.jit
def _load_base(base_row, column, live, width, EVEN_N: tl.constexpr):
    """base_output's tile [BLOCK_M, BLOCK_N]; zero where there is none."""
    mask = live if EVEN_N else live & (column < width)[None, :]
    return tl.load(base_row + column[None, :], mask=mask, other=0.0)


@triton.jit
def _prefetch_base(base_row, first_column, width, BLOCK_N: tl.constexpr):
    """Ask for base_output's tile [BLOCK_M, BLOCK_N] to be moved into L2, a line of 128 bytes at a time."""
    PER_LINE: tl.constexpr = 128 * 8 // base_row.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = BLOCK_N // PER_LINE if BLOCK_N > PER_LINE else 1
    column = tl.minimum(first_column + tl.arange(0, LINES) * PER_LINE, width - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [base_row + column[None, :]], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _store_sum(base_row, column, live, width, base_tile, delta, scaling, EVEN_N: tl.constexpr):
    """base + scaling · delta, in float32, rounded once."""
    mask = live if EVEN_N else live & (column < width)[None, :]
    value = (base_tile.to(tl.float32) + delta * scaling).to(base_tile.dtype)
    tl.store(base_row + column[None, :], value, mask=mask)


@triton.jit
def _expand_tiles(
    # pointers, of this program's rows and slice
    h_row,  # [BLOCK_M, 1]
    b_slice,
    base_row,  # [BLOCK_M, 1]
    # sizes
    live,  # [BLOCK_M, 1]
    rank,
    scaling,
    first_column,
    width,
    split_stride,
    splits,
    column_tiles,
    # constants
    FULL: tl.constexpr,  # rank is MAX_RANK, a multiple of BLOCK_K: nothing to mask along the rank
    MAX_RANK: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K)
    column = first_column + tl.arange(0, BLOCK_N)
    count = tl.minimum(column_tiles, tl.cdiv(width - first_column, BLOCK_N))
    dtype: tl.constexpr = b_slice.dtype.element_ty
    if BLOCK_K >= MAX_RANK and NUM_STAGES > 1:
        # The whole rank in one step: h stays on chip while the weights and base of the next tiles come in through
        # shared memory. They are asked for only after h has arrived; meanwhile those of the first tiles move into L2.
        if PREFETCH:
            _prefetch_base(base_row, first_column, width, BLOCK_N)
            _prefetch_base(base_row, first_column + BLOCK_N, width, BLOCK_N)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        h_tile = _load_h(h_row, k, rank, split_stride, splits, live, FULL, MAX_RANK, dtype)
        for _ in tl.range(0, count, num_stages=NUM_STAGES):
            b_tile = _load_b(b_slice, column, k, rank, width, FULL, MAX_RANK, EVEN_N)
            base_tile = _load_base(base_row, column, live, width, EVEN_N)
            delta = tl.dot(h_tile, b_tile, input_precision="ieee")
            _store_sum(base_row, column, live, width, base_tile, delta, scaling, EVEN_N)
            column += BLOCK_N
    elif BLOCK_K >= MAX_RANK:
        # The same with one tile ahead, through registers. None of the first tile's loads depends on the shrink kernel,
        # so with OVERLAP they are under way while that is still running.
        b_tile = _load_b(b_slice, column, k, rank, width, FULL, MAX_RANK, EVEN_N)
        base_tile = _load_base(base_row, column, live, width, EVEN_N)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        h_tile = _load_h(h_row, k, rank, split_stride, splits, live, FULL, MAX_RANK, dtype)
        for _ in tl.range(1, count):
            next_b = _load_b(b_slice, column + BLOCK_N, k, rank, width, FULL, MAX_RANK, EVEN_N)
            next_base = _load_base(base_row, column + BLOCK_N, live, width, EVEN_N)
            delta = tl.dot(h_tile, b_tile, input_precision="ieee")
            _store_sum(base_row, column, live, width, base_tile, delta, scaling, EVEN_N)
            column += BLOCK_N
            b_tile = next_b
            base_tile = next_base
        delta = tl.dot(h_tile, b_tile, input_precision="ieee")
        _store_sum(base_row, column, live, width, base_tile, delta, scaling, EVEN_N)
    else:
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        for _ in tl.range(0, count):
            base_tile = _load_base(base_row, column, live, width, EVEN_N)
            delta = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for step in tl.range(0, tl.cdiv(rank, BLOCK_K)):
                h_tile = _load_h(h_row, step * BLOCK_K + k, rank, split_stride, splits, live, FULL, MAX_RANK, dtype)
                b_tile = _load_b(b_slice, column, step * BLOCK_K + k, rank, width, FULL, MAX_RANK, EVEN_N)
                delta = tl.dot(h_tile, b_tile, delta, input_precision="ieee")
            _store_sum(base_row, column, live, width, base_tile, delta, scaling, EVEN_N)
            column += BLOCK_N


@triton.jit
def _expand_rows(
    # pointers
    h,
    lora_b,
    base_output,
    permutation,
    lora_ranks,
    scalings,
    # which rows of which adapter, which columns
    adapter,
    start,
    end,
    slice_id,
    b_start,  # of the slice, in rows of B
    base_start,  # of the slice, in columns of base_output
    width,
    first_column,
    # sizes
    b_stride,
    base_stride,
    h_stride,
    positions,
    splits,
    column_tiles,
    # constants
    MAX_RANK: tl.constexpr,
    PADDED: tl.constexpr,
    STAGED: tl.constexpr,
    OVERLAP: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Positions start … end (at most BLOCK_M of them, at least one), all of one adapter; columns of one slice."""
    position = start + tl.arange(0, BLOCK_M)
    # Rows and rank are fetched together: a branch on the rank before would make the rows wait for it.
    row = tl.load(permutation + tl.minimum(position, end - 1)).to(tl.int64)
    rank = tl.minimum(tl.load(lora_ranks + adapter), MAX_RANK)
    scaling = tl.load(scalings + adapter)
    live = (position < end)[:, None]
    h_row = h + (position.to(tl.int64) if STAGED else row)[:, None] * h_stride
    split_stride = positions.to(tl.int64) * h_stride
    b_slice = lora_b + adapter.to(tl.int64) * b_stride + b_start.to(tl.int64) * MAX_RANK
    base_row = base_output + row[:, None] * base_stride + base_start
    if (rank == MAX_RANK) & (MAX_RANK % BLOCK_K == 0):
        _expand_tiles(
            h_row + slice_id * MAX_RANK, b_slice, base_row, live, rank, scaling, first_column, width, split_stride,
            splits, column_tiles, True, MAX_RANK, OVERLAP, EVEN_N, BLOCK_M, BLOCK_N, BLOCK_K, NUM_STAGES, PREFETCH,
        )  # fmt: skip
    elif rank > 0:
        h_slice = slice_id * (MAX_RANK if PADDED or STAGED else rank)
        _expand_tiles(
            h_row + h_slice, b_slice, base_row, live, rank, scaling, first_column, width, split_stride,
            splits, column_tiles, False, MAX_RANK, OVERLAP, EVEN_N, BLOCK_M, BLOCK_N, BLOCK_K, NUM_STAGES, PREFETCH,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_slices", "positions", "num_segments", "group", "row_tiles", "column_programs"],
    do_not_specialize_on_alignment=["splits", "column_tiles"],
)
def _expand_kernel(
    # pointers
    h,  # of all slices, or of the first and then
    h1,  # of the others
    h2,
    h3,
    lora_b,  # likewise
    lora_b1,
    lora_b2,
    lora_b3,
    base_output,  # likewise
    base_output1,
    base_output2,
    base_output3,
    permutation,
    seg_indptr,
    weight_indices,
    lora_ranks,
    scalings,
    # sizes
    end0,  # where each slice ends along output_dim
    end1,
    end2,
    end3,
    b_stride,  # between adapters; None where slices are apart, whose own widths say it
    base_stride,  # between rows, of the first
    base_stride1,  # and of the others
    base_stride2,
    base_stride3,
    num_slices,
    positions,
    num_segments,
    group,  # segments of a group, see tiles.py
    row_tiles,
    column_programs,
    splits,  # partials of h to sum, 1 where h is not STAGED
    column_tiles,
    # constants
    H_APART: tl.constexpr,  # each slice of h is a tensor of its own
    B_APART: tl.constexpr,  # and of lora_b
    BASE_APART: tl.constexpr,  # and of base_output
    MAX_RANK: tl.constexpr,
    PADDED: tl.constexpr,  # slice i of h begins at column i * MAX_RANK, not i * rank
    STAGED: tl.constexpr,  # h comes from the shrink kernel: rows by position, padded
    OVERLAP: tl.constexpr,  # launched while the shrink kernel may still be running
    EVEN_N: tl.constexpr,  # every slice's width is a multiple of BLOCK_N
    BY_8: tl.constexpr,  # sizes are multiples of 8, not all of 16, which the compiler would see for itself
    GROUPED: tl.constexpr,  # group may be more than 1
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    if BY_8:  # tl.multiple_of says nothing of a kernel's own arguments
        end0 = end0 // 8 * 8
        end1 = end1 // 8 * 8
        end2 = end2 // 8 * 8
        end3 = end3 // 8 * 8
        if not B_APART:
            b_stride = b_stride // 8 * 8
        base_stride = base_stride // 8 * 8
        if BASE_APART:
            base_stride1 = base_stride1 // 8 * 8
            base_stride2 = base_stride2 // 8 * 8
            base_stride3 = base_stride3 // 8 * 8
    h_stride = num_slices * MAX_RANK
    pid = tl.program_id(0)
    program = pid % column_programs
    pid = pid // column_programs
    first_row = (pid % row_tiles) * BLOCK_M

    # Slices are uneven: find the one that this program's tiles lie in, and the first of its columns.
    ends = (end0, end1, end2, end3)
    slice_id = 0
    slice_start = 0
    width = end0
    for following in tl.static_range(1, 4):
        programs = tl.cdiv(width, BLOCK_N * column_tiles)
        beyond = (slice_id == following - 1) & (program >= programs)
        program = tl.where(beyond, program - programs, program)
        slice_id = tl.where(beyond, following, slice_id)
        slice_start = tl.where(beyond, ends[following - 1], slice_start)
        width = tl.where(beyond, ends[following] - ends[following - 1], width)
    first_column = program * (BLOCK_N * column_tiles)
    # Where a slice begins in what holds all of them; in a tensor of its own, at 0, as a number of the same type.
    h_slice_id = slice_id
    b_start = slice_start
    base_start = slice_start
    if H_APART:
        h = slices.of_slice(slice_id, h, h1, h2, h3)
        h_stride = 0 * num_slices + MAX_RANK
        h_slice_id = 0 * slice_id
    if B_APART:
        lora_b = slices.of_slice(slice_id, lora_b, lora_b1, lora_b2, lora_b3)
        b_stride = width * MAX_RANK
        b_start = 0 * slice_start
    if BASE_APART:
        base_output = slices.of_slice(slice_id, base_output, base_output1, base_output2, base_output3)
        base_stride = slices.of_slice(slice_id, base_stride, base_stride1, base_stride2, base_stride3)
        base_start = 0 * slice_start

    adapter, start, end = tiles.tile(
        weight_indices, seg_indptr, pid // row_tiles, first_row, num_segments, group, GROUPED
    )
    if start < end:
        _expand_rows(
            h, lora_b, base_output, permutation, lora_ranks, scalings,
            adapter, start, end, h_slice_id, b_start, base_start, width, first_column, b_stride, base_stride,
            h_stride, positions, splits, column_tiles, MAX_RANK, PADDED, STAGED, OVERLAP, EVEN_N,
            BLOCK_M, BLOCK_N, BLOCK_K, NUM_STAGES, PREFETCH,
        )  # fmt: skip


def _columns(slice_offsets: tuple[int, ...], block_n: int, column_tiles: int) -> tuple[tuple[int, ...], bool, int]:
    """The ends of MAX_SLICES slices, whether all widths are multiples of block_n, the programs of a tile of rows."""
    widths = [end - start for start, end in itertools.pairwise(slice_offsets)]
    ends = (*slice_offsets[1:], *[slice_offsets[-1]] * (rules.MAX_SLICES - len(widths)))
    even = all(width % block_n == 0 for width in widths)
    return ends, even, sum(-(-width // (block_n * column_tiles)) for width in widths)


class ExpandLaunch(launch.Launch):
    """The expand kernel on operands of one kind: its constants, and the grid and sizes of each launch.

    `h` is [num_tokens, width], or slices of it, or staged [splits, positions, width].
    """

    __slots__ = ("_block_m", "_column_programs", "_group", "_last_sizes", "_sizes")

    def __init__(
        self,
        lora_b: Sliced,
        base_output: Sliced,
        chunk_size: int,
        slice_offsets: tuple[int, ...],
        config: ExpandConfig,
        *,
        padded: bool,
        staged: bool,
        h_apart: bool = False,
        splits: int = 1,
        overlap: bool = False,
    ) -> None:
        b_parts, base_parts = slices.parts(lora_b), slices.parts(base_output)
        b_apart, base_apart = len(b_parts) > 1, len(base_parts) > 1
        max_rank = b_parts[0].shape[2]
        self._block_m, self._group = config.block_m, footprint.group_size(config.block_m, chunk_size)
        ends, even, self._column_programs = _columns(slice_offsets, config.block_n, config.column_tiles)
        b_stride = None if b_apart else b_parts[0].shape[1] * max_rank
        strides = tuple(base.stride(0) for base in base_parts)
        self._sizes = *ends, b_stride, *slices.four(strides), len(slice_offsets) - 1
        self._last_sizes = self._column_programs, splits, config.column_tiles
        constants = {
            "H_APART": h_apart,
            "B_APART": b_apart,
            "BASE_APART": base_apart,
            "MAX_RANK": max_rank,
            "PADDED": padded,
            "STAGED": staged,
            "OVERLAP": overlap,
            "EVEN_N": even,
            "BY_8": launch.by_8(*ends, *strides),
            "GROUPED": self._group > 1,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": footprint.rank_step(config.block_k, max_rank),
            "NUM_STAGES": config.num_stages,
            "PREFETCH": config.prefetch and launch.FOR_NVIDIA and not launch.INTERPRETED,
        }
        super().__init__(_expand_kernel, config, constants, overlap=overlap)

    def start(
        self,
        on: int | None,
        h: Sliced,
        lora_b: Sliced,
        base_output: Sliced,
        segments: Segments,
        positions: int,
        pointers: tuple[int | None, ...],
    ) -> None:
        """Start the kernel; `positions` is 0 unless staged, `pointers` are in the kernel's order."""
        group = self._group
        programs, row_tiles = tiles.deal(segments, group, self._block_m)
        self.begin(
            on,
            programs * row_tiles * self._column_programs,
            (h, lora_b, base_output),
            segments,
            pointers,
            (*self._sizes, positions, segments.num_segments, group, row_tiles, *self._last_sizes),
        )

    def tensors(self, operands: tuple[Any, ...]) -> tuple[torch.Tensor | None, ...]:
        """What pointers point to."""
        h, lora_b, base_output = operands
        return *slices.tensors(h), *slices.tensors(lora_b), *slices.tensors(base_output)


class _Plan(NamedTuple):
    """Of a `lora_expand`, all that its key decides."""

    max_rank: int
    offsets: tuple[int, ...]  # as they were given: the same object need not be looked at again
    ordinal: int  # of the device
    expand: ExpandLaunch


def _plan(
    h: Sliced,
    lora_b: Sliced,
    segments: Segments,
    slice_offsets: tuple[int, ...],
    base_output: Sliced,
    padded: bool,
    config: ExpandConfig | None,
    batch_invariant: bool,
) -> _Plan:
    """Check the arguments, and decide how to launch."""
    arguments.check_flags(padded=padded, batch_invariant=batch_invariant)
    offsets, widths = arguments.check_slice_offsets(slice_offsets)
    num_slices = len(widths)
    arguments.check_count("h", h, num_slices, "slice_offsets")
    first = slices.first(h)
    max_rank = arguments.check_lora_b(lora_b, first, offsets, rounded=True)
    arguments.check_h("h", h, first.shape[0], max_rank, num_slices, first if slices.apart(h) else None)
    weights = slices.first(lora_b)
    arguments.check_base_output(base_output, first.shape[0], weights, offsets)
    arguments.check_segments(segments, first, weights, max_rank)
    key = dispatch.expand_key(widths, max_rank, weights.dtype, segments)
    config = dispatch.config_for(config, ExpandConfig, key, first.device, batch_invariant)
    h_apart = len(slices.parts(h)) > 1
    expand = ExpandLaunch(
        lora_b, base_output, segments.chunk_size, offsets, config, padded=padded, staged=False, h_apart=h_apart
    )
    return _Plan(max_rank, slice_offsets, first.get_device(), expand)


def lora_expand(
    h: Sliced,
    lora_b: Sliced,
    segments: Segments,
    slice_offsets: Sequence[int],
    base_output: SomeSliced,
    *,
    padded: bool = False,
    config: ExpandConfig | None = None,
    batch_invariant: bool = False,
) -> SomeSliced:
    """Add each row's adapter output in place: base_output += scaling · (h @ B[adapter].T), slice by slice.

    Products are accumulated, scaled and added to the base in float32, then rounded once.

    Args:
        h: [num_tokens, num_slices · max_rank], what `lora_shrink` returned; lora_b's dtype or float32, which is rounded
            to lora_b's before it is multiplied; contiguous; or a tuple of slices, each [num_tokens, max_rank]. Columns
            past an adapter's own rank are never used.
        lora_b: [num_loras, output_dim, max_rank], fp16, bf16 or fp32, contiguous; or a tuple of slices, each
            [num_loras, its width, max_rank]. Columns past an adapter's own rank are never used.
        segments: which rows belong to which adapter.
        slice_offsets: where the slices begin and end along output_dim, on the host, e.g. (0, q, q + k, q + k + v).
        base_output: [num_tokens, at least output_dim], lora_b's dtype; rows may be strided. Or a tuple of slices, each
            [num_tokens, at least its width], that do not overlap. Changed in place; rows without an adapter keep their
            bits.
        padded: slice i of h begins at column i · max_rank; otherwise at i · rank (packed, sglang's layout). A slice
            that is a tensor of its own begins at its beginning.
        config: how to launch; None takes the tuned table's config, see `csgmv.explain`.
        batch_invariant: a row's bits do not depend on the batch that it is in: every batch gets the config of one of
            32 segments of 16 rows, with block_m 16, which a `config` of your own must have too.

    Returns:
        base_output.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: SGMV, Chen et al., Punica: Multi-Tenant LoRA Serving, https://arxiv.org/abs/2310.18547.
    """
    if is_dynamo_compiling():
        from csgmv import operators

        return operators.lora_expand(h, lora_b, segments, slice_offsets, base_output, padded, config, batch_invariant)
    plan = misfit = None
    offsets = slice_offsets if type(slice_offsets) is tuple else arguments.check_slice_offsets(slice_offsets)[0]
    try:
        rows = slices.first(h).shape[0]
        h_kind, h_pointers = slices.kind_of_rows(h, rows)
        b_kind, b_pointers = slices.kind_of_weights(lora_b)
        base_kind, base_pointers = slices.kind_of_rows(base_output, rows)
        batch, pointers = arguments.batch_kind(segments)
        key = (
            "expand",
            h_kind,
            b_kind,
            base_kind,
            rows > 1,
            batch,
            offsets,
            padded,
            config,
            batch_invariant,
        )
        plan = launch.plans.get(key)
    except arguments.MISFITS as error:
        misfit = error
    if plan is None or segments.least_tokens > rows or segments.largest_rank > plan.max_rank:
        plan = _plan(h, lora_b, segments, offsets, base_output, padded, config, batch_invariant)
        if misfit is not None:
            raise misfit
        launch.remember(key, plan)
    elif plan.offsets is not offsets:
        arguments.check_integers(offsets)
    if rows and segments.num_segments and offsets[-1]:
        on = launch.stream(plan.ordinal)
        plan.expand.start(
            on, h, lora_b, base_output, segments, 0, (*h_pointers, *b_pointers, *base_pointers, *pointers)
        )
    return base_output
