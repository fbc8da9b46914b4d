"""The build hook: makes the table of tuned configs from configs/ for every wheel, sdist and editable install."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TunedTableHook(BuildHookInterface[Any]):
    """Runs the codegen and ships what it wrote."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build; `version` is "editable" for an editable install."""
        sys.path.insert(0, self.root)  # hatchling runs this file without it
        from codegen import CONFIGS, TABLE, Faulty, generate, limits, write

        try:
            text, _, regrets = generate(CONFIGS)
            limits.enforce(regrets, limits.read())
        except (Faulty, limits.Excessive) as error:
            self.app.abort(f"configs/ gives no table of tuned configs:\n{error}")
        source = TABLE.relative_to(self.root).as_posix()
        try:
            write(text, TABLE)
            build_data["artifacts"].append(f"/{source}")  # shipped even where git ignores it
        except OSError:
            if version == "editable":  # runs from the source tree, so the table must stand there
                raise
            self._folder = tempfile.TemporaryDirectory()  # a read-only tree; the folder lives as long as the hook
            fresh = Path(self._folder.name, TABLE.name)
            fresh.write_text(text, encoding="utf-8", newline="\n")
            build_data["force_include"][str(fresh)] = source.removeprefix("src/" if self.target_name == "wheel" else "")
