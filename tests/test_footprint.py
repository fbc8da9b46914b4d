"""What a config takes on a device, by its tiles, and why it does not fit where it does not."""

from __future__ import annotations

import pytest

from csgmv import footprint
from csgmv.rules import Key

SHRINK = Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)
ROW = (64, 16, 256, 1, 1, 4, 3, None, False)
EXPAND_ROW = (64, 64, 16, 1, 4, 3, None, False)
H200 = footprint.Limits(shared_memory=232448, programmatic_launch=True)


def test_large_tiles_are_weighed_as_they_are() -> None:
    """Also where a segment has fewer rows: tiles of 256 rows and six accumulators have no room, at any chunk size."""
    row = (256, 64, 64, 6, 1, 8, 2, None, False)
    assert "registers" in str(footprint.resource_fault(row, SHRINK, H200))
    assert footprint.resource_fault((256, 64, 64, 1, 1, 8, 2, None, False), SHRINK, H200) is None
    small = H200._replace(shared_memory=2 * (256 + 64) * 64 * 2 - 1)
    assert "shared memory" in str(footprint.resource_fault((256, 64, 64, 1, 1, 8, 2, None, False), SHRINK, small))


def test_a_config_too_large_for_the_device_is_told() -> None:
    """The default shrink tile fits an H200 three stages deep, and not in 32 KiB; overlap needs Hopper."""
    small = footprint.Limits(shared_memory=32 * 1024)
    assert footprint.resource_fault(ROW, SHRINK, H200) is None
    fault = footprint.resource_fault(ROW, SHRINK, small)
    assert fault is not None
    assert "shared memory" in fault
    joint = (*ROW, *EXPAND_ROW, True)
    both = Key("add_lora", 1024, (64,), 64, 1, "bfloat16", 16, 8)
    assert footprint.resource_fault(joint, both, H200) is None
    assert "dependent launch" in str(footprint.resource_fault(joint, both, H200._replace(programmatic_launch=False)))


