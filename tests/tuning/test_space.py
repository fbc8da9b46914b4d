"""The space holds only configs that a device can run, enough of them, always in the same order."""

from __future__ import annotations

import dataclasses

import pytest

from csgmv import footprint, rules
from csgmv.config import ExpandConfig, ShrinkConfig, to_row
from csgmv.tuning import model, space
from csgmv.tuning.plan import Batch, Task

H200 = model.Device(footprint.Limits(shared_memory=232448, programmatic_launch=True), sm_count=132)
SM86 = model.Device(footprint.Limits(shared_memory=101376), sm_count=84)
REFERENCE = {"shrink": 54, "expand": 120}  # candidates of the tuner of sglang's pull request


def task(op: str, rank: int, chunk_size: int, tokens: int, segments: int, dtype: str = "bfloat16") -> Task:
    widths = (1536, 256, 256) if op == "expand" else ()
    dims = 0 if op == "expand" else 1536
    key = rules.Key(op, dims, widths, rank, 3, dtype, chunk_size, rules.segment_bucket(segments))
    return Task(key, (Batch(tokens, min(tokens, 8), segments),))


TASKS = [
    task(op, rank, chunk_size, tokens, segments, dtype)
    for op in ("shrink", "expand")
    for rank, chunk_size, tokens, segments, dtype in (
        (1, 16, 1, 1, "bfloat16"),
        (24, 32, 60, 8, "float16"),
        (64, 128, 30720, 240, "bfloat16"),
        (256, 64, 2048, 32, "float32"),
        (12, 7, 2000, 300, "bfloat16"),
    )
]


@pytest.mark.parametrize("device", [H200, SM86], ids=["h200", "sm_86"])
@pytest.mark.parametrize("one", TASKS, ids=lambda t: f"{t.key.op}-r{t.key.max_rank}-c{t.key.chunk_size}")
def test_whatever_is_proposed_fits_the_device(one: Task, device: model.Device) -> None:
    """Shortlist and neighbours of all of it pass the resource predicate and the fields' own bounds."""
    configs, pruned = space.shortlist(one, device, 20)
    assert configs
    assert all(count > 0 for count in pruned.values())
    near = [other for config in configs[:5] for _, other in space.neighbours(config, one, device)]
    for config in [*configs, *near]:
        row = to_row(config)
        assert rules.config_fault(one.key.op, row) is None
        assert footprint.resource_fault(row, one.key, device.limits) is None


@pytest.mark.parametrize("op", ["shrink", "expand"])
def test_the_space_is_larger_than_the_reference_tuners(op: str) -> None:
    """Also at a small layer and on a device with little shared memory."""
    one = task(op, 64, 16, 32, 8)
    assert space.size(one.key, SM86.limits) >= REFERENCE[op]


def test_an_add_lora_key_searches_both_parts() -> None:
    """Its size is that of shrink and expand together."""
    joint = rules.Key("add_lora", 1536, (1536, 256, 256), 64, 3, "bfloat16", 16, 8)
    parts = [task(op, 64, 16, 32, 8).key for op in ("shrink", "expand")]
    assert space.size(joint, H200.limits) == sum(space.size(part, H200.limits) for part in parts)


def test_the_order_is_fixed() -> None:
    """Two calls give the same list, and a shorter list is the beginning of the longer one."""
    one = task("expand", 64, 64, 512, 8)
    first, _ = space.shortlist(one, H200, 20)
    assert space.shortlist(one, H200, 20)[0] == first
    assert space.shortlist(one, H200, 7)[0] == first[:7]


def test_every_tiling_is_proposed_once() -> None:
    """What a shortlist varies are tilings, so that a few measurements see the breadth of the space."""
    configs, _ = space.shortlist(task("shrink", 64, 128, 512, 8), H200, 40)
    tilings = [space.tiling(config) for config in configs]
    assert len(set(tilings)) == len(tilings) == 40


def test_several_splits_of_k_are_proposed_where_few_programs_run() -> None:
    """At decode a split_k of 1 cannot fill the GPU; at prefill most of the list has it."""
    decode, _ = space.shortlist(task("shrink", 64, 16, 1, 1), H200, 20)
    prefill, _ = space.shortlist(task("shrink", 64, 16, 30720, 1920), H200, 20)
    assert len({config.split_k for config in decode if isinstance(config, ShrinkConfig)}) >= 4
    assert sum(config.split_k == 1 for config in prefill if isinstance(config, ShrinkConfig)) >= 8


@pytest.mark.parametrize("one", TASKS[:5], ids=lambda t: f"r{t.key.max_rank}-c{t.key.chunk_size}")
def test_warps_share_steps_only_of_small_tiles(one: Task) -> None:
    """Of 32 · 32 numbers at most, and long ones: 32 columns of x for each warp. Of short segments, some do."""
    configs = space.shortlist(one, H200, 40)[0]
    near = [other for config in configs for _, other in space.neighbours(config, one, H200)]
    sliced = [config for config in (*configs, *near) if isinstance(config, ShrinkConfig) and config.sliced_k]
    for config in sliced:
        assert config.block_m * config.block_n * config.column_tiles <= 32 * 32
        assert config.block_k >= 32 * config.num_warps
    assert sliced or one.key.chunk_size > 32


