"""Shrink: h = x @ A[adapter].T for every row of every segment.

A program computes one tile of rows of one segment, against one or several tiles of columns, over one part of
input_dim. Where a tile has few rows, its warps can share a step's columns of x among them (sliced K): a warp's products
are then so much shorter a chain, of which each waits for the one before. Out-of-range rows and columns are not masked
but repeat the last valid one, and are dropped when the result is stored: the loads of the main loop carry no masks, so
they compile to 16-byte asynchronous copies. (Masking the rows, although it saves decode 15 of 16 loads of x, gained
nothing there, and cost prefill 2 to 4 %: they come out of L2.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import torch
import triton
import triton.language as tl
from torch.compiler import is_dynamo_compiling

from csgmv import arguments, dispatch, footprint, launch, rules, slices, tiles
from csgmv.config import ShrinkConfig
from csgmv.segments import Segments
from csgmv.slices import Sliced, SomeSliced


@triton.jit
def _shrink_rows(
    # pointers
    x,
    lora_a,
    lora_a1,
    lora_a2,
    lora_a3,
    h,
    h1,
    h2,
    h3,
    permutation,
    lora_ranks,
    # which rows of which adapter, which columns, which part of input_dim
    adapter,
    start,
    end,
    first_column,
    split,
    # sizes
    input_dim,
    x_stride,
    a_stride,
    width,
    positions,
    split_k,
    # constants
    A_APART_BY: tl.constexpr,
    H_APART_BY: tl.constexpr,
    MAX_RANK: tl.constexpr,
    PADDED: tl.constexpr,
    STAGED: tl.constexpr,
    EVEN_K: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LAST_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS_K: tl.constexpr,
):
    """Positions start … end (at most BLOCK_M of them, at least one), all of one adapter."""
    position = start + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    # Rows and rank are fetched together: a branch on the rank before would make the rows wait for it.
    row = tl.load(permutation + tl.minimum(position, end - 1)).to(tl.int64)
    rank = tl.minimum(tl.load(lora_ranks + adapter), MAX_RANK)
    columns = width if PADDED else width // MAX_RANK * rank
    if (rank > 0) & (first_column < columns):
        total_steps = tl.cdiv(input_dim, BLOCK_K)
        first_step = split * total_steps // split_k
        last_step = (split + 1) * total_steps // split_k
        if not EVEN_K:
            last_step = tl.minimum(last_step, total_steps - 1)

        if PARTS_K > 1:  # a part of every step to each warp
            STEP: tl.constexpr = BLOCK_K // PARTS_K
            k = first_step * BLOCK_K + (tl.arange(0, PARTS_K) * STEP)[:, None] + tl.arange(0, STEP)[None, :]
            x_k = k[:, None, :]  # [PARTS_K, 1, STEP]
            a_k = k[:, :, None]
            zeros = tl.zeros((PARTS_K, BLOCK_M, 1), tl.float32)
        else:
            k = first_step * BLOCK_K + tl.arange(0, BLOCK_K)
            x_k = k[None, :]
            a_k = k[:, None]
            zeros = tl.zeros((BLOCK_M, 1), tl.float32)
        x_pointers = x + row[:, None] * x_stride + x_k  # [BLOCK_M, BLOCK_K], or [PARTS_K, BLOCK_M, STEP]
        a_pointers = ()
        accumulators = ()
        for tile in tl.static_range(COLUMN_TILES):
            column = first_column + tile * BLOCK_N + tl.arange(0, BLOCK_N if tile < COLUMN_TILES - 1 else LAST_N)
            a_slice = lora_a
            if A_APART_BY:
                column = tl.minimum(column, columns - 1)
                slice_width = MAX_RANK if PADDED else rank
                slice_id = (column // slice_width)[None, :]
                a_slice = slices.of_columns(slice_id, lora_a, lora_a1, lora_a2, lora_a3, A_APART_BY)  # [1, columns]
                a_row = tl.minimum(column % slice_width, rank - 1)
            elif PADDED:
                column = tl.minimum(column, width - 1)
                a_row = column - column % MAX_RANK + tl.minimum(column % MAX_RANK, rank - 1)
            else:
                a_row = tl.minimum(column, columns - 1)
            offset = a_row.to(tl.int64)[None, :] * input_dim + a_k
            a_pointers = a_pointers + (a_slice + adapter.to(tl.int64) * a_stride + offset,)  # [BLOCK_K, columns]
            accumulators = accumulators + (zeros + tl.zeros((1, column.shape[0]), tl.float32),)

        for step in tl.range(0, last_step - first_step):
            x_tile = tl.load(x_pointers + step * BLOCK_K)
            sums = ()
            for tile in tl.static_range(COLUMN_TILES):
                a_tile = tl.load(a_pointers[tile] + step * BLOCK_K)
                sums = sums + (tl.dot(x_tile, a_tile, accumulators[tile], input_precision="ieee"),)
            accumulators = sums
        if not EVEN_K:  # the last, partial step belongs to the last split; for the others it is masked away whole
            ahead = (total_steps - 1 - first_step) * BLOCK_K
            left = tl.where(split == split_k - 1, input_dim, 0) - ahead
            x_tile = tl.load(x_pointers + ahead, mask=x_k < left, other=0.0)
            sums = ()
            for tile in tl.static_range(COLUMN_TILES):
                a_tile = tl.load(a_pointers[tile] + ahead, mask=a_k < left, other=0.0)
                sums = sums + (tl.dot(x_tile, a_tile, accumulators[tile], input_precision="ieee"),)
            accumulators = sums

        if STAGED:
            h_row = h + (split.to(tl.int64) * positions + position.to(tl.int64)) * width
        else:
            h_row = h + row * width
        live = (position < end)[:, None]
        for tile in tl.static_range(COLUMN_TILES):
            first = first_column + tile * BLOCK_N
            column = first + tl.arange(0, BLOCK_N if tile < COLUMN_TILES - 1 else LAST_N)
            total = tl.sum(accumulators[tile], 0) if PARTS_K > 1 else accumulators[tile]
            value = total.to(h.dtype.element_ty)
            if H_APART_BY:
                if (rank == MAX_RANK) & (first + column.shape[0] <= width):
                    h_slice = slices.of_columns((column // MAX_RANK)[None, :], h, h1, h2, h3, H_APART_BY)
                    tl.store(h_slice + row[:, None] * MAX_RANK + (column % MAX_RANK)[None, :], value, mask=live)
                else:
                    slice_width = MAX_RANK if PADDED else rank
                    own = column % slice_width
                    h_slice = slices.of_columns((column // slice_width)[None, :], h, h1, h2, h3, H_APART_BY)
                    inside = (own < rank) & (column < columns)
                    tl.store(h_slice + row[:, None] * MAX_RANK + own[None, :], value, mask=live & inside[None, :])
            elif (rank == MAX_RANK) & (first + column.shape[0] <= width):
                tl.store(h_row[:, None] + column[None, :], value, mask=live)
            else:
                if PADDED:
                    inside = (column % MAX_RANK < rank) & (column < width)
                    target = column
                else:
                    inside = column < columns
                    target = (column // rank) * MAX_RANK + column % rank if STAGED else column
                tl.store(h_row[:, None] + target[None, :], value, mask=live & inside[None, :])


@triton.jit(
    do_not_specialize=["num_slices", "positions", "num_segments", "group", "row_tiles", "column_programs", "split_k"]
)
def _shrink_kernel(
    # pointers
    x,
    lora_a,  # of all slices, or of the first and then
    lora_a1,  # of the others
    lora_a2,
    lora_a3,
    h,  # likewise
    h1,
    h2,
    h3,
    permutation,
    seg_indptr,
    weight_indices,
    lora_ranks,
    # sizes
    input_dim,
    x_stride,
    num_slices,
    positions,
    num_segments,
    group,  # segments of a group, see tiles.py
    row_tiles,
    column_programs,
    split_k,
    # constants
    A_APART_BY: tl.constexpr,  # bytes that slices of lora_a begin at multiples of, where each is a tensor; else 0
    H_APART_BY: tl.constexpr,  # the same of h
    MAX_RANK: tl.constexpr,
    PADDED: tl.constexpr,  # slice i of A begins at row i * MAX_RANK, not i * rank
    STAGED: tl.constexpr,  # h for the expand kernel: rows by position, slice i at column i * MAX_RANK
    SIGNAL: tl.constexpr,  # let the dependent kernel start as soon as all programs of this one have
    EVEN_K: tl.constexpr,  # input_dim is a multiple of BLOCK_K
    BY_8: tl.constexpr,  # sizes are multiples of 8, not all of 16, which the compiler would see for itself
    GROUPED: tl.constexpr,  # group may be more than 1
    COLUMN_TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LAST_N: tl.constexpr,  # columns of a program's last tile
    BLOCK_K: tl.constexpr,
    PARTS_K: tl.constexpr,  # parts of BLOCK_K, one to each warp, or 1
):
    if SIGNAL:
        tl.extra.cuda.gdc_launch_dependents()
    if BY_8:  # tl.multiple_of says nothing of a kernel's own arguments
        input_dim = input_dim // 8 * 8
        x_stride = x_stride // 8 * 8
    width = num_slices * MAX_RANK  # columns of h
    a_stride = (tl.cast(MAX_RANK, tl.int32) if A_APART_BY else width).to(tl.int64) * input_dim
    pid = tl.program_id(0)
    first_column = (pid % column_programs) * (BLOCK_N * COLUMN_TILES)
    pid = pid // column_programs
    split = pid % split_k
    pid = pid // split_k
    first_row = (pid % row_tiles) * BLOCK_M
    adapter, start, end = tiles.tile(
        weight_indices, seg_indptr, pid // row_tiles, first_row, num_segments, group, GROUPED
    )
    if start < end:
        _shrink_rows(
            x, lora_a, lora_a1, lora_a2, lora_a3, h, h1, h2, h3, permutation, lora_ranks,
            adapter, start, end, first_column, split, input_dim, x_stride, a_stride, width, positions, split_k,
            A_APART_BY, H_APART_BY, MAX_RANK, PADDED, STAGED, EVEN_K,
            COLUMN_TILES, BLOCK_M, BLOCK_N, LAST_N, BLOCK_K, PARTS_K,
        )  # fmt: skip


@triton.jit(do_not_specialize=["positions", "row_tiles"])
def _sum_partials_kernel(
    # pointers
    partials,
    h,  # of all slices, or of the first and then
    h1,  # of the others
    h2,
    h3,
    permutation,
    seg_indptr,
    weight_indices,
    lora_ranks,
    # sizes
    positions,
    row_tiles,
    # constants
    H_APART: tl.constexpr,  # each slice of h is a tensor of its own
    NUM_SLICES: tl.constexpr,
    MAX_RANK: tl.constexpr,
    PADDED: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """h[row] = the sum of its float32 partials, in their order, rounded once; one program a slice of a tile of rows."""
    pid = tl.program_id(0)
    slice_id = pid % NUM_SLICES
    pid = pid // NUM_SLICES
    segment = pid // row_tiles
    adapter = tl.load(weight_indices + segment)
    start = tl.load(seg_indptr + segment) + (pid % row_tiles) * BLOCK_M
    end = tl.load(seg_indptr + segment + 1)
    if start >= end:
        return
    rank = tl.minimum(tl.load(lora_ranks + adapter), MAX_RANK)
    WIDTH: tl.constexpr = NUM_SLICES * MAX_RANK
    position = start + tl.arange(0, BLOCK_M)
    row = tl.load(permutation + tl.minimum(position, end - 1)).to(tl.int64)
    column = tl.arange(0, BLOCK_R)
    mask = (position < end)[:, None] & (column < rank)[None, :]
    source = partials + position.to(tl.int64)[:, None] * WIDTH + (slice_id * MAX_RANK + column)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for _ in range(SPLIT_K):
        total += tl.load(source, mask=mask, other=0.0)
        source += positions.to(tl.int64) * WIDTH
    if H_APART:
        target = slices.of_slice(slice_id, h, h1, h2, h3) + row[:, None] * MAX_RANK + column[None, :]
    else:
        target = h + row[:, None] * WIDTH + (slice_id * (MAX_RANK if PADDED else rank) + column)[None, :]
    tl.store(target, total.to(h.dtype.element_ty), mask=mask)


class ShrinkLaunch(launch.Launch):
    """The shrink kernel on operands of one kind: its constants, and the grid and sizes of each launch.

    `h` is [num_tokens, width], or staged [split_k, positions, width].
    """

    __slots__ = ("_block_m", "_column_programs", "_group", "_sizes", "_split_k")

    def __init__(
        self,
        x: torch.Tensor,
        lora_a: Sliced,
        chunk_size: int,
        num_slices: int,
        config: ShrinkConfig,
        *,
        padded: bool,
        staged: bool,
        h_apart_by: int = 0,
        signal: bool = False,
    ) -> None:
        a_parts = slices.parts(lora_a)
        width, input_dim = len(a_parts) * a_parts[0].shape[1], a_parts[0].shape[2]
        self._block_m, self._group = config.block_m, footprint.group_size(config.block_m, chunk_size)
        self._column_programs = -(-width // (config.block_n * config.column_tiles))
        self._sizes, self._split_k = (input_dim, x.stride(0), num_slices), config.split_k
        constants = {
            "A_APART_BY": slices.apart_by(lora_a),
            "H_APART_BY": h_apart_by,
            "MAX_RANK": width // num_slices,
            "PADDED": padded,
            "STAGED": staged,
            "SIGNAL": signal,
            "EVEN_K": input_dim % config.block_k == 0,
            "BY_8": launch.by_8(input_dim, x.stride(0)),
            "GROUPED": self._group > 1,
            "COLUMN_TILES": config.column_tiles,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "LAST_N": footprint.last_tile(config.block_n, config.column_tiles, width),
            "BLOCK_K": config.block_k,
            "PARTS_K": config.num_warps if config.sliced_k else 1,
        }
        super().__init__(_shrink_kernel, config, constants)

    def start(
        self,
        on: int | None,
        x: torch.Tensor,
        lora_a: Sliced,
        h: Sliced,
        segments: Segments,
        positions: int,
        pointers: tuple[int | None, ...],
    ) -> None:
        """Start the kernel; `positions` is 0 unless staged, `pointers` are in the kernel's order."""
        group, column_programs, split_k = self._group, self._column_programs, self._split_k
        programs, row_tiles = tiles.deal(segments, group, self._block_m)
        self.begin(
            on,
            programs * row_tiles * split_k * column_programs,
            (x, lora_a, h),
            segments,
            pointers,
            (*self._sizes, positions, segments.num_segments, group, row_tiles, column_programs, split_k),
        )

    def tensors(self, operands: tuple[Any, ...]) -> tuple[torch.Tensor | None, ...]:
        """What pointers point to."""
        x, lora_a, h = operands
        return x, *slices.tensors(lora_a), *slices.tensors(h)


