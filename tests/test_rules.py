"""The rules that tuner, codegen and dispatch share."""

from __future__ import annotations

from fractions import Fraction

import pytest

from csgmv import rules
from csgmv.rules import Key

SHRINK = Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)
EXPAND = Key("expand", 0, (2048, 8, 0), 48, 3, "float16", 32, 1)
ROW = (64, 16, 256, 1, 1, 4, 3, None, False)
EXPAND_ROW = (64, 64, 16, 1, 4, 3, None, False)
H200 = rules.Limits(shared_memory=232448, programmatic_launch=True)


@pytest.mark.parametrize(
    ("segments", "bucket"),
    [(0, 1), (1, 1), (2, 2), (3, 4), (5, 4), (6, 8), (36, 32), (45, 32), (46, 64), (136, 128), (2**31 - 1, 2**31)],
)
def test_segment_bucket_is_the_nearest_power_of_two(segments: int, bucket: int) -> None:
    """As a ratio; a bucket's bucket is itself."""
    assert rules.segment_bucket(segments) == bucket
    assert rules.segment_bucket(bucket) == bucket


def test_no_other_power_of_two_is_nearer() -> None:
    """In exact fractions, for every number up to 5000; no number lies in the middle."""
    powers = [1 << k for k in range(15)]
    for number in range(1, 5001):
        ratios = [Fraction(max(number, power), min(number, power)) for power in powers]
        assert ratios.count(min(ratios)) == 1
        assert rules.nearest_power_of_two(number) == powers[ratios.index(min(ratios))]


@pytest.mark.parametrize("bucket", [1, 2, 4, 8, 64, 2**20])
def test_bucket_sizes_are_the_ends_of_a_bucket(bucket: int) -> None:
    """Both ends are in it, and what lies past them is not."""
    least, most = rules.bucket_sizes(bucket)
    assert [rules.segment_bucket(size) == bucket for size in (least, most, most + 1)] == [True, True, False]
    assert least == 1 or rules.segment_bucket(least - 1) != bucket


@pytest.mark.parametrize(
    ("rows", "adapters", "cell"),
    [(30720, 8, (32768, 8)), (45, 3, (32, 4)), (3, 1000, (4, 4)), (5, 0, (4, 1)), (0, 9, (1, 1))],
)
def test_a_batch_has_no_more_adapters_than_rows(rows: int, adapters: int, cell: rules.Cell) -> None:
    """However many slots there are; both count by their nearest powers of two."""
    assert rules.batch_cell(rows, adapters) == cell


@pytest.mark.parametrize("key", [SHRINK, EXPAND, Key("add_lora", 24, (7,), 12, 1, "float32", 128, 1)])
def test_a_possible_key_has_no_fault(key: Key) -> None:
    """Odd widths, a slice narrower than the rank, one of no width and a rank that is no power of two are possible."""
    assert rules.key_fault(key) is None


@pytest.mark.parametrize(
    ("key", "field"),
    [
        (SHRINK._replace(op="matmul"), "op"),
        (SHRINK._replace(dtype="int8"), "dtype"),
        (SHRINK._replace(max_rank=257), "max_rank"),
        (SHRINK._replace(num_slices=5), "num_slices"),
        (SHRINK._replace(input_dim=0), "input_dim"),
        (SHRINK._replace(slice_widths=(64,)), "slice_widths"),
        (SHRINK._replace(chunk_size=0), "chunk_size"),
        (SHRINK._replace(segment_bucket=7), "segment_bucket"),
        (EXPAND._replace(input_dim=64), "input_dim"),
        (EXPAND._replace(slice_widths=(2048, 1024)), "slice_widths"),
        (EXPAND._replace(slice_widths=(2048, -1, 8)), "slice_widths"),
    ],
)
def test_an_impossible_key_is_told_by_its_field(key: Key, field: str) -> None:
    """The fault names the field, what was expected and what came."""
    fault = rules.key_fault(key)
    assert fault is not None
    assert fault.startswith(f"{field}: expected ")
    assert ", got " in fault


def test_every_fault_of_a_key_is_told() -> None:
    """Not only the first."""
    faults = list(rules.key_faults(SHRINK._replace(dtype="int8", max_rank=0, chunk_size=-1)))
    assert [fault.partition(":")[0] for fault in faults] == ["dtype", "max_rank", "chunk_size"]


def test_a_config_is_checked_value_by_value() -> None:
    """A block of 48 is no power of two, true no number of warps, 4 registers are too few, 0 is not false: all told."""
    assert rules.config_fault("shrink", ROW) is None
    fault = rules.config_fault("shrink", (48, 16, 256, 1, 1, True, 3, 4, 0))
    assert fault is not None
    assert [part.partition(":")[0] for part in fault.split("; ")] == ["block_m", "num_warps", "maxnreg", "sliced_k"]


