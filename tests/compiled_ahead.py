"""Warms up and then launches under Triton itself, for an H200 that need not be there, and counts what is compiled.

Run as a program, in a process of its own, since the tests' process interprets kernels where there is no GPU:

    python tests/compiled_ahead.py

prints as JSON what the warm-up says and how often Triton compiled during it, during its launches, during launches of
other batches, and for a call that it does not cover; and which binaries another process would find on disk. Kernels are
compiled to the last, but neither loaded nor launched.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from csgmv import Segments, binaries, expand, launch, rules, shrink
from csgmv.models import LayerShape

LAYERS = (LayerShape("o", 2048, (1024,)), LayerShape("odd", 72, (24, 8)))
CPU = torch.device("cpu")
DRIVER = SimpleNamespace(
    get_current_device=lambda: -1,
    get_current_stream=lambda _: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    launcher_cls=lambda *_: lambda *_: None,
    utils=SimpleNamespace(
        get_device_properties=lambda _: {"max_shared_mem": 232_448}, load_binary=lambda *_: (0, 0, 0, 0, 1024)
    ),
)


def main() -> None:
    compilations: list[Any] = []
    finished: list[tuple[bool, int]] = []
    triton.runtime.driver.set_active(DRIVER)
    triton.knobs.runtime.jit_post_compile_hook = lambda **compiled: compilations.append(compiled)
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: finished.append((cache_hit, threading.get_ident()))
    launch.stand_in()
    said: dict[str, Any] = {"progress": []}

    def calls(batches: list[Segments], **how: bool) -> list[binaries.Call]:
        each = (binaries._calls(layer, 64, torch.bfloat16, rules.OPS, batches, CPU, how) for layer in LAYERS)
        return [call for of_layer in each for call in of_layer]

    def count(name: str, made: list[binaries.Call]) -> None:
        launch.plans.clear()  # every call asks Triton for its kernels
        before = len(compilations)
        for call in made:
            call()
        said[name] = len(compilations) - before

    ahead = calls(binaries._batches([16], 17, 1, CPU))
    said["binaries"] = binaries._compile(ahead, 2, lambda *step: said["progress"].append(step))
    said["compiled"], said["threads"] = len(compilations), len({thread for _, thread in finished})
    count("launching", ahead)
    batches = [
        Segments.from_sequences(lens, [0] * len(lens), [64], [1.0], chunk_size=16, device="cpu")
        for lens in ([1], [5, 11], [16], [17], [3, 14])
    ]
    for batch in batches:
        batch.least_tokens = 0  # so that the one row of `calls` will do: binaries depend on nothing about rows
    count("others", calls(batches))
    count("uncovered", calls(batches, padded=True)[:1])
    finished.clear()
    for kernel in (shrink._shrink_kernel, shrink._sum_partials_kernel, expand._expand_kernel):
        kernel.device_caches.clear()  # as in another process
    count("in another process", ahead)
    said["found on disk"] = [cache_hit for cache_hit, _ in finished]
    print(json.dumps(said))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        main()
