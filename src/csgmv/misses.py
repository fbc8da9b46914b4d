"""Which launches got a config that was not tuned for their very key: collected on request, for the tuner to go through.

A thread of its own writes them down, so that launches go on writing nothing.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from csgmv import checks, dispatch, files, rules

SCHEMA = 1
_PAUSE = 0.1  # seconds from one write to the next: a server that starts finds hundreds of keys in a row


class Miss(NamedTuple):
    """A key that was looked up, on which GPU and under which Triton version it was."""

    gpu: str
    triton: str
    key: rules.Key


_SIZE, _COUNT, _NAME = checks.integer(0), checks.integer(1), checks.text(r"[ -~]{0,200}", "up to 200 ASCII characters")


def _key_faults(value: Mapping[str, Any], path: str) -> Iterator[str]:
    for fault in rules.key_faults(_miss(value).key):
        yield f"{path}.{fault}"


_FILE = checks.record(
    schema=checks.exactly(SCHEMA),
    misses=checks.array(
        checks.then(
            checks.record(
                gpu=_NAME,
                triton=_NAME,
                op=_NAME,
                input_dim=_SIZE,
                slice_widths=checks.array(_SIZE),
                max_rank=_COUNT,
                num_slices=_COUNT,
                dtype=_NAME,
                chunk_size=_COUNT,
                segment_bucket=_COUNT,
                step=checks.phrase,
            ),
            _key_faults,
        )
    ),
)


def _miss(value: Mapping[str, Any]) -> Miss:
    fields = {name: value[name] for name in rules.Key._fields}
    return Miss(value["gpu"], value["triton"], rules.Key(**{**fields, "slice_widths": tuple(value["slice_widths"])}))


def read(path: Path) -> dict[Miss, str]:
    """The misses in a file, each with the step of the fallback that served it.

    Raises:
        ValueError: with every fault of the file, one a line: the file, the field, what was expected, what came.
        OSError: the file cannot be read.
    """
    try:
        content = checks.parse(path.read_text(encoding="utf-8"))
        faults = list(_FILE(content, "$"))
    except RecursionError:
        faults = ["$: nested too deeply"]
    except ValueError as error:
        faults = [f"$: {error}"]
    if faults:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in faults))
    return {_miss(value): value["step"] for value in content["misses"]}


def _text(found: Mapping[Miss, str]) -> str:
    """JSON with one miss a line."""
    lines = [
        json.dumps({"gpu": miss.gpu, "triton": miss.triton, **miss.key._asdict(), "step": step}, ensure_ascii=False)
        for miss, step in found.items()
    ]
    return f'{{"schema": {SCHEMA}, "misses": [\n' + ",\n".join(lines) + "\n]}\n"


class _Recorder:
    """Collects misses and keeps a file of them."""

    def __init__(self, path: Path) -> None:
        """Raises what `read` and `files.replace` do, so that nobody waits for a file that will never come."""
        self._path = path
        self._found = read(path) if os.path.lexists(path) else {}
        self._failure: OSError | None = None
        self._new, self._over = threading.Event(), threading.Event()
        files.replace(path, _text(self._found))
        self._thread = threading.Thread(target=self._keep, name="csgmv.record_misses", daemon=True)
        self._thread.start()

    def watch(self, device: torch.device, key: rules.Key, batch_invariant: bool, choice: dispatch.Choice) -> None:
        """Note a key unless its choice is its own."""
        where, key = dispatch.target(device), dispatch.invariant_key(key) if batch_invariant else key
        miss = Miss(where.gpu, where.triton, key)
        if not dispatch.is_exact(choice, key, where) and miss not in self._found:
            self._found[miss] = choice.step
            self._new.set()

    def end(self) -> None:
        """Write what has not been written yet.

        Raises:
            OSError: the file could not be written.
        """
        self._over.set()
        self._new.set()
        self._thread.join()  # in a fork of the process there is none, and the file stays as it is
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        while self._new.wait():
            self._new.clear()
            over = self._over.is_set()
            try:
                files.replace(self._path, _text(self._found.copy()))
                self._failure = None
            except OSError as error:
                self._failure = error
            if over:
                return
            self._over.wait(_PAUSE)


_lock = threading.Lock()
_recorders: list[_Recorder] = []  # at most one


def record_misses(path: str | os.PathLike[str] | None) -> None:
    """Keep a file of the keys whose config was tuned for another key or is a default, for `csgmv tune --from-misses`.

    A key is noted once, when a launch first looks it up, or at once if that has been. What `csgmv.warmup` compiles
    counts as launched. The file is replaced as a whole a moment later, by a thread of its own, and at exit; a process
    that is killed leaves it complete but for the last tenth of a second. Each process needs a file of its own; a fork
    of one that records writes nothing.

    Args:
        path: of the file; misses that it has already are kept. None ends the recording, as does another path.

    Raises:
        TypeError: path is none.
        ValueError: path is a folder's or no file's; or there is a file, and it is not one of misses, which is left as
            it is.
        OSError: the file cannot be read or written, or, on ending, could not be written.
    """
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a str, a PathLike or None, got {type(path).__name__}")
    if path is not None:
        _check_file(os.fspath(path))
    with _lock:
        _end()
        if path is None:
            return
        recorder = _Recorder(Path(path))
        _recorders.append(recorder)
        dispatch.watchers.append(recorder.watch)  # before what is remembered, so that nothing falls between
        for asked, choice in dispatch.remembered():
            recorder.watch(*asked, choice)


def _check_file(path: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"path: expected a file, got {path!r}")
    if Path(path).is_dir():
        raise ValueError(f"path: expected a file, got the folder {path}")


@atexit.register
def _end() -> None:
    dispatch.watchers.clear()
    while _recorders:
        _recorders.pop().end()
