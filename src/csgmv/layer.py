"""A layer's whole adapter output as one call: shrink, then expand, with h never leaving its natural order.

Between the two kernels h is staged by position, not by row, so that expand reads it contiguously. With split-K, what is
staged are the float32 partials: expand sums them as it loads them, which saves a launch. Rows of the stage that belong
to no segment, and columns past an adapter's rank, stay uninitialised and are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.compiler import is_dynamo_compiling

from csgmv import arguments, dispatch, launch
from csgmv.config import AddLoraConfig
from csgmv.expand import ExpandLaunch
from csgmv.segments import Segments
from csgmv.shrink import ShrinkLaunch


class _Plan(NamedTuple):
    """Of an `add_lora`, all that its key decides."""

    max_rank: int
    offsets: tuple[int, ...]  # as they were given: the same object need not be looked at again
    splits: int
    width: int
    fresh: Callable[[int], torch.Tensor]  # memory for so many elements of the stage
    ordinal: int  # of the device
    shrink: ShrinkLaunch
    expand: ExpandLaunch


def _plan(
    base_output: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    segments: Segments,
    slice_offsets: tuple[int, ...],
    padded: bool,
    config: AddLoraConfig | None,
    batch_invariant: bool,
) -> _Plan:
    """Check the arguments, and decide how to launch."""
    arguments.check_flags(padded=padded, batch_invariant=batch_invariant)
    offsets, widths = arguments.check_slice_offsets(slice_offsets)
    num_slices = len(widths)
    max_rank = arguments.check_lora_a(lora_a, x, num_slices)
    rank_of_b = arguments.check_lora_b(lora_b, x, offsets)
    if rank_of_b != max_rank or lora_a.shape[0] != lora_b.shape[0]:
        raise ValueError(
            f"lora_b: expected {lora_a.shape[0]} adapters of max_rank {max_rank} as lora_a has, "
            f"got shape {list(lora_b.shape)}"
        )
    arguments.check_base_output(base_output, x.shape[0], lora_b, offsets[-1])
    arguments.check_segments(segments, x, lora_a, max_rank)
    key = dispatch.add_lora_key(x.shape[1], widths, max_rank, x.dtype, segments)
    config = dispatch.config_for(config, AddLoraConfig, key, x.device, batch_invariant)
    splits, overlap = config.shrink.split_k, config.overlap and not launch.INTERPRETED
    shrink = ShrinkLaunch(
        x, lora_a, segments.chunk_size, num_slices, config.shrink, padded=padded, staged=True, signal=overlap
    )
    expand = ExpandLaunch(
        lora_b,
        base_output,
        segments.chunk_size,
        offsets,
        config.expand,
        padded=True,
        staged=True,
        splits=splits,
        overlap=overlap,
    )
    fresh = launch.fresh(x.dtype if splits == 1 else torch.float32, x.device)
    return _Plan(max_rank, slice_offsets, splits, num_slices * max_rank, fresh, x.get_device(), shrink, expand)


def add_lora(
    base_output: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    segments: Segments,
    slice_offsets: Sequence[int],
    *,
    padded: bool = False,
    config: AddLoraConfig | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """Add each row's adapter output in place: base_output += scaling · (x @ A[adapter].T) @ B[adapter].T.

    Args:
        base_output: [num_tokens, at least output_dim], x's dtype; rows may be strided. Changed in place; rows without
            an adapter keep their bits.
        x: [num_tokens, input_dim], fp16, bf16 or fp32; rows may be strided.
        lora_a: [num_loras, num_slices · max_rank, input_dim], x's dtype, contiguous.
        lora_b: [num_loras, output_dim, max_rank], x's dtype, contiguous. Of A and B nothing past an adapter's own rank
            is ever used.
        segments: which rows belong to which adapter.
        slice_offsets: where the slices begin and end along output_dim, on the host, e.g. (0, q, q + k, q + k + v).
        padded: slice i of an adapter's A begins at row i · max_rank; otherwise at i · rank (packed, sglang's layout).
        config: how to launch both kernels; None takes the tuned table's config, see `csgmv.explain`.
        batch_invariant: a row's bits do not depend on the batch that it is in: every batch gets the config of one of
            32 segments of 16 rows, with block_m 16, which a `config` of your own must have too, in both kernels.

    Returns:
        base_output.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: SGMV, Chen et al., Punica: Multi-Tenant LoRA Serving, https://arxiv.org/abs/2310.18547.
    """
    if is_dynamo_compiling():
        from csgmv import operators

        return operators.add_lora(
            base_output, x, lora_a, lora_b, segments, slice_offsets, padded, config, batch_invariant
        )
    plan = misfit = None
    offsets = slice_offsets if type(slice_offsets) is tuple else arguments.check_slice_offsets(slice_offsets)[0]
    try:
        rows, input_dim = x.shape
        base_rows, columns = base_output.shape
        x_pointer, a_pointer = x.data_ptr(), lora_a.data_ptr()
        b_pointer, base_pointer = lora_b.data_ptr(), base_output.data_ptr()
        batch, pointers = arguments.batch_kind(segments)
        key = (
            "add_lora",
            launch.device_of(x),
            x.dtype,
            input_dim,
            x.stride(),
            x_pointer & 15,
            launch.device_of(lora_a),
            lora_a.dtype,
            lora_a.shape,
            lora_a.stride(),
            a_pointer & 15,
            launch.device_of(lora_b),
            lora_b.dtype,
            lora_b.shape,
            lora_b.stride(),
            b_pointer & 15,
            launch.device_of(base_output),
            base_output.dtype,
            columns,
            base_output.stride(),
            base_pointer & 15,
            rows > 1,
            base_rows - rows,
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
        plan = _plan(base_output, x, lora_a, lora_b, segments, offsets, padded, config, batch_invariant)
        if misfit is not None:
            raise misfit
        launch.remember(key, plan)
    elif plan.offsets is not offsets:
        arguments.check_integers(offsets)
    if not (rows and segments.num_segments and offsets[-1]):
        return base_output
    on, positions = launch.stream(plan.ordinal), segments.permutation.numel()
    stage = plan.fresh(plan.splits * positions * plan.width)
    stage_pointer = stage.data_ptr()
    on = None if stage_pointer & 15 else on  # the plan's binaries take fresh memory to be aligned
    permutation, indptr, indices, ranks, _ = pointers
    plan.shrink.start(
        on,
        x,
        lora_a,
        stage,
        segments,
        positions,
        (x_pointer, a_pointer, stage_pointer, permutation, indptr, indices, ranks),
    )
    plan.expand.start(
        on, stage, lora_b, base_output, segments, positions, (stage_pointer, b_pointer, base_pointer, *pointers)
    )
    return base_output
