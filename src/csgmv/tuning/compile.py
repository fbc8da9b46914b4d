"""Compiling ahead: fills Triton's cache on disk from several processes, while another one measures.

Compiling is what tuning waits for (about a second of a processor a binary), so each binary is compiled once, whichever
configs launch it. What a binary depends on is recorded from the wrappers themselves: most of a key (the number of
segments, input_dim, output widths, often the chunk size) and some of a config (split_k of shrink) are integers that a
kernel takes at run time.

None of our kernels is launched here, or even loaded: that would disturb what is being measured (see `target`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Union

import torch

from csgmv import dtypes, launch, rules
from csgmv.config import ExpandConfig, ShrinkConfig, from_row
from csgmv.segments import Segments
from csgmv.tuning.target import CompileTarget, compile_for
from csgmv.tuning.target import of as target_of
from csgmv.tuning.worker import Failure, Farm, Worker, reason
from csgmv.workload import Workload

COMPILE_SECONDS = 60.0
_NICENESS = 10  # of processes that compile: those that measure and decide, which a GPU waits for, come first
Signature = tuple[object, ...]  # all that a binary depends on
Described = Union[tuple[Signature, ...], str]  # a config's binaries in the order of their launches, or why it has none


class Binary(NamedTuple):
    """What a kernel takes; of several kernels the most of any, and the sum of what they spill (words of 4 bytes)."""

    shared_bytes: int
    registers: int
    spills: int


class _Launch(NamedTuple):
    """The arguments of launch.run."""

    kernel: Any
    programs: int
    options: Mapping[str, Any]
    tensors: Sequence[torch.Tensor | None]
    sizes: Sequence[int | None]
    constants: Mapping[str, int | bool]

    def signature(self) -> Signature:
        """What of it Triton compiles a binary of its own for.

        Sizes are told apart by whether they are 1, multiples of 16 or beyond 32 bits. All tensors are aligned.
        """
        names = self.kernel.arg_names[len(self.tensors) :]
        plain = getattr(self.kernel, "do_not_specialize", None)
        if plain is None:  # an interpreted kernel keeps what triton.jit was given
            plain = self.kernel.kwargs["do_not_specialize"]
        kinds = tuple(
            (size == 1, size % 16 == 0, size >= 2**31) if name not in plain else size >= 2**31
            for name, size in zip(names, self.sizes)
            if size is not None
        )
        dtypes = tuple(str(tensor.dtype) for tensor in self.tensors if tensor is not None)
        return self.kernel.__name__, *sorted(self.options.items()), dtypes, kinds, *self.constants.values()


class Compiler:
    """Describes and compiles configs in the process that it is made in, which can launch nothing from then on."""

    def __init__(self, device: str, target: CompileTarget | None) -> None:
        """Kernels are compiled for `target`, or where there is none for `device`."""
        if target is not None:
            compile_for(target)
            launch.stand_in()
            device = "cpu"
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self._batch = functools.lru_cache(maxsize=8)(self._make_batch)
        self._launches: list[_Launch] = []
        launch.run = self._record

    def describe(self, key: rules.Key, rows: Sequence[rules.Row]) -> list[Described]:
        """The binaries that each config launches."""
        return [self._describe(key, row) for row in rows]

    def compile(self, key: rules.Key, row: rules.Row, index: int) -> Binary:
        """Compile the kernel of a config's launch, or raise what Triton raises."""
        one = self._launches_of(key, row)[index]
        binary = one.kernel.warmup(*one.tensors, *one.sizes, grid=(one.programs,), **one.constants, **one.options)
        binary._init_handles()  # builds its launcher; shared memory or registers beyond the device's raise here
        return Binary(binary.metadata.shared, binary.n_regs, binary.n_spills)

    def healthy(self) -> bool:
        """Whether the next compilation stands a chance; nothing is launched here that could spoil it."""
        return True

    def has_touched_gpu(self) -> bool:
        """Whether this process has touched a GPU."""
        return bool(torch.cuda.is_initialized())

    def _describe(self, key: rules.Key, row: rules.Row) -> Described:
        try:
            return tuple(one.signature() for one in self._launches_of(key, row))
        except (TypeError, ValueError) as error:  # a wrapper refuses it
            return reason(error)

    def _launches_of(self, key: rules.Key, row: rules.Row) -> list[_Launch]:
        self._launches.clear()
        self._batch(key).run(key.op, from_row(key.op, row))
        return list(self._launches)

    def _record(
        self,
        kernel: Any,
        programs: int,
        config: ShrinkConfig | ExpandConfig | None,
        tensors: Sequence[torch.Tensor | None],
        sizes: Sequence[int | None],
        constants: Mapping[str, int | bool],
        *,
        overlap: bool = False,
    ) -> None:
        """Stands in for launch.run."""
        options = launch.options(config, overlap)
        self._launches.append(_Launch(kernel, programs, options, tensors, sizes, constants))

    def _make_batch(self, key: rules.Key) -> Workload:
        """Two segments of one adapter, with nothing in the tensors."""
        widths, tokens = key.slice_widths or (16,) * key.num_slices, key.chunk_size + 1
        columns, input_dim = key.num_slices * key.max_rank, key.input_dim or 16

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtypes.BY_NAME[key.dtype], device=self._device)

        return Workload(
            ids=[0] * tokens,
            ranks=[key.max_rank],
            slice_widths=widths,
            segments=Segments.from_sequences(
                [tokens], [0], [key.max_rank], [1.0], chunk_size=key.chunk_size, device=self._device
            ),
            x=empty(tokens, input_dim),
            lora_a=empty(1, columns, input_dim),
            lora_b=empty(1, sum(widths), key.max_rank),
            h=empty(tokens, columns),
            base_output=empty(tokens, sum(widths)),
        )