@pytest.mark.parametrize(("num_warps", "block_k"), [(2, 32), (4, 64), (8, 128)])
def test_warps_share_a_step_that_is_long_enough(num_warps: int, block_k: int) -> None:
    """A dot takes 16 columns of x for each; of add_lora the part is named. Warps that share the tile take any step."""
    joint = Key("add_lora", 1024, (64,), 64, 1, "bfloat16", 16, 8)
    for short, sliced in ((False, True), (True, False), (True, True)):
        row = (16, 16, block_k // 2 if short else block_k, 1, 1, num_warps, 3, None, sliced)
        fault = f"shrink: sliced_k needs 16 columns of block_k or more for each of {num_warps} warps"
        wanted = fault if short and sliced else None
        assert footprint.resource_fault(row, SHRINK, H200) == wanted
        assert footprint.resource_fault((*row, *EXPAND_ROW, False), joint, H200) == wanted


@pytest.mark.parametrize("num_warps", [2, 4, 8])
def test_every_warp_of_a_shared_step_has_all_sums(num_warps: int) -> None:
    """In its registers, so that more warps do not make them fewer: 64 · 64 are 128 a thread, 64 · 128 too many."""

    def fault(block_n: int, column_tiles: int, maxnreg: int | None, sliced: bool) -> str | None:
        row = (64, block_n, 128, column_tiles, 1, num_warps, 2, maxnreg, sliced)
        return footprint.resource_fault(row, SHRINK, footprint.UNLIMITED)  # but for registers

    assert fault(64, 1, None, True) is None
    assert fault(64, 1, 128, True) == "shrink needs about 168 registers a thread, 128 are available"
    for block_n, column_tiles in ((128, 1), (64, 2)):
        told = fault(block_n, column_tiles, None, True)
        assert told == "shrink needs about 296 registers a thread, 255 are available"
        assert fault(block_n, column_tiles, None, False) is None


def test_float32_operands_have_to_fit_into_registers() -> None:
    """The one that ptxas got wrong on an H100 is refused, its neighbours that it got right are not; nor are halves."""
    key = SHRINK._replace(dtype="float32", max_rank=128, num_slices=2)
    wrong = (16, 128, 128, 2, 8, 4, 1, None, False)
    assert footprint.resource_fault(wrong, key, H200) == "shrink needs about 344 registers a thread, 255 are available"
    for field, value in ((3, 1), (5, 8), (2, 64)):
        assert footprint.resource_fault((*wrong[:field], value, *wrong[field + 1 :]), key, H200) is None
    assert footprint.resource_fault(wrong, key._replace(dtype="float16"), H200) is None


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize(
    ("num_warps", "block_n", "column_tiles", "needed"),
    [
        (2, 64, 1, (16 + 64) * 128 * 2),  # x and A; 8 KiB of sums would be less
        (8, 64, 1, 8 * 16 * 64 * 4),
        (8, 32, 2, (16 + 64) * 128 * 2),  # of one tile of columns at a time: 16 KiB
    ],
)
def test_sums_of_all_warps_go_through_shared_memory(
    split_k: int, num_warps: int, block_n: int, column_tiles: int, needed: int
) -> None:
    """In float32, whatever becomes of their total: to the byte."""
    row = (16, block_n, 128, column_tiles, split_k, num_warps, 1, None, True)
    assert footprint.resource_fault(row, SHRINK, footprint.Limits(needed)) is None
    assert footprint.resource_fault(row, SHRINK, footprint.Limits(needed - 1)) == (
        f"shrink needs {needed} bytes of shared memory, the device allows {needed - 1}"
    )


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(
    ("block_k", "num_stages", "tiles"),
    [
        (64, 1, 4 + 8),  # h and weights; the base waits in registers
        (64, 2, 4 + 2 * (8 + 8)),  # h once; weights and base of two tiles
        (64, 3, 4 + 3 * (8 + 8)),
        (32, 2, 2 * (2 + 4)),  # two steps along the rank: of h and weights
        (32, 3, 3 * (2 + 4)),
    ],
)
def test_expand_is_pipelined_through_shared_memory(block_k: int, num_stages: int, tiles: int, prefetch: bool) -> None:
    """In thousands of numbers, for tiles of 64 · 128 and rank 64: to the byte. L2 is not shared memory."""
    key = Key("expand", 0, (1024,), 64, 1, "bfloat16", 64, 8)
    row = (64, 128, block_k, 4, 4, num_stages, None, prefetch)
    needed = 2 * 1024 * tiles
    assert footprint.resource_fault(row, key, footprint.Limits(needed)) is None
    assert footprint.resource_fault(row, key, footprint.Limits(needed - 1)) == (
        f"expand needs {needed} bytes of shared memory, the device allows {needed - 1}"
    )


@pytest.mark.parametrize(("chunk_size", "tile"), [(1, 16), (16, 16), (17, 32), (48, 64), (64, 64), (1000, 64)])
def test_a_tile_has_no_more_rows_than_a_segment(chunk_size: int, tile: int) -> None:
    """Rounded up to a power of two, and to the least that a dot takes."""
    assert footprint.row_tile(64, chunk_size) == tile


@pytest.mark.parametrize(
    ("block_n", "column_tiles", "columns", "last"),
    [(64, 3, 192, 64), (128, 2, 192, 64), (128, 1, 192, 128), (128, 2, 384, 128), (32, 2, 48, 16), (64, 1, 24, 32),
     (32, 1, 8, 16), (16, 4, 48, 16)],
)  # fmt: skip
def test_the_last_tile_is_no_wider_than_what_is_left(block_n: int, column_tiles: int, columns: int, last: int) -> None:
    """Where one program has all columns; else its tiles are all alike."""
    assert footprint.last_tile(block_n, column_tiles, columns) == last
