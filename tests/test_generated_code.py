"""What Triton makes of the kernels for an H200, compiled without one: wide accesses, resources as the rules guess."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from csgmv import dispatch, fallback, footprint, launch, rules
from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig, to_row

pytestmark = pytest.mark.skipif(not launch.DEPENDENT, reason="some of these kernels wait for others")

HERE = pathlib.Path(__file__).parent
LIMITS = footprint.Limits(232_448, programmatic_launch=True)


def shrink_case(config: ShrinkConfig, *, max_rank: int = 64, **constants: object) -> list:
    """A shrink kernel as `launch_shrink` would compile it."""
    flags = {"PADDED": True, "STAGED": True, "SIGNAL": False, "EVEN_K": True, "BY_8": False, "GROUPED": False}
    flags |= {"A_APART_BY": 0, "H_APART_BY": 0}
    constants = {**flags, **constants, "MAX_RANK": max_rank, "COLUMN_TILES": config.column_tiles}
    constants.setdefault("LAST_N", config.block_n)
    constants["PARTS_K"] = config.num_warps if config.sliced_k else 1
    return ["shrink", {**constants, **blocks(config)}, options(config)]


def expand_case(config: ExpandConfig, *, max_rank: int = 64, **constants: object) -> list:
    """An expand kernel as `launch_expand` would compile it; `splits`, if it is not given, is a run-time number."""
    flags = {"PADDED": True, "STAGED": True, "OVERLAP": False, "EVEN_N": True, "BY_8": False, "GROUPED": False}
    flags |= {"H_APART": False, "B_APART": False, "BASE_APART": False}
    constants = {**flags, **constants, "MAX_RANK": max_rank}
    constants |= {"NUM_STAGES": config.num_stages, "PREFETCH": config.prefetch}
    return ["expand", {**constants, **blocks(config)}, options(config)]


def blocks(config: ShrinkConfig | ExpandConfig) -> dict[str, int]:
    return {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}


def options(config: ShrinkConfig | ExpandConfig) -> dict[str, int]:
    chosen = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return chosen if config.maxnreg is None else {**chosen, "maxnreg": config.maxnreg}


def compiled(cases: list[list]) -> list[dict]:
    """Compiles in a process in which Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(HERE / "ahead_of_time.py"), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PREFILL_SHRINK = ShrinkConfig(block_m=128, block_n=64, block_k=64, column_tiles=3, num_warps=8, num_stages=4)
DECODE_SHRINK = ShrinkConfig(block_m=16, block_n=32, block_k=128, split_k=8, num_warps=4, num_stages=2)
SLICED_SHRINK = ShrinkConfig(block_m=16, block_n=32, block_k=256, num_warps=4, num_stages=3, sliced_k=True)
SLICED_SPLIT_SHRINK = ShrinkConfig(16, 16, 256, column_tiles=2, split_k=8, num_warps=8, num_stages=2, sliced_k=True)
PREFILL_EXPAND = ExpandConfig(64, 128, 64, column_tiles=8, num_warps=8, num_stages=1, maxnreg=160)
PIPELINED_EXPAND = ExpandConfig(64, 128, 64, column_tiles=8, num_warps=4, num_stages=3, prefetch=True)
DECODE_EXPAND = ExpandConfig(16, 64, 32, column_tiles=2, num_warps=4, num_stages=1)


def test_accesses_are_sixteen_bytes_wide() -> None:
    """Tiles of x, A, B, h and base move 16 bytes at a time; only indices, ranks and scalings take 4-byte loads.

    A run-time stride that the compiler does not know to be a multiple of 8, or a mask an element, breaks them up: then
    2-byte accesses appear.
    """
    uneven = expand_case(PREFILL_EXPAND, EVEN_N=False, splits=1)
    partials = expand_case(DECODE_EXPAND, max_rank=32, h="*fp32", OVERLAP=True)
    pipelined = expand_case(PIPELINED_EXPAND, splits=1)
    float32 = {"STAGED": False, "h": "*fp32"}  # as vLLM keeps h
    cases = [shrink_case(PREFILL_SHRINK), expand_case(PREFILL_EXPAND, splits=1), uneven, partials, pipelined]
    cases += [shrink_case(PREFILL_SHRINK, BY_8=True), expand_case(PREFILL_EXPAND, BY_8=True, EVEN_N=False, splits=1)]
    cases += [shrink_case(PREFILL_SHRINK, GROUPED=True), expand_case(PIPELINED_EXPAND, GROUPED=True, splits=1)]
    cases += [shrink_case(PREFILL_SHRINK, **float32), expand_case(PIPELINED_EXPAND, **float32, splits=1)]
    apart = {"H_APART": True, "B_APART": True, "BASE_APART": True, "splits": 1}
    cases += [shrink_case(PREFILL_SHRINK, A_APART_BY=16), shrink_case(PREFILL_SHRINK, A_APART_BY=16, BY_8=True)]
    cases += [shrink_case(PREFILL_SHRINK, A_APART_BY=16, H_APART_BY=16, STAGED=False)]
    cases += [expand_case(PIPELINED_EXPAND, **apart), expand_case(PREFILL_EXPAND, **apart, BY_8=True, EVEN_N=False)]
    # a wait in the wrong place would end pipelining
    cases.append(expand_case(PIPELINED_EXPAND, OVERLAP=True, splits=1))
    for case, code in zip(cases, compiled(cases)):
        accesses = code["accesses"]
        assert not {"ld 2", "ld 8", "cp 4", "cp 8"} & set(accesses), (case, accesses)
        assert accesses.get("cp 16", 0) + accesses.get("ld 16", 0) >= 4, (case, accesses)
        assert accesses.get("st 16", 0) >= 1, (case, accesses)
        assert code["spills"] == 0, (case, code)
        assert code["atomics"] == 0, (case, code)  # sums in an order of its own each time
        if case[0] == "expand":
            assert {kind for kind in accesses if kind.startswith("st")} == {"st 16"}, (case, accesses)


