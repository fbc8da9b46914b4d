"""Compile every kernel that a model's layers can need, before the first launch.

Which those are is not worked out a second time: the operations themselves are called, on batches without rows, once for
each kind of call that a server can make. The first time they only compile, all that is new at a time; the second time
they launch, so that whatever else a first launch does is done too.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from csgmv import chunk_sizes as sizes_of_chunks
from csgmv import devices, dtypes, launch, plain_arguments, rules
from csgmv.expand import lora_expand
from csgmv.grouping import segment_capacity
from csgmv.layer import add_lora
from csgmv.models import LayerShape, layer_shapes
from csgmv.segments import Segments
from csgmv.shrink import lora_shrink

# Part of each compilation is Python's own and holds its lock: more threads would only wait for it.
_MOST_THREADS = 16
APART = ("lora_a", "lora_b", "h", "base_output")
Call = Callable[[], object]


class Warmup(NamedTuple):
    """What `warmup` did.

    Attributes:
        calls: kinds of calls: a layer, an operation, a chunk size and a power of two of segments each.
        binaries: kernels that they launch and that launches of these kinds had not found yet; many kinds share one.
        seconds: how long it took.
    """

    calls: int
    binaries: int
    seconds: float


def warmup(
    layers: str | Path | Any | Iterable[LayerShape],
    *,
    max_rank: int,
    max_tokens: int,
    max_loras: int,
    tp: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    ops: Sequence[str] = rules.OPS,
    chunk_sizes: Iterable[int] | None = None,
    padded: bool = False,
    batch_invariant: bool = False,
    apart: Collection[str] = (),
    device: torch.device | str | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Warmup:
    """Compile all that calls for a model's layers can launch: none of them compiles anything afterwards.

    Binaries come into this process, ready to launch, and into Triton's cache on disk, where the next one finds them.
    Threads compile them, since for most of that time Triton does not hold Python's lock: no process is started, and no
    memory of the GPU taken for it. Before Triton 3.5 they are compiled one after the other, without `progress`.

    What is covered: batches of any size up to the given ones, in `Segments` that csgmv made; the table's configs, not a
    `config` of the caller's own; tensors that begin at multiples of 16 bytes, as torch allocates them; rows of x and
    base_output as far apart as they are long, or by another stride where Triton makes no difference between the two
    (both are multiples of 16 elements, both of just 8, or neither of 8). A call of another kind compiles what it needs.

    Args:
        layers: a model (a name on the Hugging Face hub, a folder with a config.json, or a config object), see
            `csgmv.models.layer_shapes`; or its layers, as `csgmv.models.LayerShape`.
        max_rank: of lora_a and lora_b, 1 to 256.
        max_tokens, max_loras: most rows of x and most adapter slots of any batch.
        tp: tensor-parallel size of the model.
        dtype: of every tensor: float16, bfloat16 or float32.
        ops: of "shrink", "expand" and "add_lora" those that will be called.
        chunk_sizes: of the Segments; None for those that they choose themselves where they are given none.
        padded, batch_invariant: as the operations will be told.
        apart: of "lora_a", "lora_b", "h" (shrink's out too) and "base_output" those that will be tuples of slices;
            `MultiLoRA` calls add_lora, padded, with all but h.
        device: a GPU; None for the current one.
        threads: that compile; None for one a processor, 16 at most.
        progress: called in this thread as binaries get ready, with how many new ones are and how many there will be.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; or the stream is being captured.
        ImportError, OSError: as for `csgmv.models.layer_shapes`.
        RuntimeError: there is no GPU, or kernels are interpreted.
    """
    started = time.monotonic()
    place = _gpu(device)
    for name, number in (("max_rank", max_rank), ("max_tokens", max_tokens), ("max_loras", max_loras)):
        plain_arguments.whole(name, number, 1, rules.MAX_RANK if name == "max_rank" else None)
    if threads is not None:
        plain_arguments.whole("threads", threads, 1)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: expected a function or None, got {progress!r}")
    if isinstance(apart, str) or not isinstance(apart, Collection) or any(each not in APART for each in apart):
        raise ValueError(f"apart: expected some of {', '.join(APART)}, got {apart!r}")
    shapes = _shapes(layers, tp)
    if chunk_sizes is None:
        chunk_sizes = sizes_of_chunks.possible(max_tokens, max_loras, place)
    how = {
        "padded": plain_arguments.flag("padded", padded),
        "batch_invariant": plain_arguments.flag("batch_invariant", batch_invariant),
    }
    with torch.cuda.device(place):
        if torch.cuda.is_current_stream_capturing():
            raise ValueError("warmup: expected a stream that is not being captured into a CUDA graph")
        batches = _batches(chunk_sizes, max_tokens, max_loras, place)
        _check(shapes, max_rank, dtype, ops, batches)
        calls = [call for shape in shapes for call in _calls(shape, max_rank, dtype, ops, batches, place, how, apart)]
        binaries = _compile(calls, threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS), progress)
        for call in calls:
            call()
        torch.cuda.current_stream().synchronize()
    return Warmup(len(calls), binaries, time.monotonic() - started)


def _gpu(device: torch.device | str | None) -> torch.device:
    """The GPU, with its number."""
    if launch.INTERPRETED:
        raise RuntimeError("warmup: kernels are interpreted (TRITON_INTERPRET is set), there is nothing to compile")
    if not torch.cuda.is_available():
        raise RuntimeError("warmup needs a GPU, and torch finds none")
    place = devices.read("cuda" if device is None else device)
    if place.type != "cuda":
        raise ValueError(f"device: expected a GPU, got {place}")
    return place


def _shapes(layers: str | Path | Any | Iterable[LayerShape], tp: int) -> list[LayerShape]:
    plain_arguments.whole("tp", tp, 1)
    if isinstance(layers, (str, Path)) or not isinstance(layers, Iterable):
        return layer_shapes(layers, tp)
    shapes = list(layers)
    for shape in shapes:
        if not isinstance(shape, LayerShape):
            raise TypeError(f"layers: expected a model or LayerShapes, got {type(shape).__name__} among them")
    if not shapes:
        raise ValueError("layers: expected at least one, got none")
    if tp != 1:
        raise ValueError(f"tp: expected 1 with LayerShapes, whose sizes are one rank's already, got {tp}")
    return shapes


def _batches(chunk_sizes: Iterable[int], max_tokens: int, max_loras: int, device: torch.device) -> list[Segments]:
    """Batches without rows, one for each chunk size and each bucket of segments up to what is possible."""
    batches = []
    if isinstance(chunk_sizes, str) or not isinstance(chunk_sizes, Iterable):
        raise TypeError(f"chunk_sizes: expected whole numbers, got {chunk_sizes!r}")
    for chunk_size in dict.fromkeys(plain_arguments.whole("chunk_sizes", each, 1) for each in chunk_sizes):
        most = rules.segment_bucket(segment_capacity(max_tokens, max_loras, chunk_size))
        batches += [_without_rows(chunk_size, 1 << exponent, device) for exponent in range(most.bit_length())]
    return batches


def _without_rows(chunk_size: int, num_segments: int, device: torch.device) -> Segments:
    """Segments that are all empty, of one adapter."""
    zeros = functools.partial(torch.zeros, dtype=torch.int32, device=device)
    scalings = torch.zeros(1, device=device)
    return Segments(
        zeros(1), zeros(num_segments + 1), zeros(num_segments), zeros(1), scalings, chunk_size, num_segments, 1
    )


def _check(
    shapes: Sequence[LayerShape], max_rank: int, dtype: torch.dtype, ops: Sequence[str], batches: Sequence[Segments]
) -> None:
    name = dtypes.name_of("dtype", dtype)
    if not batches:
        raise ValueError("chunk_sizes: expected at least one, got none")
    if isinstance(ops, str) or not isinstance(ops, Sequence) or not ops or any(op not in rules.OPS for op in ops):
        raise ValueError(f"ops: expected some of {', '.join(rules.OPS)}, got {ops!r}")
    for shape in shapes:
        widths = shape.slice_widths
        key = rules.Key("add_lora", shape.input_dim, widths, max_rank, len(widths), name, batches[0].chunk_size, 1)
        if fault := rules.key_fault(key):
            raise ValueError(fault)


def _calls(
    shape: LayerShape,
    max_rank: int,
    dtype: torch.dtype,
    ops: Sequence[str],
    batches: Sequence[Segments],
    device: torch.device,
    how: Mapping[str, Any],
    apart: Collection[str] = (),
) -> Iterator[Call]:
    """One layer's calls, on tensors of one row and one adapter that nothing is ever read from."""
    widths, empty = shape.slice_widths, functools.partial(torch.empty, dtype=dtype, device=device)
    slices, offsets = len(widths), (0, *itertools.accumulate(widths))

    def sliced(name: str, sizes: Sequence[int], *more: int) -> Any:
        """[1, the slices' sizes, …] as one tensor, or as one for each."""
        return tuple(empty(1, size, *more) for size in sizes) if name in apart else empty(1, sum(sizes), *more)

    x, h, base_output = empty(1, shape.input_dim), sliced("h", [max_rank] * slices), sliced("base_output", widths)
    lora_a, lora_b = sliced("lora_a", [max_rank] * slices, shape.input_dim), sliced("lora_b", widths, max_rank)
    out = h if "h" in apart else None
    for segments in batches:
        if "shrink" in ops:
            yield functools.partial(lora_shrink, x, lora_a, segments, slices, out=out, **how)
        if "expand" in ops:
            yield functools.partial(lora_expand, h, lora_b, segments, offsets, base_output, **how)
        if "add_lora" in ops:
            yield functools.partial(add_lora, base_output, x, lora_a, lora_b, segments, offsets, **how)


def _compile(calls: Iterable[Call], threads: int, progress: Callable[[int, int], None] | None) -> int:
    """Compile what calls launch, and launch nothing that is new; returns the number of binaries."""
    binaries: list[Any] = []
    context = contextvars.copy_context()  # what is set in it ends with it, however this ends
    context.run(launch.compiled.set, binaries)
    pool = ThreadPoolExecutor(threads)
    mode = triton.AsyncCompileMode(pool) if hasattr(triton, "AsyncCompileMode") else None  # from Triton 3.5 on
    try:
        if mode is not None:
            context.run(mode.__enter__)  # no `with`: after an error it would wait for everything that is queued
        for call in calls:
            context.run(call)
        if mode is not None:
            for done, _ in enumerate(as_completed(mode.raw_futures), 1):
                if progress is not None:
                    progress(done, len(mode.raw_futures))
            context.run(mode.__exit__, None, None, None)
    finally:
        pool.shutdown(cancel_futures=True)
    return len(set(map(id, binaries)))
