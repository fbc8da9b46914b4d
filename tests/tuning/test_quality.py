"""On a made-up GPU whose times the model does not know, few compilations lead to configs near the best there are."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from pathlib import Path

from csgmv import rules
from csgmv.config import ExpandConfig, ShrinkConfig, from_row, to_row
from csgmv.models import LayerShape
from csgmv.tuning import model, space
from csgmv.tuning.agenda import FEW_KEYS, schedule
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Batch, Plan, Task
from csgmv.tuning.record import Record
from csgmv.tuning.session import Session, Step
from searching import H200, Farm, archive

LAYERS = (LayerShape("qkv", 1024, (2048, 1024, 1024)), LayerShape("o", 2048, (1024,)))


def quirk(*what: object) -> float:
    """A factor that nobody can foresee: evenly spread over ±6 %."""
    digest = hashlib.blake2b(repr(what).encode(), digest_size=4).digest()
    return 1 + 0.12 * (int.from_bytes(digest, "little") / 2**32 - 0.5)


def hidden_us(config: model.Part, key: rules.Key, batch: Batch) -> float:
    """Nothing like the model: a sweet spot of bytes in flight an SM, a number of sums that each warp likes, waves.

    All configs are off by a quirk of their own.
    """
    rows = min(config.block_m, max(1, batch.tokens // batch.num_segments) * max(1, config.block_m // key.chunk_size))
    tiles = -(-batch.tokens // rows)
    if isinstance(config, ShrinkConfig):
        width = config.block_n * config.column_tiles
        programs = tiles * -(-key.num_slices * key.max_rank // width) * config.split_k
        work = programs * (rows + width) * key.input_dim / config.split_k
        flight = (rows + width) * config.block_k * config.num_stages
        extra = 3.0 if config.split_k > 1 else 0.0
        extra += 0.2 if config.sliced_k else 0.0
    else:
        width = config.block_n
        programs = tiles * sum(-(-size // (width * config.column_tiles)) for size in key.slice_widths)
        work = programs * config.column_tiles * width * (key.max_rank + 2 * rows)
        flight, extra = width * (key.max_rank + rows) * min(2, config.column_tiles) * 2, 0.3 * config.num_stages
    busy = min(1.0, programs / 132)
    crowd = abs(math.log2(flight * max(1.0, min(8.0, programs / 132)) / 60e3))
    warps = abs(math.log2(config.block_m * width / config.num_warps / 2048))
    times = work / (2e7 * busy) * (1 + 0.1 * crowd) * (1 + 0.08 * warps)
    capped = 1.0 if config.maxnreg is None else 1.03
    return (2.0 + extra + times + 0.004 * programs) * capped * quirk(dataclasses.astuple(config))


def hidden_of(task: Task, row: rules.Row) -> float:
    config = from_row(task.key.op, row)
    assert isinstance(config, (ShrinkConfig, ExpandConfig))
    return statistics.geometric_mean(hidden_us(config, task.key, batch) for batch in task.deciding)


class Bench:
    """Tells the hidden times."""

    def check(self, _: rules.Key, _row: rules.Row) -> float:
        """All are right."""
        return 0.0

    def screen(self, task: Task, row: rules.Row, stop_above: float) -> Screening:
        """Of the batches that decide."""
        time = hidden_of(task, row)
        return Screening(time, 24, time > stop_above)

    def race(self, key: rules.Key, batch: Batch, rows: list[rules.Row], rounds: int) -> tuple[list[list[float]], int]:
        """Without noise."""
        return [[hidden_us(from_row(key.op, row), key, batch)] * rounds for row in rows], 8  # type: ignore[arg-type]


def best_of(task: Task, start: rules.Row) -> float:
    """What walks over all values of every field, from the winner and from twelve other places, end at."""
    starts = [start, *map(to_row, space.shortlist(task, H200, 12)[0])]
    found = []
    for place in starts:
        row, least = place, hidden_of(task, place)
        while True:
            config = from_row(task.key.op, row)
            near = [
                dataclasses.replace(config, **{name: value})  # type: ignore[arg-type]
                for name, values in space.VALUES[task.key.op].items()
                for value in values
            ]
            usable = [to_row(other) for other in near if space.usable(other, task, H200)]  # type: ignore[arg-type]
            row = min(usable, key=lambda other: hidden_of(task, other))
            if hidden_of(task, row) >= least:
                break
            least = hidden_of(task, row)
        found.append(least)
    return min(found)


def test_few_compilations_lead_near_the_best(tmp_path: Path) -> None:
    """Within 6 % of it on average, of which the quirks are most, with fewer than eight binaries a key."""
    plan = Plan(LAYERS, 64, chunk_sizes=(16, 32, 64), ops=("shrink", "expand"))
    there, farm, steps = archive(tmp_path), Farm(), list[Step]()
    there.add = lambda _key, _record: None  # type: ignore[method-assign]
    agenda = schedule(plan.tasks(), there, H200.limits)
    Session(agenda, H200, Bench(), farm, there, steps.append).run()  # type: ignore[arg-type]
    assert len(steps) == len(agenda.tasks) > FEW_KEYS // 2  # so many that none is granted more than one allowance
    assert farm.binaries <= 8 * len(steps)

    def regret(record: Record, task: Task, shown: float) -> float:
        return shown / best_of(task, record.finalists[0].row) - 1

    sample = [step for step in steps[:: len(steps) // 12] if step.record is not None]
    ours = [regret(one.record, one.task, one.record.finalists[0].p50_us) for one in sample]  # type: ignore[union-attr,arg-type]
    assert statistics.mean(ours) < 0.06
    assert statistics.median(ours) < 0.05
    guessed = [
        hidden_of(one.task, to_row(space.shortlist(one.task, H200, 1)[0][0])) / one.record.finalists[0].p50_us  # type: ignore[union-attr]
        for one in sample
    ]
    assert statistics.mean(guessed) > 1.03  # what the model would have taken without a measurement
