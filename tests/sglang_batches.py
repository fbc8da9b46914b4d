"""Batches as sglang's csgmv backend hands them to its functions, and a layer's tensors."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from csgmv.segments import Segments

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RANKS, SCALINGS = (5, 0, 16, 3), (0.5, 2.0, -1.25, 3.0)
IDS = (2, -1, 0, 0, 3, 2, 1, 2, -1, 0, 3)
OFFSETS = (0, 21, 30, 34)


def batch_info(ids=IDS, *, static=False):
    """The attributes of sglang's LoRABatchInfo, which is what its csgmv backend would hand over."""
    if static:
        batch = Segments.allocate(40, len(RANKS), chunk_size=16, device=DEVICE)
        batch.update_from_tokens(ids, RANKS, SCALINGS)
    else:
        batch = Segments.from_tokens(ids, RANKS, SCALINGS, chunk_size=16, device=DEVICE)
    used = int((batch.seg_indptr.diff() > 0).sum())
    return SimpleNamespace(
        use_cuda_graph=static, bs=len(ids), num_segments=used, seg_indptr=batch.seg_indptr, seg_lens=None,
        weight_indices=batch.weight_indices, lora_ranks=batch.lora_ranks, scalings=batch.scalings,
        max_len=16, permutation=batch.permutation,
    )  # fmt: skip


def tensors(num_slices=3, max_rank=16, input_dim=72):
    generator = torch.Generator().manual_seed(3)
    shapes = (
        (len(IDS), input_dim),
        (len(RANKS), num_slices * max_rank, input_dim),
        (len(RANKS), OFFSETS[-1], max_rank),
    )
    x, lora_a, lora_b = (torch.randn(*shape, generator=generator).half().to(DEVICE) / 4 for shape in shapes)
    base = torch.randn(len(IDS), OFFSETS[-1], generator=generator).half().to(DEVICE)
    return x, lora_a, lora_b, base
