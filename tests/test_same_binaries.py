"""Kernels whose source differs and whose binaries do not are told from those that compute something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import csgmv
import same_binaries
from csgmv import config, rules
from csgmv.kernel_hash import kernel_hash

JITTED = "\n@triton.jit\ndef _store_sum"
PACKAGE = Path(csgmv.__file__).parent
ROWS = [
    [rules.Key("expand", 0, (64,), 16, 1, "bfloat16", 16, 8), config.to_row(config.ExpandConfig(block_k=16))],
    [rules.Key("shrink", 64, (), 16, 1, "bfloat16", 16, 8), config.to_row(config.ShrinkConfig(block_k=32))],
]


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[Path], list[list[str]]]:
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(ROWS))

    def of(source: Path) -> list[list[str]]:
        process = same_binaries._of(source, listed, tmp_path / source.name / "cache")
        found: list[list[str]] = json.loads(process.communicate()[0])
        return found

    return of


def test_a_variant_that_no_row_asks_for_changes_no_binary(
    tmp_path: Path, compiled: Callable[[Path], list[list[str]]]
) -> None:
    """What a row computes does: of the kernel that was changed, and of no other."""
    before = compiled(PACKAGE.parent)
    assert [len(each) for each in before] == [1, 1]
    others = []
    for name, old, new in (
        (
            "more",
            "\n@triton.jit\ndef _store_sum",
            "\n@triton.jit\ndef _unused(x):\n    return x\n\n\n@triton.jit\ndef _store_sum",
        ),
        ("other", "delta * scaling", "delta * scaling * 2"),
    ):
        source = tmp_path / name
        shutil.copytree(PACKAGE, source / "csgmv", ignore=shutil.ignore_patterns("__pycache__"))
        expand = source / "csgmv" / "expand.py"
        text = expand.read_text(encoding="utf-8")
        assert old in text
        expand.write_text(text.replace(old, new), encoding="utf-8")
        assert kernel_hash(source / "csgmv") != kernel_hash()
        others.append(compiled(source))
    more, other = others
    assert more == before
    assert [one == two for one, two in zip(before, other)] == [False, True]
