"""Tensors cut from an arena are apart, aligned and random, however often it is cut."""

from __future__ import annotations

import itertools

import torch

from csgmv.tuning.arena import Arena

CPU = torch.device("cpu")
SHAPES = {"x": (3, 37), "h": (0, 0), "lora_a": (2, 5, 11)}


def test_tensors_of_a_cut_do_not_overlap() -> None:
    """Copies neither; each begins at a multiple of 512 bytes from the first, and is contiguous."""
    copies = Arena(CPU, 0).cut(torch.float16, 3, SHAPES)
    assert [{name: tuple(tensor.shape) for name, tensor in copy.items()} for copy in copies] == [SHAPES] * 3
    tensors = [tensor for copy in copies for tensor in copy.values() if tensor.numel()]
    first = tensors[0].data_ptr()
    assert all((tensor.data_ptr() - first) % 512 == 0 and tensor.is_contiguous() for tensor in tensors)
    for one, other in itertools.pairwise(tensors):
        assert one.data_ptr() + one.nbytes <= other.data_ptr()


def test_the_numbers_are_those_of_the_seed() -> None:
    """Standard normal; the same for the same seed, others for another; a small cut after a large one keeps them."""
    arena, same, other = Arena(CPU, 3), Arena(CPU, 3), Arena(CPU, 4)
    (large,) = arena.cut(torch.float32, 1, {"x": (100, 300)})
    assert abs(large["x"].mean().item()) < 0.03
    assert abs(large["x"].std().item() - 1) < 0.03
    (small,) = arena.cut(torch.float32, 1, {"x": (7, 300)})
    assert torch.equal(small["x"], large["x"][:7])
    assert torch.equal(same.cut(torch.float32, 1, {"x": (100, 300)})[0]["x"], large["x"])
    assert not torch.equal(other.cut(torch.float32, 1, {"x": (100, 300)})[0]["x"], large["x"])
