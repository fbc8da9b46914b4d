"""A mode in which every launch looks at its batch first, which costs nothing while it is off.

Launches have no branch for it: they look for a plan, as always, and in this mode there is none to be found. So each
takes the way of a first call, on which arguments are checked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from csgmv import launch


class _NoPlans(dict[tuple[Any, ...], Any]):
    """Stands before the plans: finds none and keeps none."""

    def __init__(self, plans: dict[tuple[Any, ...], Any]) -> None:
        super().__init__()
        self.plans = plans

    def get(self, _key: object, _default: object = None) -> None:
        """No plan."""

    def __setitem__(self, _key: object, _plan: object) -> None:
        pass

    def clear(self) -> None:
        """Forget the plans behind."""
        self.plans.clear()


_lock = threading.Lock()
_entered: list[object] = []  # by whichever threads, one within the other or not


@contextlib.contextmanager
def debug() -> Iterator[None]:
    """Within this, every launch of the process first checks its batch as `Segments.check` does: a debug mode.

    For batches that come from elsewhere (the `Segments` constructor, `csgmv.integrations.sglang`), and for contents
    that the host never sees: what is wrong with them is told by name, index and value, instead of by an illegal access
    or not at all. Each launch then waits for the GPU, and takes the host far longer. Compiled graphs (`torch.compile`)
    are checked too; a launch that is being captured into a CUDA graph is not, nor are replays: call `Segments.check`
    before these. It is one mode for all threads, and may be entered several times.

    >>> with csgmv.debug():
    ...     csgmv.add_lora(base_output, x, lora_a, lora_b, segments, slice_offsets)
    ValueError: segments.permutation[17]: expected a row of x, 0 … 99, got 100

    Raises:
        TypeError, ValueError: not here, but from each operation that is given a bad batch; nothing is launched then.
    """
    token = object()
    with _lock:
        if not _entered:
            launch.plans, launch.debugging = _NoPlans(launch.plans), True
        _entered.append(token)
    try:
        yield
    finally:
        with _lock:
            _entered.remove(token)
            if not _entered:
                assert isinstance(launch.plans, _NoPlans)
                launch.plans, launch.debugging = launch.plans.plans, False
