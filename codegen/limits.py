"""What borrowing may lose at most: `[tool.csgmv.regret]` in pyproject.toml. Above that there is no table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from codegen.regret import Regret, known
from codegen.source import ROOT, shares

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # hatchling brings it

PYPROJECT = ROOT / "pyproject.toml"


class MostLost(NamedTuple):
    """Of the losses of keys that are left out each by itself ("key" in the report).

    Attributes:
        median, percentile_95: shares of a key's own time.
        least: so many losses have to be known; of fewer, neither figure says much.
    """

    median: float
    percentile_95: float
    least: int


class Excessive(ValueError):
    """What borrowing loses is above the limits."""


def read(pyproject: Path = PYPROJECT) -> MostLost:
    """The limits of this source tree.

    Raises:
        ValueError: they are not there, or are no numbers.
    """
    settings = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("csgmv", {}).get("regret", {})
    values = [settings.get(name.replace("_", "-")) for name in MostLost._fields]
    if settings.keys() != {name.replace("_", "-") for name in MostLost._fields} or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    ):
        wanted = ", ".join(name.replace("_", "-") for name in MostLost._fields)
        raise ValueError(f"{pyproject}: expected numbers for {wanted} in [tool.csgmv.regret], got {settings}")
    return MostLost(*values)


def enforce(found: Iterable[Regret], limits: MostLost) -> None:
    """Refuse what loses too much.

    Raises:
        Excessive: keys that are left out, each by itself, lose more than they may.
    """
    told = shares.summed(known(regret for regret in found if regret.left_out == "key"))
    if told is None or told.keys < limits.least:
        return
    for name, most, loss in (
        ("median", limits.median, told.median),
        ("95th percentile", limits.percentile_95, told.percentile_95),
    ):
        if loss > most:
            raise Excessive(
                f"borrowed rows lose too much: {name} expected at most {100 * most:g} % ([tool.csgmv.regret] of "
                f"{PYPROJECT.name}), got {100 * loss:.1f} % of {told.keys} keys; see `python -m codegen --regret`"
            )
