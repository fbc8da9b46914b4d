"""The chunk size of a batch whose caller names none: from the nearest cell, remembered, else the built-in default."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from csgmv import chunk_sizes, dispatch, footprint, rules
from csgmv.segments import Segments

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
TABLE = {
    ("NVIDIA H200", "3.6.0"): {(1, 1): 16, (128, 8): 32, (2048, 8): 64, (32768, 8): 128},
    ("NVIDIA H200", "3.10.0"): {(2048, 8): 16},
}


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Every GPU is an H200 under Triton 3.6.0 and the table is TABLE; yields the devices that were asked for."""
    asked = []

    def target(device: torch.device) -> dispatch.Target:
        asked.append(device)
        return dispatch.Target("NVIDIA H200", "3.6.0", footprint.Limits(232_448))

    monkeypatch.setattr(dispatch, "target", target)
    monkeypatch.setattr(chunk_sizes, "table", lambda: TABLE)
    chunk_sizes._tuned.cache_clear()
    yield asked
    chunk_sizes._tuned.cache_clear()


def test_a_batch_gets_its_cells_chunk_size(on_h200: list[torch.device]) -> None:
    """Rows and adapters count by their nearest powers of two; a cell is resolved once."""
    assert [chunk_sizes.choose(rows, 8, GPU) for rows in (100, 128, 181, 2000, 30720)] == [32, 32, 32, 64, 128]
    assert chunk_sizes.choose(2100, 7, GPU) == 64
    assert len(on_h200) == 3


@pytest.mark.usefixtures("on_h200")
@pytest.mark.parametrize(
    ("rows", "adapters", "chunk_size"),
    [
        (30720, 1, 128),  # the same rows in all are nearer than the same rows an adapter
        (512, 32, 32),  # 16 rows an adapter, as 128 of 8
        (8192, 32, 64),  # 256 rows an adapter, as 2048 of 8
        (1024, 64, 32),  # 16 rows an adapter: 128 of 8 are nearer than 2048 of 8
        (2, 2, 16),
        (3, 1000, 16),  # no more adapters than rows
        (0, 0, 16),
    ],
)
def test_the_nearest_cell_serves(rows: int, adapters: int, chunk_size: int) -> None:
    """In rows an adapter and in rows; of equally near ones the smaller."""
    assert chunk_sizes.choose(rows, adapters, GPU) == chunk_size


@pytest.mark.parametrize(
    ("rows", "adapters", "device", "table", "chunk_size"),
    [
        (2047, 8, CPU, TABLE, 16),
        (2048, 8, CPU, TABLE, 64),
        (2047, 8, GPU, {}, 16),
        (2048, 8, GPU, {}, 64),
        (30720, 8, GPU, {("NVIDIA A100", "3.6.0"): {(32768, 8): 128}}, 64),
        (30720, 8, GPU, {("NVIDIA H200", "3.6.0"): {}, ("NVIDIA H200", "3.1.0"): {(32768, 8): 32}}, 32),
    ],
)
@pytest.mark.usefixtures("on_h200")
def test_without_a_cell_the_default_serves(
    rows: int,
    adapters: int,
    device: torch.device,
    table: chunk_sizes.ChunkSizes,
    chunk_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU and on a GPU that the table does not know; a version without any cell is passed over."""
    monkeypatch.setattr(chunk_sizes, "table", lambda: table)
    assert chunk_sizes.choose(rows, adapters, device) == chunk_size


def test_versions_compare_as_numbers() -> None:
    """From 3.9.0 3.10.0 is nearer than 3.6.0."""
    assert chunk_sizes.resolve((2048, 8), "NVIDIA H200", "3.9.0", TABLE) == 16
    assert chunk_sizes.resolve((2048, 8), "NVIDIA H200", "3.7.1+cu130", TABLE) == 64
    assert chunk_sizes.resolve((2048, 8), "NVIDIA B200", "3.6.0", TABLE) is None


def test_a_tree_without_a_table_has_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An uninstalled tree, or a wheel that was built without its hook."""
    monkeypatch.setitem(sys.modules, "csgmv._tuned_table", None)
    assert chunk_sizes.table() == {}


def test_the_generated_table_is_well_formed() -> None:
    """Cells are powers of two with no more adapters than rows, sizes are those that the tuner tries."""
    assert chunk_sizes.table().keys() <= dispatch.table().keys()
    for sizes in chunk_sizes.table().values():
        assert all(rules.batch_cell(*cell) == cell for cell in sizes)
        assert set(sizes.values()) <= set(rules.CHUNK_SIZES)


@pytest.mark.parametrize("first", ["segments", "dispatch", "chunk_sizes"])
def test_each_module_may_be_imported_first(first: str) -> None:
    """Segments ask for chunk sizes, whose module asks dispatch, whose functions take Segments: no import goes round."""
    subprocess.run([sys.executable, "-c", f"import csgmv.{first}"], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, torch.device]]:
    """What Segments ask for; the answer is 4."""
    asked: list[tuple[int, int, torch.device]] = []
    monkeypatch.setattr(chunk_sizes, "choose", lambda *about: asked.append(about) or 4)
    return asked


def test_segments_ask_with_what_the_host_knows(told: list[tuple[int, int, torch.device]]) -> None:
    """Rows with an adapter and adapters that have some: not slots of rank 0, idle ones or rows without an adapter."""
    ranks, scalings = [8, 0, 8, 8, 8], [1.0] * 5
    segments = Segments.from_sequences([5, 3, 2, 0, 4], [2, None, 1, 4, 0], ranks, scalings, device="cpu")
    assert segments.chunk_size == 4
    assert segments.num_segments == 3
    Segments.from_tokens([2, 2, -1, 3, 2], ranks, scalings, device="cpu")
    Segments.allocate(40, 3, device="cpu")
    Segments.from_tokens([], [], [], device="cpu")
    assert told == [(9, 2, CPU), (4, 2, CPU), (40, 3, CPU), (0, 0, CPU)]


def test_a_chunk_size_that_is_given_is_not_looked_up(told: list[tuple[int, int, torch.device]]) -> None:
    """Nor is one that was allocated, on refilling."""
    assert Segments.from_sequences([5], [0], [8], [1.0], chunk_size=2, device="cpu").chunk_size == 2
    static = Segments.allocate(9, 1, chunk_size=3, device="cpu")
    static.update_from_tokens([0] * 5, [8], [1.0])
    assert (static.chunk_size, told) == (3, [])


@pytest.mark.gpu
def test_ids_on_the_gpu_go_by_slots_and_tokens() -> None:
    """What is active there the host does not know."""
    ids = torch.zeros(3000, dtype=torch.int32, device="cuda")
    segments = Segments.from_tokens(ids, [8] * 8, [1.0] * 8)
    assert segments.chunk_size == chunk_sizes.choose(3000, 8, segments.permutation.device)


@pytest.mark.usefixtures("on_h200")
@pytest.mark.parametrize("device", [GPU, CPU], ids=str)
@pytest.mark.parametrize(("max_tokens", "max_loras"), [(1, 1), (91, 3), (3000, 9), (2047, 7), (30720, 32)])
def test_what_batches_up_to_a_size_can_get(max_tokens: int, max_loras: int, device: torch.device) -> None:
    """Exactly the chunk sizes that some batch of so many rows and adapters, or fewer, gets."""
    rows = [*range(1, min(max_tokens, 200)), *range(200, max_tokens, 61), max_tokens]
    got = {chunk_sizes.choose(each, few, device) for each in rows for few in range(1, max_loras + 1)}
    assert chunk_sizes.possible(max_tokens, max_loras, device) == got
