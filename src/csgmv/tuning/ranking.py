"""What a search knows of a key's configs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from csgmv import rules
from csgmv.tuning.compile import Binary
from csgmv.tuning.lab import Screening
from csgmv.tuning.worker import Failure


@dataclass
class Ranking:
    """A key's configs, as far as they were tried.

    Attributes:
        default: the built-in default's row; None where the device cannot run it.
        screened: the rows that work.
        binaries: what the screened rows take; of this run only.
        refused: the rows that do not work.
        failed: how many of these, by reason.
        pruned: how many configs were never tried, by reason.
        max_error: the largest error that the accuracy check found in a screened row.
    """

    default: rules.Row | None = None
    screened: dict[rules.Row, Screening] = field(default_factory=dict)
    binaries: dict[rules.Row, Binary] = field(default_factory=dict)
    refused: set[rules.Row] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)
    pruned: Counter[str] = field(default_factory=Counter)
    max_error: float = 0.0

    def best(self) -> list[rules.Row]:
        """The rows that were screened, the fastest first."""
        return sorted(self.screened, key=lambda row: (self.screened[row].p50_us, rules.row_order(row)))

    def least(self) -> float:
        """The time of the fastest, in microseconds; infinite where there is none."""
        return min((screening.p50_us for screening in self.screened.values()), default=math.inf)

    def unknown(self, rows: Iterable[rules.Row]) -> list[rules.Row]:
        """Those of the rows that have not been tried, each once."""
        return [row for row in dict.fromkeys(rows) if row not in self.screened and row not in self.refused]

    def refuse(self, row: rules.Row, failure: Failure) -> None:
        """Count a row as failed."""
        self.screened.pop(row, None)
        self.refused.add(row)
        self.failed[str(failure)] += 1
