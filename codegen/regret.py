"""Choice → how much slower keys would be without their own rows: the fallback, judged by what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

from codegen.choose import Choice, Target
from codegen.defaults import on_average
from codegen.source import fallback, records, rules


class Regret(NamedTuple):
    """One key without its own row.

    Attributes:
        left_out: what the table was made without: "key", "dimensions", "rank", …
        result: what was measured at the key.
        served: what the fallback found instead.
        slowdown: times what the key's own row takes; None if the borrowed row was not measured there.
    """

    left_out: str
    result: records.Result
    served: fallback.Served
    slowdown: float | None

    @property
    def step(self) -> str:
        """The step of the fallback, without what it found: "nearest rank"."""
        return ", ".join(part.partition(" (")[0] for part in self.served.step.split(", ") if not part.startswith("Triton"))


def _place(result: records.Result) -> tuple[Target, rules.Key]:
    return (result.gpu, result.triton), result.key


def _dimensions(result: records.Result) -> Hashable:
    key = result.key
    return key.op, key.input_dim, key.slice_widths, key.num_slices


# What is left out: everything that shares this with the key. Beyond a key itself nothing of what it stands for may
# stay, so that dimensions go with all their ranks, and ranks with all their dimensions.
_WAYS: Mapping[str, Callable[[records.Result], Hashable]] = {
    "key": _place,
    "dimensions": _dimensions,
    "rank": lambda result: (result.key.op, result.key.max_rank),
    "Triton version": lambda result: (result.gpu, result.triton),
    "GPU": lambda result: result.gpu,
    "all rows": _dimensions,  # the architecture's default remains, made without these dimensions
    "everything": lambda _: None,
}

_ELSEWHERE = ("Triton version", "GPU")


def _tables(choice: Choice, results: Sequence[records.Result], way: str) -> fallback.Tables:
    """What the codegen would make of some of the results, as far as this way of leaving out leaves it standing."""
    rows: dict[Target, dict[rules.Key, rules.Row | None]] = defaultdict(dict)
    for result in results if way != "all rows" else ():
        target, key = _place(result)
        rows[target][key] = choice.table[target][key]
    # A single key's share in a default is small, and the default mostly out of reach.
    defaults = choice.defaults if way == "key" else on_average(results)
    return fallback.Tables(rows, choice.gpus, defaults)


def _regret(choice: Choice, way: str, result: records.Result, tables: fallback.Tables) -> Regret:
    target, key = _place(result)
    limits = rules.LIMITS.get(result.architecture, rules.Limits(1 << 30, programmatic_launch=True))
    where = fallback.Target(*target, limits, *choice.gpus[result.gpu])
    served = fallback.serve(key, where, tables)
    own, borrowed = (records.slowdown(result, row) for row in (choice.table[target][key], served.row))
    assert own is not None
    return Regret(way, result, served, None if borrowed is None else borrowed / own)


def regrets(choice: Choice) -> Iterator[Regret]:
    """Every key's regret for every way of leaving out.

    A Triton version or GPU is left out where the architecture has another one.
    """
    for way, shared in _WAYS.items():
        groups: dict[Hashable, list[records.Result]] = defaultdict(list)
        for result in choice.results:
            groups[shared(result)].append(result)
        for name, group in groups.items():
            rest = [result for result in choice.results if shared(result) != name]
            if way in _ELSEWHERE and not any(other.architecture == group[0].architecture for other in rest):
                continue
            tables = _tables(choice, rest, way)
            yield from (_regret(choice, way, result, tables) for result in group)
