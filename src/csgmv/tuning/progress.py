"""How far a run has come, and how long the rest will take if it goes on like this."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from csgmv import columns

_EVERY = 30.0  # seconds from one line to the next, where no terminal shows the progress


class Step(Protocol):
    """A part of a run that is over."""

    @property
    def done(self) -> int:
        """How much of the run is behind it."""

    @property
    def total(self) -> int:
        """All of it."""


class Progress:
    """Tells of each step on standard error: on one line of a terminal, cleared at the end; else a line now and then."""

    def __init__(self, what: str) -> None:
        """`what` is counted: "keys"."""
        self._what = what
        self._begun = self._said = time.monotonic()

    def __call__(self, step: Step) -> None:
        """Say how far it is."""
        now = time.monotonic()
        left = (now - self._begun) / step.done * (step.total - step.done)
        text = f"{step.done:,} of {step.total:,} {self._what}, about {left / 60:.1f} minutes left"
        columns.progress(text if step.done < step.total else "")
        if not sys.stderr.isatty() and now - self._said >= _EVERY:
            self._said = now
            print(text, file=sys.stderr, flush=True)
