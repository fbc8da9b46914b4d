"""Rows cut to other dimensions and ranks: what they keep, and that they fit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from csgmv import footprint, refit, rules
from csgmv.rules import Key, Row
from lent import ADD_LORA, EXPAND, ROWS, SHRINK

LIMITS = footprint.LIMITS["9.0"]


def fields(key: Key, source: Key, limits: footprint.Limits = footprint.UNLIMITED, **given: Any) -> dict[str, Any]:
    """The fields of the source's row, but for those given, as the key gets them."""
    named = dict(zip(rules.FIELD_NAMES[source.op], ROWS[source.op])) | given
    row = refit.adapted(tuple(named.values()), source, key, limits)
    assert row is not None
    assert rules.config_fault(key.op, row) is None
    assert footprint.resource_fault(row, key, limits) is None
    return dict(zip(rules.FIELD_NAMES[key.op], row))


def test_a_row_of_the_same_key_stays_as_it_was_measured() -> None:
    """Even where another would say the same in fewer tiles."""
    row: Row = (64, 64, 64, 4, 1, 4, 2, None, False)
    for dtype in ("bfloat16", "float16"):
        assert refit.adapted(row, SHRINK, SHRINK._replace(dtype=dtype), footprint.UNLIMITED) == row


@pytest.mark.parametrize(
    ("slices", "rank", "block_n", "column_tiles"),
    [
        (1, 64, 64, 1),
        (2, 128, 128, 2),
        (3, 32, 64, 2),
        (3, 64, 128, 2),
        (4, 256, 128, 8),
        (1, 8, 16, 1),
        (3, 16, 32, 2),
    ],
)
def test_a_tile_of_all_columns_stays_one(slices: int, rank: int, block_n: int, column_tiles: int) -> None:
    """Whatever their number: the last tile takes what is left."""
    source = SHRINK._replace(num_slices=1, max_rank=128)
    got = fields(SHRINK._replace(num_slices=slices, max_rank=rank), source, block_m=16)
    assert (got["block_n"], got["column_tiles"]) == (block_n, column_tiles)


def test_a_tile_of_all_columns_is_cut_where_it_does_not_fit() -> None:
    """First come fewer stages, then a tile of as many columns as before, sooner than no pipeline at all."""
    source = SHRINK._replace(num_slices=1, max_rank=128)
    got = fields(SHRINK._replace(max_rank=128), source, LIMITS, block_k=128, num_stages=4)
    assert (got["block_n"] * got["column_tiles"], got["num_stages"]) == (384, 2)
    got = fields(SHRINK._replace(max_rank=128), source, LIMITS, block_k=256, num_stages=3)
    assert (got["block_n"] * got["column_tiles"], got["num_stages"]) == (128, 2)


@pytest.mark.parametrize(
    ("input_dim", "split_k"), [(512, 2), (1024, 4), (1536, 4), (2048, 8), (4096, 16), (64, 1), (60, 1)]
)
def test_parts_of_input_dim_stay_about_as_long(input_dim: int, split_k: int) -> None:
    """By whole octaves, and none without a step of its own; what was whole stays whole."""
    key = SHRINK._replace(input_dim=input_dim)
    assert fields(key, SHRINK, split_k=4)["split_k"] == split_k
    assert fields(key, SHRINK, split_k=1)["split_k"] == 1


@pytest.mark.parametrize(
    ("input_dim", "bucket", "split_k"), [(4096, 32, 4), (8192, 8, 8), (4096, 64, 4), (4096, 128, 1), (2048, 32, 1)]
)
def test_what_was_whole_is_split_where_it_is_far_longer(input_dim: int, bucket: int, split_k: int) -> None:
    """For up to 1,024 rows, whose programs are few; from four times as long on."""
    source = SHRINK._replace(chunk_size=16, segment_bucket=bucket)
    assert fields(source._replace(input_dim=input_dim), source, split_k=1)["split_k"] == split_k


@pytest.mark.parametrize(("block_n", "got"), [(256, 128), (128, 64), (64, 64), (32, 32)])
def test_a_larger_rank_halves_tiles_down_to_64_columns(block_n: int, got: int) -> None:
    """Narrower ones stay as they were."""
    source = EXPAND._replace(max_rank=64)
    assert fields(source._replace(max_rank=128), source, block_n=block_n, block_k=64)["block_n"] == got


def test_there_are_no_more_parts_than_a_config_may_have() -> None:
    """However much longer input_dim is."""
    assert fields(SHRINK._replace(input_dim=1 << 14), SHRINK, split_k=16)["split_k"] == 64


