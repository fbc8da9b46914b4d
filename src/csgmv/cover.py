"""Keys, and what serves each of them: a row of its own, a borrowed one or a default, and what that is expected to lose.

What a borrowed config is expected to lose is what `python -m codegen --regret` found its step of the fallback to cost,
which the generated table says (LOSSES).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from csgmv import dispatch, fallback, rules, tuned
from csgmv.models import LayerShape
from csgmv.shares import percent
from csgmv.tuning.plan import Plan

TUNED, BORROWED, DEFAULT = STATES = ("tuned", "borrowed", "default")


class Loss(NamedTuple):
    """What a step costs: of so many keys judged, the share of its own row's time that a key loses by it."""

    keys: int
    median: float
    percentile_95: float

    def __str__(self) -> str:
        return f"{percent(self.median)}, 95 %: {percent(self.percentile_95)} ({self.keys} judged)"


@dataclasses.dataclass(frozen=True)
class Cover:
    """A key, and what serves it.

    Attributes:
        layers: that launch it.
        key: what it is looked up under.
        served: what launches get for it.
        kind: the step of the fallback by itself (`fallback.kind`).
        whence: what of the GPU, Triton version, dimensions, … that serve is not the key's own; empty for the exact key.
        loss: of this kind; None where it was not measured.
    """

    layers: tuple[str, ...]
    key: rules.Key
    kind: str
    whence: str
    served: fallback.Served
    loss: Loss | None

    @property
    def state(self) -> str:
        """One of STATES. That the default was measured best at this very key makes it a tuned one."""
        return TUNED if self.kind == "exact" else DEFAULT if self.served.source is None else BORROWED

    @property
    def expected(self) -> float | None:
        """The median loss: none for a tuned key."""
        return 0.0 if self.state == TUNED else self.loss and self.loss.median


def losses() -> Mapping[str, Mapping[str, tuple[int, int, int]]]:
    """By operation and kind of step, as generated; empty in a tree or wheel that has none."""
    return tuned.tables().losses


def covers(plan: Plan, where: dispatch.Target) -> list[Cover]:
    """What serves each key of a plan on a device, in the plan's order.

    Raises:
        ValueError: as for `Plan.tasks`.
    """
    known = dispatch.tables()
    return [_cover(task.key, plan.layers, where, known) for task in plan.tasks()]


def _cover(key: rules.Key, layers: Iterable[LayerShape], where: dispatch.Target, known: fallback.Tables) -> Cover:
    served = fallback.serve(key, where, known)
    kind = fallback.kind(served, key, where.gpu, where.triton)
    elsewhere = [str(served.gpu)] * (served.gpu != where.gpu) + [f"Triton {served.triton}"] * (
        served.triton != where.triton
    )
    nearest = served.step.rpartition(" (")[2].removesuffix(")") if served.step.endswith(")") else ""
    judged = losses().get(key.op, {}).get(kind)
    return Cover(
        layers=tuple(layer.name for layer in layers if _launches(layer, key)),
        key=key,
        kind=kind,
        whence=", ".join(filter(None, [*elsewhere, nearest])) if served.source is not None else "",
        served=served,
        loss=judged and Loss(judged[0], judged[1] / 1000, judged[2] / 1000),
    )


def _launches(layer: LayerShape, key: rules.Key) -> bool:
    """A shrink knows nothing of widths and an expand nothing of input_dim, so that layers may share them."""
    return (
        key.input_dim in (0, layer.input_dim)
        and key.slice_widths in ((), layer.slice_widths)
        and key.num_slices == len(layer.slice_widths)
    )
