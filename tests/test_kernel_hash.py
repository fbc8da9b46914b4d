"""The kernels' hash changes with what they compute, and with nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from csgmv import kernel_hash as hashes
from csgmv.kernel_hash import kernel_hash, same_kernels

SOURCE = '''"""A kernel."""

@triton.jit(do_not_specialize=["n"])
def f(x):
    """Add one."""
    return x + 1  # at once

def wrapper(x):
    return f[(1,)](x)
'''


def folder(path: Path, source: str) -> Path:
    path.mkdir()
    for name in ("shrink", "expand"):
        (path / f"{name}.py").write_text(source if name == "expand" else SOURCE)
    return path


def test_the_installed_kernels_have_a_hash() -> None:
    """In the form that records want."""
    assert kernel_hash().startswith("sha256:")
    assert len(kernel_hash()) == len("sha256:") + 64


@pytest.mark.parametrize(
    ("source", "same"),
    [
        (SOURCE.replace("Add one", "Other words").replace("x + 1  # at once", "(x + 1)"), True),
        (SOURCE.replace("[(1,)]", "[(2,)]"), True),
        (SOURCE.replace("x + 1", "x + 2"), False),
        (SOURCE.replace("return x + 1", "y = x + 1\n    return y"), False),
        (SOURCE.replace('"n"', '"m"'), False),
        (SOURCE + "\n@triton.jit\ndef g(x):\n    return x\n", False),
    ],
)
def test_comments_docstrings_layout_and_wrappers_do_not_count(tmp_path: Path, source: str, same: bool) -> None:
    """A record stays fresh when only words change."""
    assert (kernel_hash(folder(tmp_path / "a", SOURCE)) == kernel_hash(folder(tmp_path / "b", source))) == same


def test_jitted_functions_of_every_module_count(tmp_path: Path) -> None:
    """Also those that kernels call from a module of their own; a module without any does not."""
    place = folder(tmp_path / "a", SOURCE)
    before = kernel_hash(place)
    (place / "plain.py").write_text("def f(x):\n    return x\n")
    assert kernel_hash(place) == before
    (place / "tiles.py").write_text("@triton.jit\ndef f(x):\n    return x\n")
    assert kernel_hash(place) != before


def test_measurements_hold_for_later_kernels_that_make_the_same_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for those after these; not for earlier ones, nor for others."""
    monkeypatch.setattr(hashes, "SAME_BINARIES", {"a": "b", "b": "c", "x": "y"})
    same = [(one, other) for one in "abcxyz" for other in "abcxyz" if one != other and same_kernels(one, other)]
    assert same == [("a", "b"), ("a", "c"), ("b", "c"), ("x", "y")]
    assert all(same_kernels(each, each) for each in "abcxyz")
    monkeypatch.setattr(hashes, "SAME_BINARIES", {"a": "b", "b": "a"})  # what a change and its undoing may leave
    assert same_kernels("a", "b")
    assert not same_kernels("a", "c")


def test_what_is_said_to_be_the_same_leads_to_these_kernels() -> None:
    """By whole hashes; a chain that ends elsewhere is of no use to any record."""
    for before, after in hashes.SAME_BINARIES.items():
        assert re.fullmatch("sha256:[0-9a-f]{64}", before)
        assert re.fullmatch("sha256:[0-9a-f]{64}", after)
        assert before != after
        assert same_kernels(before, kernel_hash()), f"{before} leads to {after}: measure again, or take it out"
