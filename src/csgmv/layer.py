"""A layer's whole adapter output as one call: shrink writes h by position, and expand reads it by position.

So h is never scattered to its rows between the two kernels. With split-K, what is staged are the float32 partials:
expand sums them as it loads them, which saves a launch. Rows of the stage that belong to no segment, and columns past
an adapter's rank, stay uninitialised and are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.compiler import is_dynamo_compiling

from csgmv import arguments, dispatch, launch, slices
from csgmv.config import AddLoraConfig
from csgmv.expand import ExpandLaunch
from csgmv.segments import Segments
from csgmv.shrink import ShrinkLaunch
from csgmv.slices import Sliced, SomeSliced


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
    base_output: Sliced,
    x: torch.Tensor,
    lora_a: Sliced,
    lora_b: Sliced,
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
    a, b = slices.first(lora_a), slices.first(lora_b)
    if rank_of_b != max_rank or a.shape[0] != b.shape[0]:
        raise ValueError(
            f"lora_b: expected {a.shape[0]} adapters of max_rank {max_rank} as lora_a has, got shape {list(b.shape)}"
        )
    arguments.check_base_output(base_output, x.shape[0], b, offsets)
    arguments.check_segments(segments, x, a, max_rank)
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
    base_output: SomeSliced,
    x: torch.Tensor,
    lora_a: Sliced,
    lora_b: Sliced,
    segments: Segments,
    slice_offsets: Sequence[int],
    *,
    padded: bool = False,
    config: AddLoraConfig | None = None,
    batch_invariant: bool = False,
) -> SomeSliced:
    """Add each row's adapter output in place: base_output += scaling · (x @ A[adapter].T) @ B[adapter].T.

    Args:
        base_output: [num_tokens, at least output_dim], x's dtype; rows may be strided. Or a tuple of slices, each
            [num_tokens, at least its width], that do not overlap. Changed in place; rows without an adapter keep their
            bits.
        x: [num_tokens, input_dim], fp16, bf16 or fp32; rows may be strided.
        lora_a: [num_loras, num_slices · max_rank, input_dim], x's dtype, contiguous; or a tuple of slices, each
            [num_loras, max_rank, input_dim].
        lora_b: [num_loras, output_dim, max_rank], x's dtype, contiguous; or a tuple of slices, each [num_loras, its
            width, max_rank]. Of A and B nothing past an adapter's own rank is ever used.
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
        x_pointer = x.data_ptr()
        a_kind, a_pointers = slices.kind_of_weights(lora_a)
        b_kind, b_pointers = slices.kind_of_weights(lora_b)
        base_kind, base_pointers = slices.kind_of_rows(base_output, rows)
        batch, pointers = arguments.batch_kind(segments)
        key = (
            "add_lora",
            launch.device_of(x),
            x.dtype,
            input_dim,
            x.stride(),
            x_pointer & 15,
            a_kind,
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
    staged, (permutation, indptr, indices, ranks, _) = slices.alone(stage_pointer), pointers
    plan.shrink.start(
        on,
        x,
        lora_a,
        stage,
        segments,
        positions,
        (x_pointer, *a_pointers, *staged, permutation, indptr, indices, ranks),
    )
    plan.expand.start(
        on, stage, lora_b, base_output, segments, positions, (*staged, *b_pointers, *base_pointers, *pointers)
    )
    return base_output
