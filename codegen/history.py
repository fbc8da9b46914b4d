"""Raw results as a git revision has them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path


class Unknown(ValueError):
    """A revision that has no raw results, or none that git can tell; its text says what was expected and what came."""


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints, or None where it fails.

    Raises:
        Unknown: there is no git.
    """
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise Unknown("--diff: expected git, which reads the revision, got no such program") from None
    return done.stdout if done.returncode == 0 else None


def unpack(revision: str, configs: Path, into: Path) -> str:
    """Puts the raw results of a revision into an empty folder.

    Args:
        revision: a commit, as git understands it.
        configs: where the working tree has them.
        into: the folder.

    Returns:
        The commit, abbreviated.

    Raises:
        Unknown: there is no git, no repository, no such revision, or no such folder in it.
    """
    where = _git(configs, "rev-parse", "--show-toplevel", "--show-prefix")
    if where is None:
        raise Unknown(f"--diff: expected {configs} to be in a git repository that can be read")
    root, place = (line.rstrip("/") for line in where.decode().splitlines())
    commit = None if revision.startswith("-") else _git(configs, "rev-parse", "--verify", f"{revision}^{{commit}}")
    if commit is None:
        raise Unknown(f"--diff: expected a revision that git knows, got {revision!r}")
    name = commit.decode().strip()
    archive = _git(Path(root), "archive", "--format=tar", f"{name}:{place}")
    if archive is None:
        raise Unknown(f"--diff: expected a revision with the folder {place or '.'}, got {revision!r}, which has none")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                file = into / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())
    return name[:12]
