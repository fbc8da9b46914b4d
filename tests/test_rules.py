"""The rules that codegen, tuner and dispatch share: keys, buckets, and what a row consists of."""

from __future__ import annotations

from fractions import Fraction

import pytest

from csgmv import rules
from csgmv.rules import Key

SHRINK = Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)
EXPAND = Key("expand", 0, (2048, 8, 0), 48, 3, "float16", 32, 1)
ROW = (64, 16, 256, 1, 1, 4, 3, None, False)
EXPAND_ROW = (64, 64, 16, 1, 4, 3, None, False)


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
