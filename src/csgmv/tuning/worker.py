"""Processes that do what may crash or hang, so that it costs one candidate and not the run."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

_START_SECONDS = 180.0  # importing torch is slow on a cold disk
# Imported once, by the server that processes are forked from: torch alone takes 5 s of a core. Nothing of csgmv: until
# Python 3.13 the server does not know the caller's sys.path, and might find another copy.
_PRELOADED = ["torch", "triton"]
_GRACE_SECONDS = 0.5  # for a process to end by itself once its pipe is closed


class Failure(Exception):
    """Why a call did not give a result; the message fits in a record: one short line without numbers that vary."""


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def prepare() -> None:
    """Start the server that processes are forked from; it gets ready while the caller does other things.

    The server never touches a GPU, so that those that it forks can.
    """
    _context()
    forkserver.ensure_running()


def reason(error: Exception) -> str:
    """The kind of an error and the first line of its message, for a Failure."""
    lines = str(error).strip().splitlines()
    text = "".join(filter(str.isprintable, lines[0] if lines else ""))[:120]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _serve(
    connection: Connection, environment: Mapping[str, str], factory: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """The worker process: build the service, then answer calls of its methods until the other end closes.

    The environment is that of the process that started this one, and not of the day when the server was: torch.compile,
    for one, names another folder for Triton's cache.

    An answer is (the result or a reason, whether it is a reason, whether the process ends with it).
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes the pipe
    with contextlib.suppress(EOFError, OSError):  # the other end has closed: nobody waits for an answer any more
        try:
            service = factory(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            connection.send((reason(error), True, True))
            return
        connection.send((None, False, False))
        while True:
            method, arguments = connection.recv()
            try:
                answer = getattr(service, method)(*arguments), False, False
            except Exception as error:  # noqa: BLE001 - it costs one candidate, not the run
                answer = reason(error), True, not service.healthy()
            connection.send(answer)
            if answer[2]:
                return


class Worker:
    """A service in a process of its own. A call that crashes or hangs it fails; the next one gets a fresh process."""

    def __init__(self, factory: Callable[..., Any], *args: Any) -> None:
        """Nothing is started yet. `factory(*args)` builds the service there; both have to be picklable.

        A service has the methods that are called and `healthy() -> bool`, asked after a call that raised.
        """
        self._factory, self._args = factory, args
        self._process: Any = None
        self._connection: Connection | None = None
        self._ready = self._killed = False

    def start(self) -> None:
        """Start the process without waiting until the service is built; else the first call does."""
        if self._connection is None:
            self._start()

    def call(self, method: str, *args: Any, limit: float) -> Any:
        """What the service's method returns.

        Raises:
            Failure: it raised, the process died, or `limit` seconds went by.
        """
        try:
            self.start()
            assert self._connection is not None
            if not self._ready:
                self._receive(_START_SECONDS)
                self._ready = True
            self._connection.send((method, args))
            return self._receive(limit)
        except (EOFError, OSError):
            raise Failure(f"crashed with exit status {self._stop()}") from None

    def close(self) -> None:
        """Stop the process, if there is one."""
        if self._connection is not None:
            self._stop()

    def kill(self) -> None:
        """End the process at once and for good, also while another thread starts it or waits for its answer."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def _start(self) -> None:
        context = _context()
        self._connection, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, dict(os.environ), self._factory, self._args), daemon=True)
        process.start()
        there.close()
        self._process = process  # not before: a process that has not been started cannot be killed
        if self._killed:
            process.kill()
        self._ready = False

    def _receive(self, limit: float) -> Any:
        assert self._connection is not None
        if not self._connection.poll(limit):
            self._stop()
            raise Failure(f"took longer than {limit:g} s")
        answer, failed, ended = self._connection.recv()
        if ended:
            self._stop()
        if failed:
            raise Failure(answer)
        return answer

    def _stop(self) -> int | None:
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        self._process.join(_GRACE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        status: int | None = self._process.exitcode
        return status


class Farm:
    """Several workers with the same service; calls are queued and answered by whichever is free."""

    def __init__(self, size: int, factory: Callable[..., Any], *args: Any) -> None:
        """`size` processes at most, each started when it is first needed."""
        self._size = size
        self._make: Callable[[], Worker] = functools.partial(Worker, factory, *args)
        self._closed = False
        self._own = threading.local()
        self._workers: list[Worker] = []
        self._pool = ThreadPoolExecutor(size)

    def start(self, method: str, limit: float) -> None:
        """Start every process now, by a call of a method whose answer nobody waits for."""
        for _ in range(self._size):
            self.submit(method, limit=limit)

    def submit(self, method: str, *args: Any, limit: float) -> Future[Any]:
        """Queue a call; the future gives what the method returns, or raises Failure."""
        return self._pool.submit(self._call, method, args, limit)

    def close(self) -> None:
        """Drop what is queued and stop every process, also those that are at work."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._pool.shutdown(wait=True)

    def _call(self, method: str, args: tuple[Any, ...], limit: float) -> Any:
        if self._closed:
            raise Failure("stopped")
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = self._make()
            self._workers.append(worker)
        return worker.call(method, *args, limit=limit)