def test_the_walk_comes_to_shared_steps_and_back() -> None:
    """From a tile that is small enough, with steps that are long enough; other ones are not tried."""
    one = task("shrink", 64, 32, 60, 8)
    for shape, tried in (
        ((32, 32, 128, 1, 1, 4), True),
        ((16, 32, 64, 2, 4, 2), True),
        ((32, 64, 128, 1, 1, 4), False),
        ((32, 32, 128, 2, 1, 4), False),
        ((32, 32, 64, 1, 1, 4), False),
        ((32, 32, 128, 1, 1, 8), False),
    ):
        config = ShrinkConfig(*shape, num_stages=2)
        sliced = dataclasses.replace(config, sliced_k=True)
        assert footprint.resource_fault(to_row(sliced), one.key, H200.limits) is None
        assert space.usable(config, one, H200)
        assert space.usable(sliced, one, H200) == tried
        near = [other for name, other in space.neighbours(config, one, H200) if name == "sliced_k"]
        assert near == [sliced] * tried
        assert not tried or config in [other for _, other in space.neighbours(sliced, one, H200)]


def test_no_default_where_none_fits() -> None:
    """A device too small for any tile has no default row; a common one has."""
    key = task("shrink", 64, 16, 8, 8).key
    assert space.default_row(key, footprint.Limits(shared_memory=16)) is None
    assert space.default_row(key, SM86.limits) is not None


@pytest.mark.parametrize("op", ["shrink", "expand"])
def test_keys_of_a_family_propose_the_same_binaries(op: str) -> None:
    """A tiling and its block_k have one pipeline, whatever the key: what one key compiles serves the others. Seeds have
    their own.
    """
    pipelines: dict[tuple[int, ...], set[tuple[int | None, ...]]] = {}
    for chunk_size, tokens, segments in ((16, 8, 8), (16, 2048, 128), (64, 512, 11), (128, 30720, 240)):
        one = task(op, 64, chunk_size, tokens, segments)
        for config in set(space.shortlist(one, H200, 40)[0]) - set(space._seeds(one, H200)):
            launch = (config.num_warps, config.num_stages, config.maxnreg, getattr(config, "prefetch", False))
            pipelines.setdefault((*space.tiling(config)[:4], config.block_k), set()).add(launch)
    assert len(pipelines) > 40
    assert all(len(launches) == 1 for launches in pipelines.values())


@pytest.mark.parametrize(
    ("block_k", "column_tiles", "num_stages", "walks"),
    [(64, 4, 2, True), (64, 4, 1, False), (32, 4, 2, False), (64, 1, 1, False)],
)
def test_prefetch_is_tried_where_the_whole_rank_is_pipelined(
    block_k: int, column_tiles: int, num_stages: int, walks: bool
) -> None:
    """Elsewhere the kernel does not look at it, and the config would be measured twice."""
    one, config = task("expand", 64, 64, 2048, 32), ExpandConfig(64, 64, block_k, column_tiles, 4, num_stages)
    prefetching = dataclasses.replace(config, prefetch=True)
    assert space.usable(config, one, H200)
    assert space.usable(prefetching, one, H200) == walks
    near = [other for name, other in space.neighbours(config, one, H200) if name == "prefetch"]
    assert near == [prefetching] * walks
    assert not walks or config in [other for _, other in space.neighbours(prefetching, one, H200)]


def test_the_whole_rank_is_pipelined_only_where_there_are_tiles_to_come() -> None:
    """A single tile is proposed too, with nothing to fetch ahead; prefetch is left to the walk."""
    one = task("expand", 64, 128, 30720, 240)
    configs = [config for config in space.shortlist(one, H200, 200)[0] if isinstance(config, ExpandConfig)]
    pipelined = [config for config in configs if config.block_k >= 64 and config.num_stages > 1]
    assert pipelined
    assert all(config.column_tiles > 1 for config in pipelined)
    assert (64, 64, 1) in {(c.block_m, c.block_n, c.column_tiles) for c in configs if c.block_k >= 64}
    assert {config for config in configs if config.prefetch} <= set(space._seeds(one, H200))


def test_tiles_larger_than_a_segment_are_for_batches_that_fill_them() -> None:
    """Where an adapter has several segments they are taken together; where each has one row nothing is gained."""
    full, sparse = task("expand", 64, 16, 2048, 128), task("expand", 64, 16, 8, 8)
    assert {config.block_m for config in space.shortlist(full, H200, 40)[0]} >= {16, 32, 64, 128}
    assert {config.block_m for config in space.shortlist(sparse, H200, 40)[0]} == {16}
