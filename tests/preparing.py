"""How long it takes the host to prepare a batch, beside sglang's own functions for it, which are not in this tree.

    python tests/preparing.py PATH/TO/sglang

PATH/TO/sglang is the package's folder in a wheel of sglang 0.5.23 (installed, or two files of it: srt/lora/utils.py and
srt/lora/backend/chunked_backend.py). Of that backend `_get_permutation` and `_get_segments_info` alone are timed, as
they are written there (without a GPU but for pinned memory, which there is none of then), whose results stay on the
host; and `Segments.from_sequences` whole, to the host and, where there is one, to the GPU. All prepare the same batches
of 256 sequences that use 32 adapters in turn, and agree. Medians of many calls; the exit status is 1 where csgmv, to
the host, takes more than a quarter of the time.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from csgmv import Segments

SEQUENCES, ADAPTERS, CHUNK_SIZE = 256, 32, 16
SHARE = 0.25
RUNS, WARM_UP = 201, 20
# Rows of each sequence: a step of decoding, short prompts, long ones.
BATCHES = {
    "1 row each": [1] * SEQUENCES,
    "1 to 64 rows": [1 + 37 * n % 64 for n in range(SEQUENCES)],
    "256 rows each": [256] * SEQUENCES,
}
_FILES = {
    "sglang.srt.lora.backend.chunked_backend": "srt/lora/backend/chunked_backend.py",
    "sglang.srt.lora.utils": "srt/lora/utils.py",
}


class _Sglang(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """sglang, of which two files are as they were published, and what those import otherwise is nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """Of any module of sglang."""
        del path, target
        if name.partition(".")[0] != "sglang":
            return None
        if name in _FILES:
            return importlib.util.spec_from_file_location(name, self._folder / _FILES[name])
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """One that has whatever is asked of it."""
        return _Nothing(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _Nothing(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def backend(folder: Path) -> Any:
    """An object with the functions of sglang's backend."""
    finder = _Sglang(folder)
    with mock.patch.dict(sys.modules), mock.patch.object(sys, "meta_path", [finder, *sys.meta_path]):
        module = importlib.import_module("sglang.srt.lora.backend.chunked_backend")
    if not torch.cuda.is_available():
        vars(module)["torch"] = _Unpinned("torch")
    return object.__new__(module.ChunkedSgmvLoRABackend)


class _Unpinned(ModuleType):
    """torch, where pinned memory is like any other."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        if name not in ("tensor", "empty"):
            return found

        def unpinned(*args: Any, pin_memory: bool = False, **how: Any) -> Any:
            del pin_memory
            return found(*args, **how)

        return unpinned


def theirs(made: Any, lens: list[int], ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """permutation, weight_indices and seg_indptr, on the host."""
    decoding = all(length == 1 for length in lens)
    mode = SimpleNamespace(
        is_idle=lambda: False,
        is_decode=lambda: decoding,
        is_target_verify=lambda: False,
        is_extend=lambda: not decoding,
    )
    batch = SimpleNamespace(
        extend_seq_lens_cpu=lens,
        extend_seq_lens=SimpleNamespace(device="the GPU"),
        batch_size=len(lens),
        forward_mode=mode,
    )
    permutation, reordered = made._get_permutation(ids, batch)
    indices, indptr = made._get_segments_info(reordered, CHUNK_SIZE)
    return permutation, indices, indptr


def medians(calls: list[Callable[[], object]]) -> list[float]:
    """Microseconds of each call, all in turn."""
    taken: list[list[float]] = [[] for _ in calls]
    for run in range(WARM_UP + RUNS):
        for call, times in zip(calls, taken):
            begun = time.perf_counter()
            call()
            ended = time.perf_counter()
            if run >= WARM_UP:
                times.append(1e6 * (ended - begun))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return [*map(statistics.median, taken)]


def main(path: str) -> int:
    """Compare, and tell."""
    made, ids = backend(Path(path)), [n % ADAPTERS for n in range(SEQUENCES)]
    adapters = [64] * ADAPTERS, [1.0] * ADAPTERS
    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    worst = 0.0
    for name, lens in BATCHES.items():

        def ours(device: str, lens: list[int] = lens) -> Segments:
            return Segments.from_sequences(lens, ids, *adapters, chunk_size=CHUNK_SIZE, device=device)

        for device in devices:
            mine = ours(device)
            for its, own in zip(theirs(made, lens, ids), (mine.permutation, mine.weight_indices, mine.seg_indptr)):
                assert torch.equal(own.cpu(), its.to(own.dtype)), "the two do not agree"
        calls = [functools.partial(ours, device) for device in devices]
        allowed, *taken = medians([lambda lens=lens: theirs(made, lens, ids), *calls])
        worst = max(worst, taken[0] / allowed)
        told = (f"csgmv {us:.0f} µs ({device}), {us / allowed:.3f}" for device, us in zip(devices, taken))
        print(f"{SEQUENCES} sequences, {ADAPTERS} adapters, {name}: sglang {allowed:.0f} µs; {'; '.join(told)}")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{where}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    return 1 if worst > SHARE else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
