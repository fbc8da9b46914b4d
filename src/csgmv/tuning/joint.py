"""The search of add_lora keys: the pair's own time decides, since the best parts by themselves are not the best pair.

Inside the pair partial sums cost next to nothing, h is staged by position, and the second kernel's loads overlap with
the first kernel. What couples the parts is split_k alone (expand sums the partials that shrink leaves); given that,
each part is searched with the other one fixed. What a part is likely to be worth comes from the searches of the parts
by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from csgmv import footprint, rules
from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig, from_row, to_row
from csgmv.tuning import model, space
from csgmv.tuning.hunt import ENOUGH, Allowance, Hunt, Search, in_turns, part_of
from csgmv.tuning.plan import Task, parts

SHORT_US = 20.0  # below this the overlap of the two kernels mostly pays, so it is tried first
BEARABLE = 1.5  # times the best guess: what another split_k may be expected to take
CLOSELY = 24  # configs of a part that are looked at more closely
# Rounds: values of split_k; each part in turn; neighbours of the best. The first keys of a family, then the others.
JOIN = {
    True: (Allowance(6, 6), Allowance(6, 10), Allowance(4, 10), Allowance(2, 8)),
    False: (Allowance(2, 6), Allowance(2, 10), Allowance(1, 8), Allowance(1, 6)),
}
P = TypeVar("P", ShrinkConfig, ExpandConfig)


class Joint:
    """The search of an add_lora key under way."""

    def __init__(self, hunt: Hunt) -> None:
        """`hunt` is that of the key; the rankings of its parts are there."""
        self._hunt, self._device = hunt, hunt.device
        shrink, expand = (hunt.task._replace(key=part) for part in parts(hunt.task.key))
        self._tasks: dict[str, Task] = {"shrink": shrink, "expand": expand}
        self._guesses: dict[model.Part, float] = {}

    def run(self) -> Search:
        """Screen splits, then parts, then neighbours; the later keys of a family stop once that gains nothing."""
        hunt, rounds = self._hunt, JOIN[self._hunt.leads]
        shrinks, expands = self._shrinks(), self._expands()
        if not shrinks or not expands:
            yield from hunt.screen(hunt.first())
            return
        by_split: dict[int, list[ShrinkConfig]] = {}
        for config in shrinks:
            by_split.setdefault(config.split_k, []).append(config)
        guess = self._guess(shrinks[0]) + self._guess(expands[0])
        overlap = self._device.limits.programmatic_launch and guess < SHORT_US
        bound = BEARABLE * self._guess(shrinks[0])
        leaders = [own[0] for own in by_split.values() if self._guess(own[0]) <= bound]
        first = [AddLoraConfig(config, expands[0], overlap) for config in leaders]
        yield from hunt.screen([*hunt.first(), *self._choose(first, rounds[0])])
        for allowance in rounds[1:]:
            best = self._best()
            if best is None:
                return
            before = hunt.ranking.least()
            if allowance is rounds[1]:
                around = [replace(best, overlap=not best.overlap)]
                around += _taking_turns(
                    [replace(best, shrink=config) for config in by_split.get(best.shrink.split_k, ())],
                    [replace(best, expand=config) for config in expands],
                    [replace(best, shrink=config) for config in leaders],
                )
            else:
                around = _taking_turns(
                    [replace(best, shrink=config) for config in self._near(best.shrink)],
                    [replace(best, expand=config) for config in self._near(best.expand)],
                    [replace(best, overlap=not best.overlap)],
                )
            yield from hunt.screen(self._choose(around, allowance))
            if not hunt.leads and hunt.ranking.least() > (1 - ENOUGH) * before:
                return

    def _shrinks(self) -> list[ShrinkConfig]:
        """The first part's configs, the most promising first, each with every split_k: binaries do not depend on it."""
        found = [config for config in self._proposed("shrink") if isinstance(config, ShrinkConfig)]
        for config in found[:]:
            found += space.splits(config, self._tasks["shrink"], self._device)
        return self._ordered(found)

    def _expands(self) -> list[ExpandConfig]:
        """The second part's configs, the most promising first."""
        return self._ordered(config for config in self._proposed("expand") if isinstance(config, ExpandConfig))

    def _proposed(self, op: str) -> list[model.Part]:
        """A part's grid, what it was searched with by itself, and what pairs of the family were made of."""
        task, hunt = self._tasks[op], self._hunt
        grid, pruned = space.shortlist(
            task, self._device, CLOSELY, paired=True, estimate=lambda config, _: self._guess(config)
        )
        hunt.ranking.pruned.update(pruned)
        cut = len(rules.FIELDS["shrink"])
        pooled = {row[:cut] if op == "shrink" else row[cut:-1] for row in hunt.pool}
        searched = hunt.shared.rankings[task.key].best()[:CLOSELY]
        known = [part_of(op, row) for row in (*searched, *sorted(pooled, key=rules.row_order))]
        return [*grid, *(config for config in known if space.usable(config, task, self._device))]

    def _ordered(self, configs: Iterable[P]) -> list[P]:
        return sorted(dict.fromkeys(configs), key=lambda config: (self._guess(config), rules.row_order(to_row(config))))

    def _near(self, config: P) -> list[P]:
        task, guesses = self._tasks[config.op], dict[rules.Row, tuple[str, float]]()
        for name, other in space.neighbours(config, task, self._device, paired=True):
            guesses[to_row(other)] = name, self._guess(other, like=config)
        found = [part_of(config.op, row) for row in in_turns(guesses)]
        return [other for other in found if isinstance(other, type(config))]

    def _guess(self, config: model.Part, like: model.Part | None = None) -> float:
        if config not in self._guesses:
            task = self._tasks[config.op]
            self._guesses[config] = self._hunt.shared.experience.estimate(config, task, paired=True, like=like)
        return self._guesses[config]

    def _choose(self, configs: Iterable[AddLoraConfig], allowance: Allowance) -> list[rules.Row]:
        key, limits = self._hunt.task.key, self._device.limits
        guesses = {
            to_row(config): self._guess(config.shrink) + self._guess(config.expand)
            for config in configs
            if footprint.resource_fault(to_row(config), key, limits) is None
        }
        return self._hunt.choose(guesses, allowance)

    def _best(self) -> AddLoraConfig | None:
        """The fastest pair; None where nothing works."""
        rows = self._hunt.ranking.best()
        best = from_row("add_lora", rows[0]) if rows else None
        assert best is None or isinstance(best, AddLoraConfig)
        return best


def _taking_turns(*lists: Sequence[AddLoraConfig]) -> list[AddLoraConfig]:
    """One of each list, then the next of each, so that an allowance is shared out among them."""
    longest = max(map(len, lists))
    return [one[index] for index in range(longest) for one in lists if index < len(one)]