def _compiler(device: str, target: CompileTarget | None) -> Compiler:
    """One that gives way to the processes that measure and decide, which a GPU waits for."""
    os.nice(_NICENESS)
    return Compiler(device, target)


class CompileFarm:
    """Compiles configs in several processes, each binary once."""

    def __init__(self, device: torch.device, processes: int) -> None:
        """`processes` of them are started at once, and one more that describes configs."""
        target = target_of(device)
        self._scribe = Worker(Compiler, str(device), target)
        self._farm = Farm(processes, _compiler, str(device), target)
        self._farm.start("healthy", limit=COMPILE_SECONDS)
        self._described: dict[tuple[rules.Key, rules.Row], Described] = {}
        self._futures: dict[Signature, Future[Binary]] = {}

    @property
    def binaries(self) -> int:
        """How many binaries were asked for so far."""
        return len(self._futures)

    def missing(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, int]:
        """How many binaries that nobody has asked for yet each row needs."""
        described = self._describe(key, rows)
        return {
            row: sum(signature not in self._futures for signature in binaries) if isinstance(binaries, tuple) else 0
            for row, binaries in described.items()
        }

    def submit(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, list[Future[Binary]]]:
        """For each row the futures of its binaries, which give a Binary or raise Failure."""
        shape, found = _shape(key), dict[rules.Row, list[Future[Binary]]]()
        for row, binaries in self._describe(key, rows).items():
            if isinstance(binaries, str):
                refused: Future[Binary] = Future()
                refused.set_exception(Failure(binaries))
                found[row] = [refused]
                continue
            for index, signature in enumerate(binaries):
                if signature not in self._futures:
                    future = self._farm.submit("compile", shape, row, index, limit=COMPILE_SECONDS)
                    self._futures[signature] = future
            found[row] = [self._futures[signature] for signature in binaries]
        return found

    def close(self) -> None:
        """Stop every process."""
        self._farm.close()
        self._scribe.close()

    def _describe(self, key: rules.Key, rows: Sequence[rules.Row]) -> dict[rules.Row, Described]:
        shape = _shape(key)
        unknown = [row for row in dict.fromkeys(rows) if (shape, row) not in self._described]
        if unknown:
            try:
                answers = self._scribe.call("describe", shape, unknown, limit=COMPILE_SECONDS)
            except Failure as failure:
                answers = [str(failure)] * len(unknown)
            self._described.update(((shape, row), answer) for row, answer in zip(unknown, answers))
        return {row: self._described[shape, row] for row in rows}


def _shape(key: rules.Key) -> rules.Key:
    """What of a key launches know before they know the batch."""
    return key._replace(segment_bucket=1)


def outcome(futures: Sequence[Future[Binary]]) -> Binary | Failure:
    """What became of a config's compilations, which have ended."""
    for future in futures:
        if (error := future.exception()) is not None:
            return Failure(str(error))
    binaries = [future.result() for future in futures]
    return Binary(
        shared_bytes=max(binary.shared_bytes for binary in binaries),
        registers=max(binary.registers for binary in binaries),
        spills=sum(binary.spills for binary in binaries),
    )