def test_a_config_of_another_length_is_refused() -> None:
    """With the names of the values it should have."""
    fault = rules.config_fault("shrink", ROW[:-1])
    assert fault is not None
    assert "expected 9 values (block_m," in fault
    assert fault.endswith("got 8")


def test_the_row_of_add_lora_is_both_rows_and_the_overlap() -> None:
    """Overlap is true or false, and nothing that equals one of them; so is expand's prefetch."""
    assert rules.config_fault("add_lora", (*ROW, *EXPAND_ROW, True)) is None
    assert rules.config_fault("add_lora", (*ROW, *EXPAND_ROW, 1)) == "overlap: expected true or false, got 1"
    assert rules.config_fault("expand", (*EXPAND_ROW[:-1], 0)) == "prefetch: expected true or false, got 0"


def test_a_field_that_came_later_is_in_no_older_row() -> None:
    """Prefetch came with schema 2, sliced_k with 3: an older row must not have them, and is read as one without."""
    for op, rows in (
        ("shrink", (ROW[:-1], ROW[:-1], ROW)),
        ("expand", (EXPAND_ROW[:-1], EXPAND_ROW, EXPAND_ROW)),
        ("add_lora", [(*ROW[:-1], *EXPAND_ROW[:-1], True), (*ROW[:-1], *EXPAND_ROW, True), (*ROW, *EXPAND_ROW, True)]),
    ):
        for schema, row in enumerate(rows, start=1):
            assert len(rules.field_names(op, schema)) == len(row)
            assert rules.config_fault(op, row, schema) is None
            assert rules.current_row(op, schema, row, 64, 64) == rows[-1]
            for other in rows:
                fault = f"expected {len(row)} values" if len(other) != len(row) else "None"
                assert fault in str(rules.config_fault(op, other, schema))
        assert rules.field_names(op, 3) == rules.FIELD_NAMES[op]


def test_a_field_that_came_later_is_kept_where_it_is() -> None:
    """A row of schema 2 says what prefetch is, one of schema 3 what sliced_k is too."""
    older, today = (*ROW[:-1], *EXPAND_ROW[:-1], True, True), (*ROW[:-1], True, *EXPAND_ROW[:-1], True, True)
    assert rules.current_row("add_lora", 2, older, 64, 64) == (*ROW, *EXPAND_ROW[:-1], True, True)
    assert rules.current_row("add_lora", 3, today, 64, 64) == today
    assert rules.current_row("shrink", 3, (*ROW[:-1], True), 16, 64) == (*ROW[:-1], True)


def test_rows_of_schema_1_had_no_tile_larger_than_a_segment() -> None:
    """A tile of 64 rows was cut down to segments of 16; since then it takes four of them together."""
    assert rules.current_row("shrink", 1, ROW[:-1], 16, 64) == (16, *ROW[1:])
    assert rules.current_row("shrink", 1, ROW[:-1], 48, 64) == ROW
    assert rules.current_row("shrink", 2, ROW[:-1], 16, 64) == ROW
    older = (*ROW[:-1], *EXPAND_ROW[:-1], True)
    stages = [rules.current_row("expand", 1, EXPAND_ROW[:-1], 64, max_rank)[5] for max_rank in (16, 17)]
    assert stages == [1, EXPAND_ROW[5]]  # the whole rank of 16 at once: one tile ahead, through registers
    assert rules.current_row("add_lora", 1, older, 20, 64) == (32, *ROW[1:], 32, *EXPAND_ROW[1:], True)


def test_large_tiles_are_weighed_as_they_are() -> None:
    """Also where a segment has fewer rows: tiles of 256 rows and six accumulators have no room, at any chunk size."""
    row = (256, 64, 64, 6, 1, 8, 2, None, False)
    assert "registers" in str(rules.resource_fault(row, SHRINK, H200))
    assert rules.resource_fault((256, 64, 64, 1, 1, 8, 2, None, False), SHRINK, H200) is None
    small = H200._replace(shared_memory=2 * (256 + 64) * 64 * 2 - 1)
    assert "shared memory" in str(rules.resource_fault((256, 64, 64, 1, 1, 8, 2, None, False), SHRINK, small))


