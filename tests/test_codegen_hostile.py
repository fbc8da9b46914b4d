"""Of spoilt raw results comes no table, or one of nothing but literals."""

from __future__ import annotations

import random
from pathlib import Path

from hostile import run


def test_a_hundred_spoilt_results(tmp_path: Path) -> None:
    """The outcome is parsed, and searched for all that would run."""
    found = run("results", tmp_path, random.Random(20), 100)
    assert found["Faulty"] > 80
    assert found["read"] > 0
