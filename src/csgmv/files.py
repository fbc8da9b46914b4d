"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
    """Put a file in place in one step, so that a reader (or a process that is killed) sees the old one or the new one.

    The new file has the old one's permissions, or where there was none 0644. Of a link the file that it leads to is
    replaced, not the link. Text is written as UTF-8.

    Raises:
        OSError: the folder cannot be made or written, or a link leads in a circle.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mode = 0o644  # mkstemp's files are for their owner alone
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
