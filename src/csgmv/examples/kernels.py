"""Two adapters of different ranks on a fused q, k, v projection, by the kernels, and by plain torch for comparison."""

from __future__ import annotations

import itertools

import torch

from csgmv import Segments, add_lora

RANKS, SCALINGS, MAX_RANK = [16, 64], [1.0, 0.5], 64
OFFSETS = (0, 256, 384, 512)  # where q, k and v begin and end in the projection's output
INPUT_DIM = 128
# Three sequences: how many tokens they have, and which adapter they use.
SEQ_LENS, ADAPTERS = [3, 2, 2], [0, 1, None]


def plain(
    x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, adapter: int | None, output: torch.Tensor
) -> torch.Tensor:
    """One sequence's output in float32: slice i of an adapter of rank r is rows i·r … (i+1)·r of its A."""
    exact = output.float().clone()
    if adapter is not None:
        rank = RANKS[adapter]
        for i, (begin, end) in enumerate(itertools.pairwise(OFFSETS)):
            h = x.float() @ lora_a[adapter, i * rank : (i + 1) * rank].float().T
            exact[:, begin:end] += SCALINGS[adapter] * (h @ lora_b[adapter, begin:end, :rank].float().T)
    return exact


def main() -> None:
    """Run it, and say how far the two are apart."""
    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float16)
    x = torch.randn(sum(SEQ_LENS), INPUT_DIM, device=device, dtype=dtype)
    qkv = torch.randn(sum(SEQ_LENS), OFFSETS[-1], device=device, dtype=dtype)  # what the base model's projection gave
    lora_a = torch.randn(2, 3 * MAX_RANK, INPUT_DIM, device=device, dtype=dtype) / INPUT_DIM**0.5
    lora_b = torch.randn(2, OFFSETS[-1], MAX_RANK, device=device, dtype=dtype)

    split = zip(x.split(SEQ_LENS), qkv.split(SEQ_LENS), ADAPTERS)
    wanted = torch.cat([plain(part, lora_a, lora_b, adapter, output) for part, output, adapter in split])
    before = qkv.clone()

    segments = Segments.from_sequences(SEQ_LENS, ADAPTERS, lora_ranks=RANKS, scalings=SCALINGS)
    add_lora(qkv, x, lora_a, lora_b, segments, OFFSETS)  # in place

    print(segments)
    print(f"on {torch.cuda.get_device_name() if gpu else 'the CPU, interpreted'}, {dtype}")
    print(f"rows that changed: {(qkv != before).any(1).tolist()}")
    print(f"largest difference from plain torch in float32: {(qkv.float() - wanted).abs().max():.1e}", end=" ")
    print(f"(of values up to {wanted.abs().max():.1f})")


if __name__ == "__main__":
    main()
