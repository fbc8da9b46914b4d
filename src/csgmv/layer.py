"""A layer's whole adapter output as one call: shrink, then expand, with h never leaving its natural order.

Between the two kernels h is staged by position, not by row, so that expand reads it contiguously. With split-K, what is
staged are the float32 partials: expand sums them as it loads them, which saves a launch. Rows of the stage that belong
to no segment, and columns past an adapter's rank, stay uninitialised and are never read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from csgmv import arguments, dispatch, launch
from csgmv.config import AddLoraConfig
from csgmv.expand import launch_expand
from csgmv.segments import Segments
from csgmv.shrink import launch_shrink


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

    Returns:
        base_output.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: SGMV, Chen et al., Punica: Multi-Tenant LoRA Serving, https://arxiv.org/abs/2310.18547.
    """
    offsets, widths = arguments.check_slice_offsets(slice_offsets)
    num_slices = len(widths)
    max_rank = arguments.check_lora_a(lora_a, x, num_slices)
    rank_of_b = arguments.check_lora_b(lora_b, x, offsets)
    if rank_of_b != max_rank or lora_a.shape[0] != lora_b.shape[0]:
        raise ValueError(
            f"lora_b: expected {lora_a.shape[0]} adapters of max_rank {max_rank} as lora_a has, "
            f"got shape {list(lora_b.shape)}"
        )
    arguments.check_base_output(base_output, x, offsets[-1])
    arguments.check_segments(segments, x, lora_a, max_rank)
    if segments.num_segments == 0 or x.shape[0] == 0 or offsets[-1] == 0:
        return base_output
    key = dispatch.add_lora_key(x.shape[1], widths, max_rank, x.dtype, segments)
    config = dispatch.config_for(config, AddLoraConfig, key, x.device)
    splits = config.shrink.split_k
    stage = torch.empty(
        (splits, segments.permutation.shape[0], num_slices * max_rank),
        dtype=x.dtype if splits == 1 else torch.float32,
        device=x.device,
    )
    overlap = config.overlap and not launch.INTERPRETED
    launch_shrink(x, lora_a, stage, segments, num_slices, config.shrink, padded=padded, staged=True, signal=overlap)
    launch_expand(
        stage, lora_b, base_output, segments, offsets, config.expand, padded=True, staged=True, overlap=overlap
    )
    return base_output