class _SumLaunch(launch.Launch):
    """The kernel that sums the partials of split-K, likewise."""

    __slots__ = ("_num_slices",)

    def __init__(self, num_slices: int, max_rank: int, split_k: int, *, padded: bool, h_apart: bool) -> None:
        self._num_slices = num_slices
        constants = {
            "H_APART": h_apart,
            "NUM_SLICES": num_slices,
            "MAX_RANK": max_rank,
            "PADDED": padded,
            "SPLIT_K": split_k,
            "BLOCK_M": 16,
            "BLOCK_R": rules.power_of_two(max_rank),
        }
        super().__init__(_sum_partials_kernel, None, constants)

    def start(
        self,
        on: int | None,
        partials: torch.Tensor,
        h: Sliced,
        segments: Segments,
        positions: int,
        pointers: tuple[int | None, ...],
    ) -> None:
        """Start the kernel; `pointers` are in its order."""
        num_segments, row_tiles = tiles.deal(segments, 1, 16)
        programs = num_segments * row_tiles * self._num_slices
        self.begin(on, programs, (partials, h), segments, pointers, (positions, row_tiles))

    def tensors(self, operands: tuple[Any, ...]) -> tuple[torch.Tensor | None, ...]:
        """What pointers point to."""
        partials, h = operands
        return partials, *slices.tensors(h)