@pytest.mark.parametrize(
    ("rank", "block_k", "got"),  # block_n, block_k, num_stages by rank
    [
        (64, 64, {8: (64, 16, 1), 16: (64, 16, 1), 48: (64, 64, 1), 128: (64, 128, 1), 256: (64, 64, 2)}),
        (256, 256, {64: (64, 64, 1), 200: (64, 256, 1)}),
        (64, 32, {8: (64, 16, 1), 32: (64, 32, 1), 48: (64, 32, 4), 256: (64, 32, 4)}),
    ],
)
def test_the_whole_rank_at_once_stays_that(rank: int, block_k: int, got: dict[int, tuple[int, ...]]) -> None:
    """Up to 128, with tiles of weights no larger than before or of 64 columns; beyond, it is taken in steps, with a
    pipeline over them.

    Steps stay steps, and keep their pipeline, as long as there are two.
    """
    source = EXPAND._replace(max_rank=rank)
    for other, wanted in got.items():
        found = fields(source._replace(max_rank=other), source, block_k=block_k, num_stages=4 if block_k < rank else 1)
        assert (found["block_n"], found["block_k"], found["num_stages"]) == wanted, other


@pytest.mark.parametrize(
    ("widths", "block_n", "column_tiles"),
    [((6144,), 64, 12), ((2048, 2048), 64, 8), ((1024,), 64, 2), ((40, 8), 64, 1), ((12, 4), 16, 1), ((0, 0), 16, 1)],
)
def test_programs_of_several_tiles_stay_about_as_many(widths: tuple[int, ...], block_n: int, column_tiles: int) -> None:
    """No tile is wider than the widest slice; a program of one tile stays one."""
    key = EXPAND._replace(slice_widths=widths, num_slices=len(widths))
    got = fields(key, EXPAND)
    assert (got["block_n"], got["column_tiles"]) == (block_n, column_tiles)
    assert fields(key, EXPAND, column_tiles=1)["column_tiles"] == 1


@pytest.mark.parametrize(
    ("block_m", "chunk_size", "got"), [(64, 16, 16), (32, 16, 16), (128, 16, 128), (64, 128, 64), (16, 32, 16)]
)
def test_a_tile_within_a_segment_stays_within_one(block_m: int, chunk_size: int, got: int) -> None:
    """Where segments are shorter; one that took several together goes on doing so."""
    assert fields(SHRINK._replace(chunk_size=chunk_size), SHRINK, block_m=block_m)["block_m"] == got


def test_both_parts_of_add_lora_are_cut() -> None:
    """Each as the operation by itself would be; without programmatic launches there is no overlap."""
    key = ADD_LORA._replace(input_dim=4096, slice_widths=(6144, 512), num_slices=2, max_rank=16, chunk_size=16)
    whole = fields(key, ADD_LORA)
    parts = {
        "shrink_": fields(key._replace(op="shrink"), ADD_LORA._replace(op="shrink")),
        "expand_": fields(key._replace(op="expand"), ADD_LORA._replace(op="expand")),
    }
    joined = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    assert whole == {**joined, "overlap": True}
    assert fields(key, ADD_LORA, footprint.LIMITS["8.0"])["overlap"] is False


def test_whatever_is_borrowed_is_well_formed_and_fits() -> None:
    """On every architecture, for layers and ranks from the smallest to the largest; `fields` looks at each."""
    layers = itertools.product((16, 200, 1024, 28672), ((8,), (0, 24), (6144, 1024, 1024), (28672,) * 4))
    for (input_dim, widths), rank, limits, source in itertools.product(
        layers, (1, 8, 48, 256), footprint.LIMITS.values(), (SHRINK, EXPAND, ADD_LORA)
    ):
        dims = {"input_dim": input_dim * (source.op != "expand"), "slice_widths": widths * (source.op != "shrink")}
        key = source._replace(**dims, max_rank=rank, num_slices=len(widths), chunk_size=16)
        assert rules.key_fault(key) is None
        fields(key, source, limits)


def test_a_register_cap_is_dropped_where_the_rank_grows() -> None:
    """It was found for a smaller tile of h; at the same rank or a lower one it stays."""
    source = EXPAND._replace(max_rank=64)
    row: Row = (16, 64, 64, 1, 2, 1, 128, False)
    for max_rank, cap in ((128, None), (64, 128), (16, 128)):
        adapted = refit.adapted(row, source, source._replace(max_rank=max_rank, segment_bucket=1), footprint.UNLIMITED)
        assert adapted is not None
        assert dict(zip(rules.FIELD_NAMES["expand"], adapted))["maxnreg"] == cap


