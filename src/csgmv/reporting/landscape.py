"""A key's sweep, seen from above: the least time that was measured at each tile and number of warps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from csgmv import records, rules
from csgmv.reporting.findings import Finding


class Place(NamedTuple):
    """Where a part of a config lies in a landscape."""

    block_m: int
    block_n: int
    num_warps: int


class Landscape(NamedTuple):
    """One kernel of a key: how many times the fastest candidate's time the fastest one at each place takes.

    Times are those of screening, which compare with each other. A place without a candidate is missing. `winner` is
    that of the full-length times; None where nothing ran but the default.
    """

    slowdowns: Mapping[Place, float]
    winner: Place | None

    @property
    def everywhere(self) -> set[Place]:
        """All places, the winner's too."""
        return {*self.slowdowns, *filter(None, [self.winner])}


def places(op: str, row: rules.Row) -> dict[str, Place]:
    """Where a row lies, by kernel: one for shrink and expand, both for add_lora."""
    return {part: Place(*(fields[name] for name in Place._fields)) for part, _, fields in rules.parts(op, row)}


def landscapes(finding: Finding) -> dict[str, Landscape]:
    """A key's landscapes by kernel."""
    op, result = finding.key.op, finding.result
    best = records.winner(result)
    winners = places(op, best.row) if best else {}
    found: dict[str, dict[Place, float]] = {}
    fastest = min(result.screened.values(), default=1.0)
    for row, p50_us in result.screened.items():
        for part, place in places(op, row).items():
            here = found.setdefault(part, {})
            here[place] = min(here.get(place, p50_us / fastest), p50_us / fastest)
    return {part: Landscape(slowdowns, winners.get(part)) for part, slowdowns in found.items()}


def winners(findings: Iterable[Finding]) -> dict[str, Counter[Place]]:
    """How many keys' winners lie at each place, by operation and kernel: 'shrink', 'expand', 'add_lora: shrink', …"""
    found: dict[str, Counter[Place]] = {}
    for finding in sorted(findings, key=lambda finding: rules.OPS.index(finding.key.op)):
        if best := records.winner(finding.result):
            for part, place in places(finding.key.op, best.row).items():
                name = part if part == finding.key.op else f"{finding.key.op}: {part}"
                found.setdefault(name, Counter())[place] += 1
    return found
