"""The tuner's compiling processes never touch the GPU that they compile for."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton

from csgmv import footprint, launch
from csgmv.config import from_row, to_row
from csgmv.tuning import target
from csgmv.tuning.compile import CompileFarm
from csgmv.tuning.lab import ragged_batch
from stood_in import CASES


def test_what_binaries_take_is_known_without_the_gpu() -> None:
    """For an H200, in a process like theirs: each kernel's resources, or why it has none; CUDA is asked for nothing."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = pathlib.Path(__file__).parents[1] / "stood_in.py"
    ran = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["cuda"] is False
    found: dict[str, list[Any]] = said["found"]
    ((small,), (large,), (spilling,)) = (found[name] for name in ("small", "large", "spilling"))
    assert small["registers"] < large["registers"] < spilling["registers"] == 104
    assert (small["spills"], large["spills"]) == (0, 0)
    assert 0 < spilling["spills"] < 4096
    assert small["shared_bytes"] < large["shared_bytes"]
    (refused,) = found["too large"]
    assert refused.startswith("OutOfResources: out of resource: shared memory")
    assert len(found["pair"]) == 2


def test_the_cpu_has_no_target() -> None:
    """There Triton compiles nothing."""
    assert target.of(torch.device("cpu")) is None


def test_without_cuobjdump_the_gpu_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before: processes that compile load what they have compiled."""
    monkeypatch.setattr(launch, "FOR_NVIDIA", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(target.dispatch, "device_limits", lambda _: footprint.LIMITS["9.0"])
    assert target.of(torch.device("cuda", 0)) == (90, footprint.LIMITS["9.0"].shared_memory)

    class Nowhere:
        @property
        def cuobjdump(self) -> Any:
            raise RuntimeError("Cannot find cuobjdump")

    monkeypatch.setattr(triton.knobs, "nvidia", Nowhere())
    assert target.of(torch.device("cuda", 0)) is None


@pytest.mark.gpu
@pytest.mark.skipif(launch.INTERPRETED or not launch.FOR_NVIDIA, reason="kernels are not compiled for NVIDIA's GPUs")
def test_what_they_compile_is_what_launches_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk, and it takes as much as they said."""
    device = torch.device("cuda", torch.cuda.current_device())
    farm = CompileFarm(device, 1)
    try:
        cases = [(key, to_row(config)) for name, (key, config) in CASES.items() if name != "too large"]
        told = [[future.result(120.0) for future in farm.submit(key, [row])[row]] for key, row in cases]
        assert not farm._scribe.call("has_touched_gpu", limit=60.0)
        assert not farm._farm.submit("has_touched_gpu", limit=60.0).result(60.0)
    finally:
        farm.close()
    hits: list[bool] = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, cache_hit, **_: hits.append(cache_hit))
    monkeypatch.setattr(launch, "plans", {})
    run, launched = launch.run, list[Any]()

    def noting(*args: Any, **how: Any) -> Any:
        launched.append(run(*args, **how))
        return launched[-1]

    monkeypatch.setattr(launch, "run", noting)
    for (key, row), binaries in zip(cases, told):
        launched.clear()
        ragged_batch(key, device).run(key.op, from_row(key.op, row))
        assert [(one.metadata.shared, one.n_regs) for one in launched] == [
            (binary.shared_bytes, binary.registers) for binary in binaries
        ]
        assert [one.n_spills for one in launched] == [binary.spills for binary in binaries]
    torch.cuda.synchronize()
    assert all(hits)


def test_every_case_is_one_that_wrappers_take() -> None:
    """But for the one that no block can run."""
    faults = {
        name: footprint.resource_fault(to_row(config), key, footprint.LIMITS["9.0"])
        for name, (key, config) in CASES.items()
    }
    assert [name for name, fault in faults.items() if fault] == ["too large"]
