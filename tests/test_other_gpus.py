"""What GPUs get that no row was measured on: it compiles for them and fits, shown without one.

`python tests/other_gpus.py` goes through all of it; here stands a sample.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from csgmv import dispatch, fallback, footprint, launch, rules

NVIDIA = {"sm_80": "8.0", "sm_86": "8.6", "sm_89": "8.9", "sm_90": "9.0", "sm_100": "10.0", "sm_120": "12.0"}
ARCHITECTURES = (*NVIDIA, "gfx942")
SMALL = rules.Key("add_lora", 1024, (2048, 1024, 1024), 16, 3, "bfloat16", 16, 8)
LARGE = SMALL._replace(max_rank=64, chunk_size=64)
CHECKING = LARGE._replace(dtype="float32", chunk_size=16)
SMALLEST = ("sm_86", "gfx942")
BORROWING = ("sm_86", "sm_90", "gfx942")


def of_the_h200(field: str) -> rules.Key:
    """A key at which an H200 uses something that not every GPU has, and a register cap, which AMD's have not."""
    named, cap = map(rules.FIELD_NAMES["add_lora"].index, (field, "expand_maxnreg"))
    rows = fallback.flat(dispatch.tables().rows["NVIDIA H200", "3.6.0"])
    return next(key for key, row in rows.items() if row and key[0] == "add_lora" and row[named] and row[cap])


LENT = of_the_h200("overlap"), of_the_h200("expand_prefetch")


def all_compiled() -> Iterator[tuple[str, bool, list[dict[str, Any]]]]:
    """The architecture, whether rows are lent, and each key's kernels. In a process in which Triton compiles."""
    cases = [{"architecture": name, "lent": False, "keys": [LARGE]} for name in ARCHITECTURES]
    cases += [{"architecture": name, "lent": False, "keys": [SMALL, CHECKING]} for name in SMALLEST]
    cases += [{"architecture": name, "lent": True, "keys": LENT} for name in BORROWING]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = pathlib.Path(__file__).parent / "other_gpus.py"
    command = [sys.executable, str(program), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for case, keys in zip(cases, json.loads(done.stdout)):
        yield case["architecture"], case["lent"], keys


def limits(architecture: str) -> footprint.Limits:
    return (
        footprint.LIMITS[NVIDIA[architecture]]
        if architecture in NVIDIA
        else footprint.Limits(64 << 10, registers=131_072)
    )


def check_that_it_fits(architecture: str, kernels: list[dict[str, Any]]) -> None:
    """Shared memory, registers, tensor memory (of compute capability 10.0), and no instruction that is not there."""
    for kernel in kernels:
        assert kernel["shared"] <= limits(architecture).shared_memory, kernel
        assert kernel["registers"] * kernel["threads"] <= limits(architecture).registers, kernel
        assert kernel["tensor_memory"] <= 512, kernel
        assert limits(architecture).programmatic_launch or not kernel["waits"], kernel
        assert architecture in NVIDIA or not kernel["prefetches"], kernel


@pytest.mark.skipif(not launch.DEPENDENT, reason="some of these kernels wait for others")
def test_defaults_and_rows_cut_to_an_architecture_compile_and_fit() -> None:
    """The default of a large tile; where there is little room also of a small one, and float32's, which takes the most.
    And an H200's rows, as they would be lent if it were of that architecture: to its own as they are, to others cut.

    One test, since xdist's workers would compile the same kernels each.
    """
    told = 0
    for architecture, lent, keys in all_compiled():
        for done in keys:
            told += 1
            assert done["step"].startswith("GPU NVIDIA H200, " if lent else "default"), done
            assert [kernel["kernel"] for kernel in done["kernels"]] == ["_shrink_kernel", "_expand_kernel"], done
            check_that_it_fits(architecture, done["kernels"])
            if not lent:  # nothing spilled, but for a register or a few
                assert max(kernel["spills"] for kernel in done["kernels"]) <= 64, done
        if (architecture, lent) == ("sm_90", True):
            shrink, expand = keys[0]["kernels"]
            assert shrink["waits"]
            assert expand["waits"]
            assert keys[1]["kernels"][1]["prefetches"]
    assert told == len(ARCHITECTURES) + 2 * len(SMALLEST) + len(LENT) * len(BORROWING)


@pytest.mark.parametrize("architecture", [name for name in NVIDIA.values() if name != "9.0"] + [""])
def test_no_architecture_borrows_from_another(architecture: str) -> None:
    """Such a GPU gets the default. An H200's rows that are cut to 100 kB of shared memory fit, but without wgmma, which
    reads its operands from there, some need registers that are not left: 3,592 bytes spilled on sm_86.
    """
    where = fallback.Target(
        "another GPU", "3.6.0", footprint.LIMITS.get(architecture, footprint.UNLIMITED), architecture, 100
    )
    for key in (SMALL, LARGE, *LENT):
        choice = dispatch.resolve(key, where, dispatch.tables())
        assert (choice.step, choice.source, choice.gpu) == ("default", None, None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("op", rules.OPS)
def test_defaults_pass_the_rules_everywhere(op: str, dtype: str) -> None:
    """For every rank and chunk size; below compute capability 9.0 they never overlap."""
    for architecture in ARCHITECTURES:
        for max_rank in range(1, rules.MAX_RANK + 1, 5):
            for chunk_size in (1, 16, 32, 64, 128):
                key = rules.Key(op, 1024 * (op != "expand"), (512,) * (op != "shrink"), max_rank, 1, dtype,
                                chunk_size, 8)  # fmt: skip
                row = dispatch.to_row(dispatch.default_config(key, limits(architecture)))
                assert footprint.resource_fault(row, key, limits(architecture)) is None
                assert op != "add_lora" or row[-1] is False


@pytest.mark.skipif(not launch.DEPENDENT, reason="Triton 3.4 keeps its driver elsewhere")
def test_limits_under_rocm_come_from_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch for ROCm does not tell a block's shared memory; nothing there is launched as a programmatic dependent."""
    driver = SimpleNamespace(utils=SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": 65_536}))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(triton.runtime.driver, "_active", driver, raising=False)
    limits = dispatch.device_limits.__wrapped__(torch.device("cuda", 0))
    assert limits == footprint.Limits(65_536)
    assert not limits.programmatic_launch


@pytest.mark.parametrize(
    ("major", "dependent", "launches"), [(9, True, True), (9, False, False), (8, True, False), (12, True, True)]
)
def test_programmatic_launch_takes_the_gpu_and_triton(
    major: int, dependent: bool, launches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton 3.4 cannot compile a kernel that waits for another, whatever the GPU."""
    found = SimpleNamespace(major=major, shared_memory_per_block_optin=232_448, regs_per_multiprocessor=65_536)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(launch, "DEPENDENT", dependent)
    limits = dispatch.device_limits.__wrapped__(torch.device("cuda", 0))
    assert limits == footprint.Limits(232_448, programmatic_launch=launches)


def test_the_limits_are_those_that_the_program_compiles_for() -> None:
    """Every architecture that the rules know is compiled for."""
    assert set(NVIDIA.values()) == set(footprint.LIMITS)
