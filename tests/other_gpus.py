"""Compiles what launches would compile on GPUs that need not be there, and tells whether it fits them.

Run as a program, in a process of its own, since the tests' process interprets kernels where there is no GPU:

    python tests/other_gpus.py '[{"architecture": "sm_86", "lent": false, "keys": [["add_lora", 1024, …], …]}, …]'

prints for each key, as JSON, what its kernels take. `lent`: with an H200 that counts as of this architecture, so that
its rows are lent and cut to what the architecture can run; else the built-in default, which is all that there is for an
architecture without rows. None borrows from another, since rows that were cut so fit, but some of them spill.

    python tests/other_gpus.py

does so for the defaults of every rank and chunk size, and for every row that the H200 has to lend, and tells what does
not fit, and what spills; some half an hour.

The operations themselves are called, so that configs, constants and options are those of real launches; kernels are
compiled to the last, but neither loaded nor launched.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import multiprocessing
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from csgmv import binaries, dispatch, expand, fallback, footprint, launch, rules, shrink
from csgmv.models import LayerShape
from csgmv.tuning.target import resources

CPU = torch.device("cpu")
TRITON = "3.6.0"
LIMITS = {
    **{f"sm_{capability.replace('.', '')}": limits for capability, limits in footprint.LIMITS.items()},
    "gfx942": footprint.Limits(64 << 10, registers=4 * 512 * 64),  # AMD's CDNA3 ISA: LDS and vector registers of a CU
}
MOST_STACK = 64  # bytes: a register or a few, where the compiler had none to spare
H200 = "NVIDIA H200", "3.6.0"
TENSOR_MEMORY = 512  # columns, of compute capability 10.0
KERNELS = (shrink._shrink_kernel, shrink._sum_partials_kernel, expand._expand_kernel)


def _driver(architecture: str) -> SimpleNamespace:
    amd = architecture.startswith("gfx")
    target = GPUTarget("hip", architecture, 64) if amd else GPUTarget("cuda", int(architecture[3:]), 32)
    return SimpleNamespace(
        get_current_device=lambda: -1,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: target,
        launcher_cls=lambda *_: lambda *_: None,
        utils=SimpleNamespace(),
    )


def _become(architecture: str, lent: bool) -> None:
    """From now on kernels are compiled for this architecture, with the configs of a GPU of it that has no rows.

    What is lent to it are an H200's.
    """
    triton.runtime.driver.set_active(_driver(architecture))
    launch.stand_in()
    launch.FOR_NVIDIA = not architecture.startswith("gfx")
    where = fallback.Target("another GPU", TRITON, LIMITS[architecture], architecture, 100)
    rows, gpus, defaults = dispatch.tables()
    if lent:
        rows, gpus = {H200: rows[H200]}, {H200[0]: (architecture, gpus[H200[0]][1])}
        defaults = {architecture: defaults["9.0"]}
    known = fallback.Tables(rows, gpus, defaults)
    dispatch.target, dispatch.device_limits, dispatch.tables = (
        (lambda _: where),
        (lambda _: where.limits),
        lambda: known,
    )


def _kernel(compiled: Any) -> dict[str, Any]:
    """What a compiled kernel takes; registers and spills (bytes) are a thread's."""
    metadata = compiled.metadata
    if "cubin" in compiled.asm:
        code, took = compiled.asm["ptx"], resources(compiled.asm["cubin"])._asdict()
    else:
        code = compiled.asm["amdgcn"]
        said = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s*(\d+)", code))
        took = {"registers": int(said["vgpr_count"]), "spills": int(said["private_segment_fixed_size"])}
    return {
        "kernel": metadata.name,
        "shared": metadata.shared,
        "tensor_memory": getattr(metadata, "tmem_size", None) or 0,
        "threads": metadata.num_warps * metadata.target.warp_size,
        "waits": "griddepcontrol" in code or getattr(metadata, "launch_pdl", False),
        "prefetches": "prefetch.global" in code,
        **took,
    }


