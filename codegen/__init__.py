"""Raw results → the table in the wheel: collect → choose → render, one module a stage.

The first two stand in `csgmv.baking`, since results can be laid over the table at run time too. `regret` estimates what
a key loses without its own row, which the table records as LOSSES; `limits` bounds it; `diff` compares with a git
revision, whose results `history` unpacks.

Standard library and Jinja2 only. `python -m codegen` for people, `hatch_build.py` for builds.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from codegen.regret import Regret, losses, regrets
from codegen.render import render, write
from codegen.source import ROOT, choose, collect

__all__ = ["CONFIGS", "TABLE", "Faulty", "Generated", "generate", "write"]

CONFIGS = ROOT / "configs"
TABLE = ROOT / "src" / "csgmv" / "_tuned_table.py"
Faulty = collect.Faulty


class Generated(NamedTuple):
    """The source of the tables, the choices that led to it, and what keys would lose without their own rows."""

    text: str
    choice: choose.Chosen
    regrets: list[Regret]


def generate(configs: Path = CONFIGS) -> Generated:
    """Makes the tables from a folder of raw results; writes nothing.

    Raises:
        Faulty: with every fault of every file, or because there is no result at all.
    """
    collected = collect.collect(configs)
    choice = choose.choose(collected.found)
    found = list(regrets(choice))
    return Generated(render(choice, collected.digest, losses(found)), choice, found)
