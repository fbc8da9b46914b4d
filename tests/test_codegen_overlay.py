"""Tables with results laid over them are those that the codegen makes of all results."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from codegen import generate
from csgmv import chunk_sizes, dispatch, fallback
from csgmv.overlay import load_overlay
from fabricated import BETTER, DEFAULT, document, finalist, put, record_of, timing
from laid import tables

ROWS = [
    BETTER,
    [16, 64, 128, 1, 2, 8, 3, 96, True],
    [16, 16, 64, 1, 1, 4, 2, None, False],
    [128, 32, 64, 3, 1, 8, 4, 128, False],
]
OLD_GPUS = [("NVIDIA A100", "8.0", 108), ("NVIDIA A30", "8.0", 56)]
NEW_GPUS = [("NVIDIA H200", "9.0", 132), ("NVIDIA H100", "9.0", 114)]
BATCHES = [(8, 8), (512, 8), (2048, 8), (2048, 32)]
microseconds = st.integers(20, 60).map(lambda half: half / 2)


@st.composite
def contents(draw: st.DrawFn, gpus: list[tuple[str, str, int]]) -> dict[str, Any]:
    """A file of some keys; several files may have the same ones. The default may be the best, or not run at all."""
    made = []
    keys = st.lists(st.sampled_from([*itertools.product((16, 32, 64, 128), BATCHES)]), min_size=1, unique=True)
    for chunk_size, batch in draw(keys):
        rows = draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=3, unique_by=tuple))
        finalists = [finalist(row, draw(microseconds)) for row in rows]
        default = timing(DEFAULT, draw(microseconds)) if draw(st.booleans()) else None
        noise = draw(st.sampled_from([0.0, 0.2, 5.0]))
        more = {"finalists": finalists, "default": default, "noise_us": noise, "tuned_us": finalists[0]["p50_us"]}
        made.append(record_of("shrink", 1.0, chunk_size, *batch, **more))
    unique = {(one["chunk_size"], one["segment_bucket"]): one for one in made}
    gpu, architecture, sm_count = draw(st.sampled_from(gpus))
    content = document(*unique.values(), gpu=gpu, triton=draw(st.sampled_from(["3.6.0", "3.10.0"])))
    content["runs"][0].update(compute_capability=architecture, sm_count=sm_count)
    return {**content, "input_dim": draw(st.sampled_from([512, 1024]))}


def several(gpus: list[tuple[str, str, int]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(contents(gpus), min_size=1, max_size=3)


Known = tuple[fallback.Tables, chunk_sizes.ChunkSizes]


def rebuilt(folder: Path) -> Known:
    """What a process looks up that imports the table generated from a folder."""
    names: dict[str, Any] = {}
    exec(compile(generate(folder).text, "_tuned_table.py", "exec"), names)
    return fallback.Tables(names["TABLE"], names["GPUS"], names["DEFAULTS"]), names["CHUNK_SIZES"]


def overlaid(known: Known, folder: Path) -> Known:
    with tables(*known):
        load_overlay(folder)
        return dispatch.tables(), chunk_sizes.table()


def write(folder: Path, files: list[dict[str, Any]], names: str = "") -> Path:
    for number, content in enumerate(files):
        put(folder, f"{names}{number}.json", content)
    return folder


@settings(max_examples=30, deadline=None)
@given(several(OLD_GPUS), several(NEW_GPUS))
def test_results_of_another_architecture_give_the_rebuilt_table(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> None:
    """In all four tables, duplicates within either part included; likewise over no table at all."""
    with tempfile.TemporaryDirectory() as name:
        built, mine, both = (Path(name, part) for part in ("built", "mine", "both"))
        write(built, old), write(mine, new), write(write(both, old, "old"), new, "new")
        assert overlaid(rebuilt(built), mine) == rebuilt(both)
        assert overlaid((fallback.Tables({}), {}), mine) == rebuilt(mine)


def over(known: Any, new: Any) -> Any:
    """Whatever `new` says, at any depth, in place of what `known` says."""
    if not isinstance(known, Mapping) or not isinstance(new, Mapping):
        return new
    return {**known, **{name: over(known[name], value) if name in known else value for name, value in new.items()}}


@settings(max_examples=30, deadline=None)
@given(several(NEW_GPUS), several(NEW_GPUS))
def test_results_count_cell_by_cell(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Of the same GPUs and keys: each cell is what a table of the new results alone has there, or else the old one."""
    with tempfile.TemporaryDirectory() as name:
        built, mine = write(Path(name, "built"), old), write(Path(name, "mine"), new)
        (rows, gpus, defaults), sizes = overlaid(rebuilt(built), mine)
        pairs = [*zip((*rebuilt(built)[0], rebuilt(built)[1]), (*rebuilt(mine)[0], rebuilt(mine)[1]))]
        assert [rows, gpus, defaults, sizes] == [over(known, other) for known, other in pairs]