class _Plan(NamedTuple):
    """Of a `lora_shrink`, all that its key decides."""

    max_rank: int
    width: int
    dtype: torch.dtype
    device: torch.device
    ordinal: int  # of the device
    fresh: Callable[[int], torch.Tensor]  # memory for so many elements of the partials
    split_k: int
    shrink: ShrinkLaunch
    sum: _SumLaunch | None


def _plan(
    x: torch.Tensor,
    lora_a: Sliced,
    segments: Segments,
    num_slices: int,
    out: Sliced | None,
    padded: bool,
    config: ShrinkConfig | None,
    batch_invariant: bool,
) -> _Plan:
    """Check the arguments, and decide how to launch."""
    arguments.check_flags(padded=padded, batch_invariant=batch_invariant)
    max_rank = arguments.check_lora_a(lora_a, x, num_slices)
    arguments.check_segments(segments, x, slices.first(lora_a), max_rank)
    width = num_slices * max_rank
    if out is not None:
        arguments.check_count("out", out, num_slices, "num_slices")
        arguments.check_h("out", out, x.shape[0], max_rank, num_slices, x, torch.float32)
    key = dispatch.shrink_key(x.shape[1], max_rank, num_slices, x.dtype, segments)
    config = dispatch.config_for(config, ShrinkConfig, key, x.device, batch_invariant)
    chunk_size, split_k = segments.chunk_size, config.split_k
    staged, apart_by = split_k > 1, 0 if out is None else slices.apart_by(out)
    shrink = ShrinkLaunch(
        x, lora_a, chunk_size, num_slices, config, padded=padded, staged=staged, h_apart_by=0 if staged else apart_by
    )
    total = _SumLaunch(num_slices, max_rank, split_k, padded=padded, h_apart=apart_by > 0) if staged else None
    fresh = launch.fresh(torch.float32, x.device)
    return _Plan(max_rank, width, x.dtype, x.device, x.get_device(), fresh, split_k, shrink, total)


