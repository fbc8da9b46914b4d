"""Files are there whole or not at all."""

from __future__ import annotations

import stat
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


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    """And text as UTF-8, line ends untouched."""
    for content, written in ((b"\x89PNG\r\n\x00", b"\x89PNG\r\n\x00"), ("µ\r\n", b"\xc2\xb5\r\n")):
        files.replace(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == written


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_permissions_stay(mode: int, tmp_path: Path) -> None:
    """Those of the file that is replaced; a new one may be read by all and written by its owner."""
    path = tmp_path / "table.py"
    files.replace(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(mode)
    files.replace(path, "new")
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (mode, "new")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Wherever it leads, also where nothing is yet: what is replaced is the file there."""
    link, target = tmp_path / "README.md", tmp_path / "docs" / "first.md"
    link.symlink_to(Path("docs") / "first.md")
    for text in ("made", "replaced"):
        files.replace(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["README.md", "docs", "first.md"]


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to(other)
    other.symlink_to(one)
    with pytest.raises(OSError, match="symbolic links"):
        files.replace(one, "text")
    assert sorted(tmp_path.iterdir()) == [one, other]
