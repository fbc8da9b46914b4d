"""What crashes or hangs in a worker costs that call, and the next call is answered."""

from __future__ import annotations

import os
import time

import pytest

from csgmv.tuning.worker import Failure, Farm, Worker

SECONDS = 30.0


class Service:
    """Counts its calls, so that a fresh process can be told from an old one."""

    def __init__(self, base: int) -> None:
        self._count = base
        self._broken = False

    def count(self) -> int:
        """How often it was called."""
        self._count += 1
        return self._count

    def variable(self, name: str) -> str | None:
        """Of its environment."""
        return os.environ.get(name)

    def fail(self) -> None:
        """Raise."""
        raise ValueError("no good\nsecond line")

    def break_down(self) -> None:
        """Raise, for good."""
        self._broken = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def crash(self) -> None:
        """Die."""
        os._exit(7)

    def hang(self) -> None:
        """Answer much too late."""
        time.sleep(SECONDS)

    def healthy(self) -> bool:
        """False once broken down."""
        return not self._broken


def refuse() -> Service:
    raise OSError("no device")


@pytest.fixture
def worker():
    one = Worker(Service, 10)
    yield one
    one.close()


def test_a_call_that_raises_leaves_the_process_as_it_is(worker: Worker) -> None:
    """The failure has the kind and the first line of the message."""
    assert worker.call("count", limit=SECONDS) == 11
    with pytest.raises(Failure, match=r"^ValueError: no good$"):
        worker.call("fail", limit=SECONDS)
    assert worker.call("count", limit=SECONDS) == 12


def test_after_the_worst_a_fresh_process_answers(worker: Worker) -> None:
    """A crash, a hang, and a process that can no longer reach its GPU."""
    for method, limit, message in (
        ("crash", SECONDS, "crashed with exit status 7"),
        ("hang", 0.2, r"took longer than 0\.2 s"),
        ("break_down", SECONDS, "RuntimeError: CUDA error"),
    ):
        assert worker.call("count", limit=SECONDS) == 11
        with pytest.raises(Failure, match=message):
            worker.call(method, limit=limit)
    assert worker.call("count", limit=SECONDS) == 11


def test_a_service_that_cannot_be_built_says_why() -> None:
    """Each call tells, none hangs."""
    worker = Worker(refuse)
    for _ in range(2):
        with pytest.raises(Failure, match="OSError: no device"):
            worker.call("count", limit=SECONDS)


def test_a_process_has_the_environment_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of that of the server, which may be older."""
    for value in ("early", "late"):
        monkeypatch.setenv("CSGMV_TEST_OF_WORKERS", value)
        worker = Worker(Service, 0)
        try:
            assert worker.call("variable", "CSGMV_TEST_OF_WORKERS", limit=SECONDS) == value
        finally:
            worker.close()


def test_a_worker_started_ahead_answers_like_any_other() -> None:
    """Also one whose process has died before the first call: that call fails, the next is answered."""
    worker = Worker(Service, 10)
    worker.start()
    worker.start()
    assert worker.call("count", limit=SECONDS) == 11
    worker.close()
    worker.start()
    worker._process.kill()
    with pytest.raises(Failure, match="crashed"):
        worker.call("count", limit=SECONDS)
    assert worker.call("count", limit=SECONDS) == 11
    worker.close()


def test_a_worker_that_was_killed_stays_so() -> None:
    """Also where its process was only about to be started, in another thread."""
    worker = Worker(Service, 10)
    worker.kill()
    with pytest.raises(Failure, match="crashed"):
        worker.call("count", limit=SECONDS)


def test_a_farm_starts_all_its_processes_ahead() -> None:
    """A first call each, whose answers nobody waits for."""
    farm = Farm(2, Service, 0)
    farm.start("count", limit=SECONDS)
    counts = [farm.submit("count", limit=SECONDS).result() for _ in range(4)]
    assert min(counts) >= 1
    assert sum(counts) > 4
    farm.close()


def test_a_farm_loses_only_the_call_that_crashed() -> None:
    """The calls before and behind it in the queue are answered."""
    farm = Farm(2, Service, 0)
    futures = [farm.submit(name, limit=SECONDS) for name in ("count", "crash", "count", "fail", "count")]
    assert [future.exception() is None for future in futures] == [True, False, True, False, True]
    farm.close()


def test_a_farm_stops_at_once() -> None:
    """Also when its processes hang and more is queued."""
    farm = Farm(1, Service, 0)
    farm.submit("count", limit=SECONDS).result()
    hanging = [farm.submit("hang", limit=SECONDS) for _ in range(3)]
    begun = time.monotonic()
    time.sleep(0.2)
    farm.close()
    assert time.monotonic() - begun < SECONDS / 3
    assert all(future.done() for future in hanging)
