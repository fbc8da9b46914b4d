"""Finding a key's best config: generators that ask for compilations and time what comes back.

Compiling is what takes long (about a second of a processor a binary, against a few milliseconds to screen a config),
and most keys of a family can share binaries. So what a search proposes is ordered by what the model, and the keys that
were searched before, say of it; what is compiled already is screened freely, and of the rest a few are compiled: more
at the first keys of a family, which lie far apart, than at those between them. From the best so far the search walks to
neighbours; the later keys of a family only as long as that gains something. `joint` does the same for add_lora.

A search yields the rows that it wants compiled and is sent what became of each; only within `Shared.measuring` does it
use the GPU. So few threads drive many searches, and the GPU measures for one while processes compile for others.
"""

from __future__ import annotations

from collections.abc import Callable

from csgmv.config import to_row
from csgmv.tuning import model, space
from csgmv.tuning.hunt import ENOUGH, Allowance, Hunt, Missing, Search, Shared, in_turns, part_of
from csgmv.tuning.joint import Joint
from csgmv.tuning.plan import Task, parts
from csgmv.tuning.race import Bench
from csgmv.tuning.record import Record

SHORTLIST = 32  # tilings that are looked at more closely
NEIGHBOURS_OF = 2  # the best so many configs
# Rounds: the shortlist, then walks. The first keys of a family, then the others.
EXPLORE = {
    True: (Allowance(8, 12), Allowance(4, 10), Allowance(4, 10)),
    False: (Allowance(1, 12), Allowance(2, 10), Allowance(1, 8)),
}


def search(
    task: Task,
    device: model.Device,
    bench: Bench,
    shared: Shared,
    missing: Missing,
    save: Callable[[Task, Record], None] | None,
) -> Search:
    """Search one key; its ranking is left in `shared`, its record is handed to `save`.

    With `save` None the race is left out: the key is searched for the sake of an add_lora key that it is part of.
    An add_lora search waits (it yields nothing to compile) until the rankings of its parts are there. `missing` tells
    how many binaries of a row would have to be compiled.
    """
    if task.key.op == "add_lora":
        while any(part not in shared.rankings for part in parts(task.key)):
            yield ()
        hunt = Hunt(task, device, bench, shared, missing)
        yield from Joint(hunt).run()
    else:
        hunt = Hunt(task, device, bench, shared, missing)
        yield from _explore(hunt)
        shared.experience.learn(task, hunt.ranking.screened)
    if save is not None and (record := hunt.race()) is not None:
        save(task, record)
    shared.rankings[task.key] = hunt.ranking  # which from now on does not change


def _explore(hunt: Hunt) -> Search:
    """Search a key of one kernel."""
    task, device, ranking, estimate = hunt.task, hunt.device, hunt.ranking, hunt.shared.experience.estimate
    first, ranking.pruned = space.shortlist(task, device, SHORTLIST, estimate=estimate)
    pooled = [
        config for config in (part_of(task.key.op, row) for row in hunt.pool) if space.usable(config, task, device)
    ]
    pooled = sorted(pooled, key=lambda config: model.predicted_us(config, task, device))[:SHORTLIST]
    pooled.sort(key=lambda config: estimate(config, task))
    rounds = EXPLORE[hunt.leads]
    # What is compiled already comes first; the shortlist begins with configs that are unlike each other.
    proposed = {to_row(config): estimate(config, task) for config in [*pooled, *first]}
    yield from hunt.screen([*hunt.first(), *hunt.choose(proposed, rounds[0])])
    for allowance in rounds[1:]:
        before = ranking.least()
        best = [part_of(task.key.op, row) for row in ranking.best()[:NEIGHBOURS_OF]]
        guesses = {to_row(config): ("", estimate(config, task)) for config in best}
        for config in best:
            for name, other in space.neighbours(config, task, device):
                guesses.setdefault(to_row(other), (name, estimate(other, task, like=config)))
        yield from hunt.screen(hunt.choose(in_turns(guesses), allowance))
        if not hunt.leads and ranking.least() > (1 - ENOUGH) * before:
            return
