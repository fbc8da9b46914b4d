"""Several streams, threads, GPUs and forked processes at once: each gets its own results."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from batches import Batch, assert_close, make_batch
from csgmv import AddLoraConfig, ExpandConfig, ShrinkConfig, add_lora, launch, lora_expand, lora_shrink, reference

SHRINK = ShrinkConfig(block_m=16, block_n=16, block_k=32, split_k=3, num_stages=2)
EXPAND = ExpandConfig(block_m=16, block_n=32, block_k=16, num_stages=2)
several_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def batch_of(seed: int, num_tokens: int = 90) -> Batch:
    return make_batch([16, 16, 16], 16, 192, [64, 32], num_tokens, seed=seed)


def results(batch: Batch, shrink: ShrinkConfig = SHRINK) -> tuple[torch.Tensor, torch.Tensor]:
    """Of shrink and expand, and of both in one; with memory for partials, for h, and for the stage."""
    tensors, segments, offsets = (batch.x, batch.lora_a, batch.lora_b), batch.segments, batch.slice_offsets
    h = lora_shrink(batch.x, batch.lora_a, segments, batch.num_slices, config=shrink)
    two = lora_expand(h, batch.lora_b, segments, offsets, batch.base_output.clone(), config=EXPAND)
    one = add_lora(batch.base_output.clone(), *tensors, segments, offsets, config=AddLoraConfig(shrink, EXPAND))
    return two, one


def assert_right(batch: Batch, got: tuple[torch.Tensor, ...]) -> None:
    tensors = batch.base_output, batch.x, batch.lora_a, batch.lora_b
    expected = reference.add_lora(*tensors, batch.segments, batch.slice_offsets)
    for each in got:
        assert_close(each, expected, torch.float16)


def at_once(
    streams: list[torch.cuda.Stream], batches: list[Batch], cycles: int
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The results of each batch, many times on a stream of its own; the streams begin together, after some cycles."""
    begun, done = ([torch.cuda.Event(enable_timing=True) for _ in streams] for _ in range(2))
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in batches]
    torch.cuda.synchronize()
    for stream, event in zip(streams, begun):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(cycles)
            event.record()
    for _ in range(40):
        for stream, batch, mine in zip(streams, batches, found):
            with torch.cuda.stream(stream):
                mine.append(results(batch))
    for stream, event in zip(streams, done):
        event.record(stream)
    torch.cuda.synchronize()
    for one, other in itertools.permutations(range(len(streams)), 2):
        assert begun[one].elapsed_time(done[other]) > 0, "one after the other: nothing is shown"
    return found


@pytest.mark.gpu
def test_streams_share_no_scratch_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams at once, many times, by the same plans on different inputs: right, and no memory was both's."""
    places: dict[int, set[tuple[int, int]]] = {}

    def noted(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocated(*given: Any, **how: Any) -> torch.Tensor:
            tensor = allocate(*given, **how)
            at = tensor.data_ptr()
            places.setdefault(torch.cuda.current_stream().cuda_stream, set()).add((at, at + tensor.nbytes))
            return tensor

        return allocated

    fresh = launch.fresh
    monkeypatch.setattr(torch, "empty_strided", noted(torch.empty_strided))
    monkeypatch.setattr(launch, "fresh", lambda *kind: noted(fresh(*kind)))
    monkeypatch.setattr(launch, "plans", {})
    batches, streams = [batch_of(seed) for seed in range(2)], [torch.cuda.Stream() for _ in range(2)]
    wanted = [results(batch) for batch in batches]
    for each in zip(batches, wanted):
        assert_right(*each)
    plans = len(launch.plans)
    for cycles in (1, 500_000_000):  # the second time each stream has its memory, and waits until all is queued
        for mine, (two, one) in zip(at_once(streams, batches, cycles), wanted):
            assert all(torch.equal(got[0], two) and torch.equal(got[1], one) for got in mine)
    assert len(launch.plans) == plans
    first, second = (places[stream.cuda_stream] for stream in streams)
    assert len(first) >= 2 <= len(second)  # h, and partials or stage, which may follow one another in one place
    for (start, end), (other_start, other_end) in itertools.product(first, second):
        assert end <= other_start or other_end <= start


@pytest.mark.gpu
def test_threads_with_streams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads, of which none finds a plan or a binary at first: half of them need the same, half others."""
    monkeypatch.setattr(launch, "plans", {})
    batches = [batch_of(seed, num_tokens=60 + seed % 2) for seed in range(8)]
    configs = [ShrinkConfig(block_m=16, block_n=16, block_k=32, split_k=2 + seed % 2, maxnreg=232) for seed in range(8)]
    ready = threading.Barrier(len(batches), timeout=60)
    torch.cuda.synchronize()

    def work(batch: Batch, shrink: ShrinkConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
        stream = torch.cuda.Stream()
        ready.wait()
        with torch.cuda.stream(stream):
            got = [results(batch, shrink) for _ in range(50)]
        stream.synchronize()
        return got

    with ThreadPoolExecutor(len(batches)) as pool:
        found = [*pool.map(work, batches, configs)]
    for batch, mine in zip(batches, found):
        assert_right(batch, mine[0])
        for got in mine:
            assert torch.equal(got[0], mine[0][0])
            assert torch.equal(got[1], mine[0][1])


@several_gpus
@pytest.mark.gpu
def test_every_gpu_in_turn_and_at_once() -> None:
    """Whichever is the current one, each call runs where its tensors are, with a binary of that GPU's."""
    devices, batches = range(torch.cuda.device_count()), []
    for device in devices:
        with torch.cuda.device(device):
            batches.append(batch_of(device))
    for current in (*devices, 0):
        with torch.cuda.device(current):
            for device, batch in zip(devices, batches):
                got = results(batch)
                assert got[1].get_device() == device
                assert_right(batch, got)
            assert torch.cuda.current_device() == current

    def work(device: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        torch.cuda.set_device(device)
        return [results(batches[device]) for _ in range(50)]

    with ThreadPoolExecutor(len(devices)) as pool:
        found = [*pool.map(work, devices)]
    for batch, mine in zip(batches, found):
        for got in mine:
            assert_right(batch, got)
    elsewhere = batches[0]
    elsewhere.segments = batches[1].segments
    with pytest.raises(ValueError, match="segments: expected them on cuda:0, got cuda:1"):
        results(elsewhere)


FORK = """
import os, sys, traceback
sys.path[:0] = {paths!r}
import torch
from csgmv import Segments, add_lora, explain, lora_expand, lora_shrink
assert not torch.cuda.is_initialized()

def work():
    import test_concurrency
    batch = test_concurrency.batch_of(0, 25)
    test_concurrency.assert_right(batch, test_concurrency.results(batch))

if not {gpu}:
    work()
children = []
for _ in range(2):
    if (child := os.fork()) == 0:
        try:
            work()
            print("right")
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    children.append(child)
work()
for child in children:
    os.waitpid(child, 0)
print("right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_forks_after_the_import() -> None:
    """Children and parent each start CUDA for themselves, since the import does not; interpreted, after a call too."""
    script = FORK.format(paths=sys.path, gpu=torch.cuda.is_available())
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # OpenMP in torch hangs in a child whose parent has used it
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["right"] * 3), done.stderr