def test_warps_that_share_steps_load_and_multiply_as_others_do() -> None:
    """With 16-byte asynchronous copies and on tensor cores: a dot of three dimensions is not taken apart."""
    sliced = [SLICED_SHRINK, SLICED_SPLIT_SHRINK]
    cases = [shrink_case(config, **flags) for config in sliced for flags in ({}, {"BY_8": True}, {"GROUPED": True})]
    for case, code in zip(cases, compiled(cases)):
        accesses = code["accesses"]
        assert accesses["cp 16"] >= 4, (case, accesses)
        assert not {"ld 2", "ld 8", "cp 4", "cp 8"} & set(accesses), (case, accesses)
        assert code["dots"] >= 1, (case, code)
        assert code["spills"] == 0, (case, code)


def test_float32_is_not_taken_for_tf32() -> None:
    """Triton's default on NVIDIA, which keeps 10 of 23 bits; 16-bit numbers go through tensor cores as they are."""
    small = ShrinkConfig(16, 16, 32, num_stages=2), ExpandConfig(16, 32, 32, num_stages=2)
    exact = [shrink_case(small[0], dtype="*fp32"), expand_case(small[1], max_rank=32, dtype="*fp32", splits=1)]
    for case, code in zip(exact, compiled([*exact])):
        assert (code["dots"], code["tf32"]) == (0, 0), (case, code)


def test_shared_memory_is_what_the_rules_estimate() -> None:
    """Never more than the estimate that configs are refused by, and not so little that it would refuse too many."""
    shrinks = ShrinkConfig(), PREFILL_SHRINK, DECODE_SHRINK, SLICED_SHRINK, SLICED_SPLIT_SHRINK
    expands = ExpandConfig(), PREFILL_EXPAND, PIPELINED_EXPAND, DECODE_EXPAND
    codes = compiled([*map(shrink_case, shrinks), *map(expand_case, expands)])
    for config, code in zip((*shrinks, *expands), codes):
        dims = {"input_dim": 1024} if config.op == "shrink" else {"input_dim": 0, "slice_widths": (256, 256, 256)}
        key = rules.Key(**{"op": config.op, "slice_widths": (), **dims}, max_rank=64, num_slices=3, dtype="bfloat16",
                        chunk_size=128, segment_bucket=64)  # fmt: skip
        assert footprint.resource_fault(to_row(config), key, LIMITS) is None
        exactly = footprint.resource_fault(to_row(config), key, LIMITS._replace(shared_memory=code["shared"] - 1))
        assert "shared memory" in str(exactly), (config, code["shared"])
        generous = footprint.resource_fault(
            to_row(config), key, LIMITS._replace(shared_memory=2 * code["shared"] + 4096)
        )
        assert generous is None, (config, code["shared"])


@pytest.mark.parametrize("max_rank", [1, 12, 24, 256])
def test_odd_ranks_compile(max_rank: int) -> None:
    """Ranks that are no power of two, or below what a dot takes, compile for the GPU too."""
    depth = max(16, rules.power_of_two(max_rank))
    cases = [
        shrink_case(ShrinkConfig(block_n=32, block_k=64), max_rank=max_rank, PADDED=False, EVEN_K=False),
        expand_case(ExpandConfig(block_k=depth), max_rank=max_rank, EVEN_N=False),
        expand_case(ExpandConfig(block_k=16), max_rank=max_rank, EVEN_N=False, h="*fp32"),
    ]
    cases.append(["cut", {"GROUPS": 2 * depth, "BLOCK": 16}, {}])  # of vLLM's metadata, for as many adapters
    assert all(code["registers"] <= 255 for code in compiled(cases))


@pytest.mark.parametrize("max_rank", [8, 16, 128, 256])
def test_borrowed_rows_compile_and_fit(max_rank: int) -> None:
    """What the shipped table lends to layers and ranks that it does not have, to few rows and to many."""
    where = fallback.Target("NVIDIA H200", "3.6.0", LIMITS, "9.0", 132)
    configs = []
    for chunk_size, bucket in ((16, 8), (64, 512)):
        key = rules.Key("add_lora", 8192, (10240,), max_rank, 1, "bfloat16", chunk_size, bucket)
        choice = dispatch.resolve(key, where, dispatch.tables())
        assert choice.step.startswith("nearest dimensions")
        assert isinstance(choice.config, AddLoraConfig)
        configs += [choice.config.shrink, choice.config.expand]
    cases = [shrink_case(config, max_rank=max_rank) for config in configs[::2]]
    cases += [expand_case(config, max_rank=max_rank, h="*fp32") for config in configs[1::2]]
    for case, code in zip(cases, compiled(cases)):
        assert code["shared"] <= LIMITS.shared_memory, (case, code)
        assert code["registers"] <= 255, (case, code)
        assert code["spills"] <= 128, (case, code)  # bytes: a few registers, where the original had none to spare
