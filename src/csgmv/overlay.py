"""A user's raw results over the generated tables: a GPU that the wheel does not know is tuned without a rebuild.

Files are read once, when this is called; launches go on reading none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from csgmv import chunk_sizes, dispatch, fallback
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect

_one_at_a_time = threading.Lock()


class Overlay(NamedTuple):
    """What `load_overlay` laid over the tables. Keys count once for each GPU and Triton version.

    Attributes:
        rows: keys with a row that beats the default.
        defaults_kept: keys where none does, which get the default.
        replaced: of both, those that the tables knew already.
        chunk_sizes: cells of batches that have a chunk size.
        duplicates: measurements that lost to a better one of the same key.
    """

    rows: int
    defaults_kept: int
    replaced: int
    chunk_sizes: int
    duplicates: int


def load_overlay(path: str | os.PathLike[str]) -> Overlay:
    """Lay raw results over the tables that this process looks launches up in.

    The results are checked, and rows, chunk sizes and an architecture's defaults chosen from them, just as a build does
    (`csgmv.baking`). Where both have a key, a GPU, a default or a cell of batches, the results' counts, also over what
    an earlier call loaded; nothing is weighed against the tables, which do not say how they were measured.

    Launches from now on see it. What was fixed before stays: CUDA graphs, and the chunk size of `Segments` that are
    there. Call it before other threads launch: a launch that one has under way may keep its config for those like it.

    Args:
        path: a file of raw results as `csgmv tune` writes them, or a folder of nothing else, at any depth.

    Raises:
        TypeError: path is none.
        ValueError: with every fault of every file, one a line: the file, the field, what was expected, what came; or
            there is no result. Nothing is changed then.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a str or a PathLike, got {type(path).__name__}")
    choice = choose(collect(Path(path)).found)
    with _one_at_a_time:
        known, sizes = dispatch.tables(), chunk_sizes.table()
        table = {place: fallback.by_layer(entries) for place, entries in choice.table.items()}
        dispatch.lay(
            fallback.Tables(
                _over(known.rows, table, 3),
                _over(known.gpus, choice.gpus, 1),
                _over(known.defaults, choice.defaults, 3),
            )
        )
        chunk_sizes.lay(_over(sizes, choice.chunk_sizes, 2))
    rows = [row for entries in choice.table.values() for row in entries.values()]
    return Overlay(
        rows=sum(row is not None for row in rows),
        defaults_kept=sum(row is None for row in rows),
        replaced=sum(
            len(entries.keys() & fallback.flat(known.rows.get(place, {})).keys())
            for place, entries in choice.table.items()
        ),
        chunk_sizes=sum(map(len, choice.chunk_sizes.values())),
        duplicates=sum(len(duplicate.dropped) for duplicate in choice.duplicates),
    )


def _over(known: Mapping[Any, Any], new: Mapping[Any, Any], levels: int) -> dict[Any, Any]:
    """So many levels of one table over those of another."""
    if levels == 1:
        return {**known, **new}
    return {**known, **{name: _over(known.get(name, {}), entries, levels - 1) for name, entries in new.items()}}
