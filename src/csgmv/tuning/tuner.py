"""A run of the tuner on one GPU: what there is to do, what does it, and where its results are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from csgmv import dispatch, fallback, rules
from csgmv.tuning.agenda import schedule
from csgmv.tuning.hunt import Lent
from csgmv.tuning.plan import Keys, Plan
from csgmv.tuning.record import Archive
from csgmv.tuning.rig import Gpu, Rig, Site, spare_processes
from csgmv.tuning.session import Report, Session, Step, Summary

LENT = 3  # rows of the table that a search begins with: what it leaves to chance, an earlier one may have found


def _say_nothing(_: Step) -> None:
    pass


def tune(
    plan: Plan | Keys,
    folder: Path,
    *,
    device: torch.device | None = None,
    force: bool = False,
    time_budget: float | None = None,
    processes: int | None = None,
    seed: int = 0,
    report: Report = _say_nothing,
    rig: Rig | None = None,
) -> Summary:
    """Find the best config of every key in the plan on one GPU, and put what was measured into `folder`.

    A key whose record was measured with these kernels in this environment is left as it is. The files are whole
    at any moment, so a run may be killed and started again.

    Args:
        plan: the keys.
        folder: of the raw results ("configs"); see record.Archive.
        device: a GPU; None is the current one.
        force: measure also what is there already.
        time_budget: seconds after which no further key is finished; None for as long as it takes.
        processes: that compile; None for all the machine's processors but two.
        seed: of the random tensors.
        report: called after each key, by one thread at a time.
        rig: what tunes; None is the device.

    Raises:
        ValueError: the plan is empty or impossible, or a file in the folder is broken.
        RuntimeError: there is no GPU.
    """
    started = time.monotonic()
    rig = Gpu(device) if rig is None else rig
    site = rig.survey(seed)
    archive = Archive(folder, site.gpu, site.triton, site.run)
    agenda = schedule(plan.tasks(), archive, site.device.limits, force)
    with rig.opened(seed, processes or spare_processes()) as (bench, farm):
        session = Session(agenda, site.device, bench, farm, archive, report, lent=lent(site), threads=rig.threads)
        return session.run(None if time_budget is None else started + time_budget)


def lent(site: Site) -> Lent:
    """What the table of this process, with what is laid over it, has for keys that are launched at a site."""
    where = fallback.Target(
        site.gpu, site.triton, site.device.limits, site.run.compute_capability, site.device.sm_count
    )
    known = dispatch.tables()

    def rows(key: rules.Key) -> Sequence[rules.Row]:
        found = dict[rules.Row, None]()
        for served in fallback.offers(key, where, known):
            if len(found) == LENT:
                break
            if served.row is not None:
                found[served.row] = None
        return list(found)

    return rows
