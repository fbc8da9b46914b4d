"""A launch finds the binary that Triton would have chosen: nothing that a binary depends on is missing from its key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batches import DEVICE, assert_close, make_batch
from csgmv import AddLoraConfig, ExpandConfig, ShrinkConfig, add_lora, launch, reference

SAME: dict[str, Any] = {
    "kernel": object(),
    "config": ShrinkConfig(),
    "overlap": False,
    "device": 0,
    "dtypes": [torch.float16, torch.float32],
    "pointers": [1 << 40, 3 << 20],
    "sizes": [1024, 4097, 1],
    "constants": {"NUM_SLICES": 3, "EVEN_K": True},
}


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": object()},
        {"config": ShrinkConfig(num_stages=2)},
        {"config": ShrinkConfig(maxnreg=128)},
        {"config": None},
        {"overlap": True},
        {"device": 1},
        {"dtypes": [torch.bfloat16, torch.float32]},
        {"dtypes": [torch.float32, torch.float16]},
        {"pointers": [(1 << 40) + 2, 3 << 20]},
        {"pointers": [1 << 40, (3 << 20) + 8]},
        {"sizes": [1025, 4097, 1]},
        {"sizes": [1, 4097, 1]},
        {"sizes": [1024, 4097, 16]},
        {"sizes": [1 << 31, 4097, 1]},
        {"sizes": [1024, (1 << 31) + 1, 1]},
        {"constants": {"NUM_SLICES": 2, "EVEN_K": True}},
        {"constants": {"NUM_SLICES": 3, "EVEN_K": False}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_ingredient_counts(change: dict[str, Any]) -> None:
    """Changing any one of them asks for another binary."""
    assert launch.binary_key(**SAME) != launch.binary_key(**{**SAME, **change})


@given(
    st.lists(st.integers(1, 1 << 44), min_size=2, max_size=2),
    st.integers(1, 1 << 26).map(lambda size: 16 * size),
    st.integers(1, 1 << 26).map(lambda size: 16 * size + 3),
)
def test_what_does_not_matter_does_not_count(blocks: list[int], multiple: int, odd: int) -> None:
    """Other memory of the same alignment and other sizes of the same kind share a binary: tokens come and go."""
    pointers = [16 * block for block in blocks]
    assert launch.binary_key(**SAME) == launch.binary_key(**{**SAME, "pointers": pointers, "sizes": [multiple, odd, 1]})


def test_launch_parameters_are_the_configs() -> None:
    """Triton chooses what a config leaves open."""
    assert launch.options(None, overlap=False) == {}
    assert launch.options(ExpandConfig(num_warps=8, num_stages=1), overlap=True) == {
        "num_warps": 8,
        "num_stages": 1,
        "launch_pdl": True,
    }
    assert launch.options(ShrinkConfig(maxnreg=96), overlap=False)["maxnreg"] == 96


@pytest.mark.parametrize(("sizes", "told"), [((8, 24), True), ((16, 8), True), ((16, 0), False), ((12, 8), False)])
def test_multiples_of_eight_are_told(sizes: tuple[int, ...], told: bool) -> None:
    """The compiler is told of multiples of 16 by Triton, of multiples of 8 by us."""
    assert launch.by_8(*sizes) == told


@pytest.mark.gpu
def test_one_call_after_another_with_everything_changed_in_turn() -> None:
    """Strides, alignments, dtypes, dimensions, layouts and configs, each call right though all share one cache."""
    configs = [None, AddLoraConfig(ShrinkConfig(block_m=16, split_k=2), ExpandConfig(block_k=64), overlap=True)]
    for _ in range(2):  # the second time round, every binary is there
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for extra, input_dim, padded in ((0, 64, False), (8, 64, True), (3, 64, False), (0, 61, False)):
                batch = make_batch([16, 8, 16], 16, input_dim, [32, 16], 40, dtype=dtype, extra=extra, padded=padded)
                base, tensors = batch.base_output, (batch.x, batch.lora_a, batch.lora_b)
                want = reference.add_lora(base, *tensors, batch.segments, batch.slice_offsets, padded=padded)
                for config in configs:
                    got = add_lora(
                        base.clone(), *tensors, batch.segments, batch.slice_offsets, padded=padded, config=config
                    )
                    assert_close(got, want, dtype)


@pytest.mark.gpu
def test_the_binary_is_tritons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every launch of a varied run, Triton's own launcher comes to the very same binary."""
    launched = []

    def both(kernel: Any, programs: int, config: Any, tensors: Any, sizes: Any, constants: Any, **more: bool) -> None:
        run(kernel, programs, config, tensors, sizes, constants, **more)
        pointers, dtypes = [tensor.data_ptr() for tensor in tensors], [tensor.dtype for tensor in tensors]
        overlap = more.get("overlap", False)
        key = launch.binary_key(kernel, config, overlap, tensors[0].get_device(), dtypes, pointers, sizes, constants)
        options = launch.options(config, overlap)
        own = kernel.warmup(*tensors, *sizes, grid=(programs,), **constants, **options)
        assert launch._binaries[key][0] is own
        launched.append(own)

    run = launch.run
    monkeypatch.setattr(launch, "run", both)
    for dtype in (torch.float16, torch.bfloat16):
        for extra, input_dim in ((0, 64), (3, 64), (0, 61)):
            batch = make_batch([16, 8], 16, input_dim, [32, 16], 40, dtype=dtype, extra=extra)
            tensors = batch.x, batch.lora_a, batch.lora_b
            add_lora(batch.base_output, *tensors, batch.segments, batch.slice_offsets)
    assert len({id(binary) for binary in launched}) > 4
    assert DEVICE == "cuda"