def test_a_config_too_large_for_the_device_is_told() -> None:
    """The default shrink tile fits an H200 three stages deep, and not in 32 KiB; overlap needs Hopper."""
    small = rules.Limits(shared_memory=32 * 1024)
    assert rules.resource_fault(ROW, SHRINK, H200) is None
    fault = rules.resource_fault(ROW, SHRINK, small)
    assert fault is not None
    assert "shared memory" in fault
    joint = (*ROW, *EXPAND_ROW, True)
    both = Key("add_lora", 1024, (64,), 64, 1, "bfloat16", 16, 8)
    assert rules.resource_fault(joint, both, H200) is None
    assert "dependent launch" in str(rules.resource_fault(joint, both, H200._replace(programmatic_launch=False)))


@pytest.mark.parametrize(("num_warps", "block_k"), [(2, 32), (4, 64), (8, 128)])
def test_warps_share_a_step_that_is_long_enough(num_warps: int, block_k: int) -> None:
    """A dot takes 16 columns of x for each; of add_lora the part is named. Warps that share the tile take any step."""
    joint = Key("add_lora", 1024, (64,), 64, 1, "bfloat16", 16, 8)
    for short, sliced in ((False, True), (True, False), (True, True)):
        row = (16, 16, block_k // 2 if short else block_k, 1, 1, num_warps, 3, None, sliced)
        fault = f"shrink: sliced_k needs 16 columns of block_k or more for each of {num_warps} warps"
        wanted = fault if short and sliced else None
        assert rules.resource_fault(row, SHRINK, H200) == wanted
        assert rules.resource_fault((*row, *EXPAND_ROW, False), joint, H200) == wanted


@pytest.mark.parametrize("num_warps", [2, 4, 8])
def test_every_warp_of_a_shared_step_has_all_sums(num_warps: int) -> None:
    """In its registers, so that more warps do not make them fewer: 64 · 64 are 128 a thread, 64 · 128 too many."""

    def fault(block_n: int, column_tiles: int, maxnreg: int | None, sliced: bool) -> str | None:
        row = (64, block_n, 128, column_tiles, 1, num_warps, 2, maxnreg, sliced)
        return rules.resource_fault(row, SHRINK, rules.UNLIMITED)  # but for registers

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
    assert rules.resource_fault(wrong, key, H200) == "shrink needs about 344 registers a thread, 255 are available"
    for field, value in ((3, 1), (5, 8), (2, 64)):
        assert rules.resource_fault((*wrong[:field], value, *wrong[field + 1 :]), key, H200) is None
    assert rules.resource_fault(wrong, key._replace(dtype="float16"), H200) is None


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
    assert rules.resource_fault(row, SHRINK, rules.Limits(needed)) is None
    assert rules.resource_fault(row, SHRINK, rules.Limits(needed - 1)) == (
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
    assert rules.resource_fault(row, key, rules.Limits(needed)) is None
    assert rules.resource_fault(row, key, rules.Limits(needed - 1)) == (
        f"expand needs {needed} bytes of shared memory, the device allows {needed - 1}"
    )


def test_rows_have_a_fixed_order() -> None:
    """None (the compiler chooses) comes before any number, so rows with and without it can be sorted."""
    rows = [(16, 96), (16, None), (8, 255)]
    assert sorted(rows, key=rules.row_order) == [(8, 255), (16, None), (16, 96)]


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("3.10.0+cu130", (3, 10, 0)), ("3.6.0.post1", (3, 6, 0)), ("3.5rc2", (3, 5)), ("main", ())],
)
def test_versions_are_numbers(version: str, numbers: tuple[int, ...]) -> None:
    """Local suffixes are dropped, and so is what comes after the first part that is no number."""
    assert rules.version_numbers(version) == numbers


@pytest.mark.parametrize(("chunk_size", "tile"), [(1, 16), (16, 16), (17, 32), (48, 64), (64, 64), (1000, 64)])
def test_a_tile_has_no_more_rows_than_a_segment(chunk_size: int, tile: int) -> None:
    """Rounded up to a power of two, and to the least that a dot takes."""
    assert rules.row_tile(64, chunk_size) == tile


@pytest.mark.parametrize(
    ("block_n", "column_tiles", "columns", "last"),
    [(64, 3, 192, 64), (128, 2, 192, 64), (128, 1, 192, 128), (128, 2, 384, 128), (32, 2, 48, 16), (64, 1, 24, 32),
     (32, 1, 8, 16), (16, 4, 48, 16)],
)  # fmt: skip
def test_the_last_tile_is_no_wider_than_what_is_left(block_n: int, column_tiles: int, columns: int, last: int) -> None:
    """Where one program has all columns; else its tiles are all alike."""
    assert rules.last_tile(block_n, column_tiles, columns) == last