def faults(architecture: str, kernel: dict[str, Any]) -> Iterator[str]:
    """Why a GPU cannot run a kernel."""
    limits = LIMITS[architecture]
    if kernel["shared"] > limits.shared_memory:
        yield f"{kernel['shared']} of {limits.shared_memory} bytes of shared memory"
    if kernel["tensor_memory"] > TENSOR_MEMORY:
        yield f"{kernel['tensor_memory']} of {TENSOR_MEMORY} columns of tensor memory"
    if kernel["threads"] * kernel["registers"] > limits.registers:
        yield f"{kernel['threads']} threads of {kernel['registers']} registers, of {limits.registers}"
    if kernel["waits"] and not limits.programmatic_launch:
        yield "programmatic dependent launch, which there is none of"


def _call(key: rules.Key) -> binaries.Call:
    """A launch that is looked up under this key."""
    shape = LayerShape("", key.input_dim or 1024, key.slice_widths or (1024,) * key.num_slices)
    batch = binaries._without_rows(key.chunk_size, key.segment_bucket, CPU)
    (call,) = binaries._calls(shape, key.max_rank, getattr(torch, key.dtype), [key.op], [batch], CPU, {})
    return call


def _compiled(case: dict[str, Any]) -> list[dict[str, Any]]:
    """One case of the command line, in a process that does nothing else."""
    _become(case["architecture"], case["lent"])
    done = []
    for fields in case["keys"]:
        key = rules.Key(fields[0], fields[1], tuple(fields[2]), *fields[3:])
        found: list[Any] = []
        context = contextvars.copy_context()
        context.run(launch.compiled.set, found)
        context.run(_call(key))
        choice = dispatch.choose(key, CPU)
        kernels = [_kernel(one) for one in found]
        done.append({"key": key, "step": choice.step, "config": str(choice.config), "kernels": kernels})
    return done


def compiled(cases: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """All cases, two at a time, each in a process of its own: Triton keeps the target of a device that it has seen."""
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        yield from pool.imap(_compiled, cases, chunksize=1)


def _everything() -> list[dict[str, Any]]:
    """The defaults of all ranks and chunk sizes, and whatever an H200 has to lend."""
    layer = (1024, (2048, 1024, 1024))
    defaults = [
        rules.Key(op, layer[0] * (op != "expand"), layer[1] * (op != "shrink"), rank, 3, dtype, chunk_size, 8)
        for op, rank, chunk_size in itertools.product(rules.OPS, (8, 16, 24, 64, 128, 256), (16, 32, 64))
        for dtype in ("bfloat16", "float32")
    ]
    rows = [key for rows in dispatch.tables().rows.values() for key in fallback.flat(rows)]
    return [
        {"architecture": architecture, "lent": lent, "keys": keys}
        for lent, keys in ((False, defaults), (True, rows))
        for architecture in LIMITS
    ]


def main() -> int:
    """Everything, for people; 1 if something does not fit, or a default spills."""
    cases, bad = _everything(), 0
    for case, done in zip(cases, compiled(cases)):
        architecture, lent = case["architecture"], case["lent"]
        kernels = [(one, kernel) for one in done for kernel in one["kernels"]]
        found = [(fault, one, kernel) for one, kernel in kernels for fault in faults(architecture, kernel)]
        spills = sum(kernel["spills"] > MOST_STACK for _, kernel in kernels)
        print(
            f"{architecture}, {'lent rows' if lent else 'defaults'}: {len(done)} keys, {len(kernels)} kernels,"
            f" {len(found)} faults, {spills} spill, at most {max(kernel['spills'] for _, kernel in kernels)} bytes",
            flush=True,
        )
        for fault, one, kernel in found:
            print(f"  {kernel['kernel']}: {fault}; {one['step']}: {one['config']} at {one['key']}")
        bad += len(found) + (0 if lent else spills)  # an H200's rows spill where that was measured to be fastest
    return 1 if bad else 0


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    print(json.dumps(list(compiled(json.loads(sys.argv[1])))))