@overload
def lora_shrink(
    x: torch.Tensor,
    lora_a: Sliced,
    segments: Segments,
    num_slices: int = 1,
    *,
    out: None = None,
    padded: bool = False,
    config: ShrinkConfig | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor: ...


@overload
def lora_shrink(
    x: torch.Tensor,
    lora_a: Sliced,
    segments: Segments,
    num_slices: int = 1,
    *,
    out: SomeSliced,
    padded: bool = False,
    config: ShrinkConfig | None = None,
    batch_invariant: bool = False,
) -> SomeSliced: ...


def lora_shrink(
    x: torch.Tensor,
    lora_a: Sliced,
    segments: Segments,
    num_slices: int = 1,
    *,
    out: Sliced | None = None,
    padded: bool = False,
    config: ShrinkConfig | None = None,
    batch_invariant: bool = False,
) -> Sliced:
    """Multiply each row of x with the A matrices of its adapter: h = x @ A[adapter].T, float32 accumulation.

    Args:
        x: [num_tokens, input_dim], fp16, bf16 or fp32; rows may be strided.
        lora_a: [num_loras, num_slices · max_rank, input_dim], x's dtype, contiguous; or a tuple of slices, each
            [num_loras, max_rank, input_dim]. Rows past an adapter's own rank are never used.
        segments: which rows belong to which adapter.
        num_slices: projections that share x (3 for q, k, v; 2 for gate, up), at most 4.
        out: [num_tokens, num_slices · max_rank], contiguous, x's dtype or float32 (then nothing is rounded); or a tuple
            of slices, each [num_tokens, max_rank]; allocated in x's dtype if None.
        padded: slice i of an adapter's A begins at row i · max_rank; otherwise at i · rank (packed, sglang's layout).
            h's columns are laid out likewise. A slice that is a tensor of its own begins at its beginning.
        config: how to launch; None takes the tuned table's config, see `csgmv.explain`.
        batch_invariant: a row's bits do not depend on the batch that it is in: every batch gets the config of one of
            32 segments of 16 rows, with block_m 16, which a `config` of your own must have too.

    Returns:
        h, [num_tokens, num_slices · max_rank] in x's dtype, or out. Rows without an adapter and columns past an
        adapter's rank are left as they were (uninitialised where out is None).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: SGMV, Chen et al., Punica: Multi-Tenant LoRA Serving, https://arxiv.org/abs/2310.18547.
    """
    if is_dynamo_compiling():
        from csgmv import operators

        return operators.lora_shrink(x, lora_a, segments, num_slices, out, padded, config, batch_invariant)
    plan = misfit = None
    try:
        rows, input_dim = x.shape
        x_pointer = x.data_ptr()
        a_kind, a_pointers = slices.kind_of_weights(lora_a)
        batch, (permutation, indptr, indices, ranks, _) = arguments.batch_kind(segments)
        into: tuple[Any, ...] | None = None
        if out is not None:
            h_kind, h_pointers = slices.kind_of_rows(out, rows)
            into = rows > 1, h_kind
        key = (
            "shrink",
            launch.device_of(x),
            x.dtype,
            input_dim,
            x.stride(),
            x_pointer & 15,
            a_kind,
            batch,
            num_slices,
            into,
            padded,
            config,
            batch_invariant,
        )
        plan = launch.plans.get(key)
    except arguments.MISFITS as error:
        misfit = error
    if plan is None or segments.least_tokens > rows or segments.largest_rank > plan.max_rank:
        plan = _plan(x, lora_a, segments, num_slices, out, padded, config, batch_invariant)
        if misfit is not None:
            raise misfit
        launch.remember(key, plan)
    on = launch.stream(plan.ordinal)
    if out is None:
        width = plan.width
        # As torch.empty does it, but quicker.
        out = torch.empty_strided((rows, width), (width, 1), dtype=plan.dtype, device=plan.device)
        pointer = out.data_ptr()
        h_pointers = slices.alone(pointer)
        on = None if pointer & 15 else on  # the plan's binaries take fresh memory to be aligned
    if not (rows and segments.num_segments):
        return out
    if plan.sum is None:
        pointers = x_pointer, *a_pointers, *h_pointers, permutation, indptr, indices, ranks
        plan.shrink.start(on, x, lora_a, out, segments, 0, pointers)
        return out
    positions = segments.permutation.numel()
    partials = plan.fresh(plan.split_k * positions * plan.width)
    pointer = partials.data_ptr()
    on = None if pointer & 15 else on
    plan.shrink.start(
        on,
        x,
        lora_a,
        partials,
        segments,
        positions,
        (x_pointer, *a_pointers, *slices.alone(pointer), permutation, indptr, indices, ranks),
    )
    pointers = pointer, *h_pointers, permutation, indptr, indices, ranks
    plan.sum.start(on, partials, out, segments, positions, pointers)
    return out
