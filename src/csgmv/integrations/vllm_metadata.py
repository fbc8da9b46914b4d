"""vLLM's LoRA metadata as csgmv's Segments: one small kernel cuts its groups of rows, on the stream, in every call.

vLLM refills the metadata's static tensors before a forward pass, and captures its operators into many graphs. What an
operator computes for itself, in its own place on the stream, is right in each of them; nothing is kept between calls.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from csgmv import arguments, batch_buffer, chunk_sizes, launch, rules
from csgmv.grouping import segment_capacity
from csgmv.segments import Segments


@triton.jit(do_not_specialize=["groups", "num_segments", "num_loras", "rank", "chunk_size"])
def _cut_kernel(
    # pointers, to what is read and to what is written
    num_tokens_per_lora,
    lora_token_start_loc,
    lora_ids,
    seg_indptr,
    weight_indices,
    lora_ranks,
    scalings,
    # sizes
    groups,
    num_segments,
    num_loras,
    rank,
    chunk_size,
    # constants
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Segments of at most chunk_size rows; those past the last one are empty. One program writes BLOCK of each."""
    group = tl.arange(0, GROUPS)
    slot = tl.load(lora_ids + group, mask=group < groups, other=-1)
    used = slot >= 0  # -1: rows without an adapter, and what fills lora_ids up
    rows = tl.load(num_tokens_per_lora + group, mask=used, other=0)
    start = tl.load(lora_token_start_loc + group, mask=used, other=0)
    after = tl.cumsum(tl.cdiv(rows, chunk_size))  # [GROUPS], the segment after each group's last one
    first = after - tl.cdiv(rows, chunk_size)

    segment = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = (segment[:, None] >= first[None, :]) & (segment[:, None] < after[None, :])  # [BLOCK, GROUPS], at most one
    position = start[None, :] + (segment[:, None] - first[None, :]) * chunk_size
    position = tl.sum(tl.where(mine, position, 0), 1)
    there = segment < tl.sum(tl.cdiv(rows, chunk_size))
    end = tl.max(start + rows)
    tl.store(seg_indptr + segment, tl.where(there, position, end), mask=segment <= num_segments)
    index = tl.sum(tl.where(mine, slot[None, :], 0), 1)
    tl.store(weight_indices + segment, tl.where(there, index, num_loras - 1), mask=segment < num_segments)
    tl.store(lora_ranks + segment, tl.zeros((BLOCK,), tl.int32) + rank, mask=segment < num_loras)
    tl.store(scalings + segment, tl.full((BLOCK,), 1.0, tl.float32), mask=segment < num_loras)


class Metadata(NamedTuple):
    """Of what vLLM's LoRAKernelMeta hands to its operators, the tensors on the device, all int32.

    Rows are sorted by adapter slot, those without one (slot -1) first. Group i is num_tokens_per_lora[i] rows of slot
    lora_ids[i], beginning at position lora_token_start_loc[i]; groups past the last one have slot -1.

    Attributes:
        token_lora_mapping: [num_tokens], slot of each row.
        token_indices_sorted_by_lora_ids: [num_tokens], position → row.
        num_tokens_per_lora: [max_loras + 1].
        lora_token_start_loc: [max_loras + 2].
        lora_ids: [max_loras + 1].
    """

    token_lora_mapping: torch.Tensor
    token_indices_sorted_by_lora_ids: torch.Tensor
    num_tokens_per_lora: torch.Tensor
    lora_token_start_loc: torch.Tensor
    lora_ids: torch.Tensor

    def segments(self, tokens: int, groups: int, num_loras: int, rank: int) -> Segments:
        """The batch as Segments, whose contents will be there when the stream comes to what is launched next.

        Args:
            tokens: rows of the batch.
            groups: how many groups to look at, from the first: no later one has rows, in any replay of a graph.
            num_loras: adapter slots that the weights have.
            rank: of every slot; all scalings are 1.0, since vLLM has them in B.

        Raises:
            TypeError, ValueError: a tensor has another dtype, shape or device.
        """
        mapping, indices, *groups_of_rows = self
        plan = misfit = None
        try:
            kind = [(each.dtype, each.stride(), launch.device_of(each)) for each in self]
            key = "vllm", *kind, *((each.shape, each.data_ptr() & 15) for each in groups_of_rows)
            plan = launch.plans.get(key)
        except arguments.MISFITS as error:
            misfit = error
        if plan is None:
            plan = self._plan()
            if misfit is not None:
                raise misfit
            launch.remember(key, plan)
        for name, tensor in (("token_lora_mapping", mapping), ("token_indices_sorted_by_lora_ids", indices)):
            if tensor.shape[0] != tokens:
                raise ValueError(f"{name}: expected {tokens} rows as inputs has, got {tensor.shape[0]}")
        active = min(groups, num_loras)
        chunk_size = chunk_sizes.choose(tokens, active, plan.device)
        num_segments = segment_capacity(tokens, active, chunk_size)
        count = batch_buffer.length(num_loras, num_segments, 0)
        buffer = torch.empty(count, dtype=torch.int32, device=plan.device)
        parts = indices, *batch_buffer.parts(buffer, num_loras, num_segments)[1:]
        made = Segments(*parts, chunk_size, num_segments, tokens, active_adapters=active)
        if num_segments:
            operands = *groups_of_rows, *parts[1:]
            on = None if buffer.data_ptr() & 15 else launch.stream(plan.ordinal)
            plan.cut.begin(
                on,
                -(-max(num_segments + 1, num_loras) // plan.block),
                operands,
                made,
                tuple(tensor.data_ptr() for tensor in operands),
                (min(groups, self.lora_ids.shape[0]), num_segments, num_loras, rank, chunk_size),
            )
        return made

    def _plan(self) -> _Plan:
        """Check the tensors, and decide how to launch."""
        for name, tensor in self._asdict().items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
            if tensor.dtype != torch.int32:
                raise TypeError(f"{name}: expected torch.int32, got {tensor.dtype}")
            if tensor.dim() != 1 or not tensor.is_contiguous() or tensor.device != self[0].device:
                raise ValueError(
                    f"{name}: expected one contiguous dimension on {self[0].device}, "
                    f"got shape {list(tensor.shape)}, strides {list(tensor.stride())}, on {tensor.device}"
                )
        groups = self.lora_ids.shape[0]
        for name, length in (("num_tokens_per_lora", groups), ("lora_token_start_loc", groups + 1)):
            if getattr(self, name).shape[0] != length:
                raise ValueError(
                    f"{name}: expected {length} numbers where lora_ids has {groups}, got {getattr(self, name).shape[0]}"
                )
        width = rules.power_of_two(groups)
        block = max(16, min(128, 4096 // width))
        cut = launch.Launch(_cut_kernel, None, {"GROUPS": width, "BLOCK": block})
        return _Plan(cut, block, self.lora_ids.device, self.lora_ids.get_device())


class _Plan(NamedTuple):
    """How to cut metadata of one kind."""

    cut: launch.Launch
    block: int
    device: torch.device
    ordinal: int  # of the device