@pytest.mark.parametrize(
    ("slices", "rank", "input_dim", "block_n", "column_tiles"),
    [
        (3, 64, 4096, 32, 2),
        (3, 16, 1024, 32, 2),  # fewer columns
        (1, 8, 1024, 16, 1),
        (3, 64, 1024, 128, 2),  # as many columns, all in one tile
        (3, 48, 1024, 128, 2),
    ],
)
def test_a_shared_step_stays_one_where_the_tile_gets_no_larger(
    slices: int, rank: int, input_dim: int, block_n: int, column_tiles: int
) -> None:
    """The warps go on sharing it, and nobody begins to whose row does not."""
    key = SHRINK._replace(num_slices=slices, max_rank=rank, input_dim=input_dim, segment_bucket=1)
    given = {"block_m": 16, "block_n": block_n, "block_k": 128, "column_tiles": column_tiles}
    for sliced in (True, False):
        got = fields(key, SHRINK, **given, sliced_k=sliced)
        assert got["block_n"] * got["column_tiles"] <= block_n * column_tiles
        assert got["sliced_k"] is sliced


@pytest.mark.parametrize(("block_n", "column_tiles"), [(16, 1), (32, 2)])
def test_a_tile_with_shared_steps_gets_no_larger_for_more_columns(block_n: int, column_tiles: int) -> None:
    """Each warp has all of it in its registers; programs get more instead, since x is no more than a few rows."""
    source, key = ADD_LORA, ADD_LORA._replace(max_rank=256)
    given = {"block_m": 16, "block_n": block_n, "block_k": 128, "column_tiles": column_tiles, "sliced_k": True}
    got = fields(key, source, **{f"shrink_{name}": value for name, value in given.items()})
    assert (got["shrink_block_n"], got["shrink_column_tiles"]) == (block_n, column_tiles)
    assert got["shrink_sliced_k"] is True


def test_steps_are_not_shared_where_the_sums_of_all_warps_do_not_fit() -> None:
    """The row is lent all the same."""
    row: Row = (16, 32, 256, 1, 1, 8, 2, None, True)
    key = SHRINK._replace(input_dim=2048)
    fits = footprint.Limits(shared_memory=128 << 10)
    assert refit.adapted(row, SHRINK, key, fits) == row
    few = fits._replace(registers=32 * 8 * 64)  # 64 a thread, of which the sums would take 16
    assert footprint.resource_fault(row, key, few._replace(registers=32 * 8 * 48)) is not None
    adapted = refit.adapted(row, SHRINK, key, few._replace(registers=32 * 8 * 48))
    assert adapted is not None
    assert adapted[-1] is False


@pytest.mark.parametrize(("block_n", "column_tiles"), [(16, 1), (32, 2), (64, 2)])
def test_more_columns_do_not_mean_that_x_is_read_more_often(block_n: int, column_tiles: int) -> None:
    """Where no program has all columns, they are as many across the columns as before, each with more of them."""
    source, key = SHRINK._replace(max_rank=64), SHRINK._replace(max_rank=256)
    got = fields(key, source, block_m=16, block_n=block_n, column_tiles=column_tiles)
    before = -(-3 * 64 // (block_n * column_tiles))
    assert -(-3 * 256 // (got["block_n"] * got["column_tiles"])) <= before


@pytest.mark.parametrize("slices", [2, 3])
def test_less_than_twice_the_columns_make_more_programs(slices: int) -> None:
    """Their tiles stay as they were."""
    source, key = SHRINK._replace(num_slices=2, max_rank=64), SHRINK._replace(num_slices=slices, max_rank=64)
    got = fields(key, source, block_m=64, block_n=64, column_tiles=1)
    assert (got["block_n"], got["column_tiles"]) == (64, 1)


@pytest.mark.parametrize(
    ("bucket", "column_tiles"),
    [
        (8, 2),  # a quarter of the width, a quarter of the tiles: as many programs
        (512, 8),  # 128 tiles of rows are enough programs with two across the columns
        (256, 4),
    ],
)
def test_programs_that_are_enough_compute_as_many_tiles_in_a_narrower_layer(bucket: int, column_tiles: int) -> None:
    """More of them would only load h more often."""
    source = rules.Key("expand", 0, (4096,), 64, 1, "bfloat16", 16, bucket)
    row: Row = (64, 64, 64, 8, 4, 4, None, True)
    adapted = refit.adapted(row, source, source._replace(slice_widths=(1024,)), footprint.UNLIMITED)
    assert adapted == (*row[:3], column_tiles, *row[4:])


def test_partials_are_not_summed_more_often_for_a_wider_layer() -> None:
    """Each program sums all partials of its rows: eight times the width makes eight times the tiles of a program."""
    source, key = (ADD_LORA._replace(num_slices=1, slice_widths=(width,)) for width in (1024, 8192))
    for split_k, column_tiles in ((8, 8), (1, 1)):
        row: Row = (16, 64, 128, 1, split_k, 4, 3, None, False, 16, 64, 64, 1, 4, 1, None, False, True)
        adapted = refit.adapted(row, source, key, footprint.UNLIMITED)
        assert adapted is not None
        assert dict(zip(rules.FIELD_NAMES["add_lora"], adapted))["expand_column_tiles"] == column_tiles
