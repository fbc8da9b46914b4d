"""Threads of which one decides what to try next while another has its configs measured.

Deciding is Python in this process, and took a third of a run while one thread did both (98 s, an H100); measuring is
mostly waiting for another process. A thread holds the one lock, `deciding`, while it decides; to have something
measured it lends that to others, and takes the other lock until the measurement has come back. So what searches share
does not change while one decides.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

# Seconds after which a thread that decides lets one go on whose measurement has come back: a GPU that waits for the
# usual five milliseconds has lost as much as a measurement takes.
_SWITCH_SECONDS = 1e-4


class Turns:
    """The two locks."""

    def __init__(self) -> None:
        """Nobody holds one."""
        self.deciding = threading.Lock()
        self._gpu = threading.Lock()

    @contextlib.contextmanager
    def others_decide(self) -> Iterator[None]:
        """Around what the thread that decides does without deciding anything."""
        self.deciding.release()
        try:
            yield
        finally:
            self.deciding.acquire()

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Around what the thread that decides has measured, and notes for its own search alone."""
        with self.others_decide(), self._gpu:
            yield

    @staticmethod
    @contextlib.contextmanager
    def quick_switches() -> Iterator[None]:
        """Meanwhile no thread of this process keeps the interpreter for long where another wants it."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            yield
        finally:
            sys.setswitchinterval(before)
