"""The kernels' hash changes with what they compute, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from csgmv.tuning.environment import kernel_hash

SOURCE = '"""A kernel."""\n\n\ndef f(x):\n    """Add one."""\n    return x + 1  # at once\n'


def folder(path: Path, source: str) -> Path:
    path.mkdir()
    for name in ("shrink", "expand", "layer", "launch"):
        (path / f"{name}.py").write_text(source if name == "expand" else SOURCE)
    return path


def test_the_installed_kernels_have_a_hash() -> None:
    """In the form that records want."""
    assert kernel_hash().startswith("sha256:")
    assert len(kernel_hash()) == len("sha256:") + 64


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ('"""Other words."""\ndef f(x):\n    # why\n\n    return (x + 1)\n', True),
        (SOURCE.replace("x + 1", "x + 2"), False),
        (SOURCE.replace("return x + 1", "y = x + 1\n    return y"), False),
        (SOURCE + "\n\nF = f\n", False),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tmp_path: Path, source: str, same: bool) -> None:
    """A record stays fresh when only words change."""
    assert (kernel_hash(folder(tmp_path / "a", SOURCE)) == kernel_hash(folder(tmp_path / "b", source))) == same
