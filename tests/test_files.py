"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from csgmv import files


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that breaks off leaves the old file, and no other one beside it."""
    path = tmp_path / "new folder" / "README.md"
    files.replace(path, "old µ")
    files.replace(path, "new µ")
    assert path.read_text(encoding="utf-8") == "new µ"

    def no_space(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        files.replace(path, "newer")
    assert [file.read_text(encoding="utf-8") for file in path.parent.iterdir()] == ["new µ"]
