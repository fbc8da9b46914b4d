"""Config classes hold what rules.FIELDS lists, and the defaults fit every device."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from csgmv import AddLoraConfig, ExpandConfig, ShrinkConfig, footprint, rules
from csgmv.config import default_config, from_row, to_row

# Shared memory that one block may use: A100, RTX 30/40 (sm_86/89) and RTX 50 (sm_120), H100/H200.
DEVICES = {"sm_80": 166_912, "sm_86": 101_376, "sm_90": 232_448}


def test_fields_are_those_of_the_rules() -> None:
    """Same names in the same order: a row of the table is a config's values."""
    assert tuple(f.name for f in fields(ShrinkConfig)) == rules.FIELD_NAMES["shrink"]
    assert tuple(f.name for f in fields(ExpandConfig)) == rules.FIELD_NAMES["expand"]
    assert len(to_row(AddLoraConfig())) == len(rules.FIELDS["add_lora"])


@pytest.mark.parametrize(
    "config",
    [
        ShrinkConfig(block_n=32, split_k=4, maxnreg=128),
        ShrinkConfig(block_m=16, sliced_k=True),
        ExpandConfig(column_tiles=3),
        ExpandConfig(block_k=64, num_stages=2, prefetch=True),
        AddLoraConfig(ShrinkConfig(num_warps=8), ExpandConfig(maxnreg=96), overlap=True),
        AddLoraConfig(expand=ExpandConfig(prefetch=True)),
        AddLoraConfig(ShrinkConfig(block_m=16, num_warps=2, sliced_k=True)),
    ],
)
def test_rows_and_configs_are_the_same_thing(config: ShrinkConfig | ExpandConfig | AddLoraConfig) -> None:
    """There and back."""
    row = to_row(config)
    assert rules.config_fault(config.op, row) is None
    assert from_row(config.op, row) == config


def test_configs_cannot_be_changed_or_malformed() -> None:
    """Frozen, and checked when they are made."""
    config = ShrinkConfig()
    with pytest.raises(FrozenInstanceError):
        config.block_n = 32  # type: ignore[misc]
    with pytest.raises(ValueError, match="shrink config: block_n: expected a power of two from 16 to 256, got 48"):
        ShrinkConfig(block_n=48)
    with pytest.raises(ValueError, match="expand config: maxnreg: expected from 24 to 255 or null, got 0"):
        ExpandConfig(maxnreg=0)
    with pytest.raises(ValueError, match="shrink config: sliced_k: expected true or false, got 1"):
        ShrinkConfig(sliced_k=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expand config: prefetch: expected true or false, got 1"):
        ExpandConfig(prefetch=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="add_lora config: overlap: expected true or false, got 1"):
        AddLoraConfig(overlap=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shrink config: expected 9 values"):
        from_row("shrink", (16, 16))


def test_defaults_are_the_reference_pull_requests() -> None:
    """sglang's tiles, which the speed-ups of the README are measured against."""
    assert (ShrinkConfig().block_n, ShrinkConfig().block_k) == (16, 256)
    assert (ExpandConfig().block_n, ExpandConfig().block_k) == (64, 16)


@pytest.mark.parametrize("shared_memory", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("dtype", rules.DTYPE_BYTES)
@pytest.mark.parametrize("chunk_size", [1, 16, 128, 512])
def test_the_default_fits_every_device(shared_memory: int, dtype: str, chunk_size: int) -> None:
    """The reference's tiles need 147,456 bytes at chunk 128, which an sm_86 does not have; ours are made to fit."""
    limits = footprint.Limits(shared_memory)
    key = rules.Key("add_lora", 4096, (4096, 1024, 1024), 256, 3, dtype, chunk_size, 64)
    assert footprint.resource_fault(to_row(default_config(key, limits)), key, limits) is None


@pytest.mark.parametrize(("chunk_size", "rows"), [(1, 16), (16, 16), (48, 64), (64, 64), (512, 64)])
def test_the_default_takes_no_segments_together(chunk_size: int, rows: int) -> None:
    """Its tile has no more rows than a segment, so that a batch of many adapters costs no more than before."""
    key = rules.Key("add_lora", 1024, (1024,), 64, 1, "bfloat16", chunk_size, 64)
    config = default_config(key, footprint.Limits(DEVICES["sm_90"]))
    assert isinstance(config, AddLoraConfig)
    assert (config.shrink.block_m, config.expand.block_m) == (rows, rows)


@pytest.mark.parametrize("op", ["shrink", "add_lora"])
@pytest.mark.parametrize(("chunk_size", "sliced"), [(1, True), (16, True), (17, False), (64, False), (512, False)])
def test_the_default_shares_the_steps_of_a_low_tile(op: str, chunk_size: int, sliced: bool) -> None:
    """Among its warps, where segments have 16 rows at most; with steps and a pipeline as everywhere else."""
    widths = (1024,) if op == "add_lora" else ()
    key = rules.Key(op, 4096, widths, 64, 1, "bfloat16", chunk_size, 8)
    config = default_config(key, footprint.Limits(DEVICES["sm_90"]))
    shrink = config.shrink if isinstance(config, AddLoraConfig) else config
    assert shrink == ShrinkConfig(block_m=footprint.row_tile(64, chunk_size), sliced_k=sliced)


@pytest.mark.parametrize(
    ("dtype", "shared_memory", "block_k", "sliced"),
    [
        ("float16", 8191, 64, True),
        ("float16", 4096, 64, True),
        ("float16", 4095, 32, False),
        ("float32", 8191, 32, False),
    ],
)
def test_the_default_shares_no_steps_too_short_for_it(
    dtype: str, shared_memory: int, block_k: int, sliced: bool
) -> None:
    """Four warps need steps of 64 columns: one of 16 rows and columns takes 4,096 bytes, twice that in float32."""
    key = rules.Key("shrink", 4096, (), 16, 1, dtype, 16, 1)
    config = default_config(key, footprint.Limits(shared_memory))
    assert isinstance(config, ShrinkConfig)
    assert (config.block_k, config.sliced_k) == (block_k, sliced)


def test_a_device_without_room_is_refused() -> None:
    """Nothing is launched that cannot run."""
    key = rules.Key("shrink", 4096, (), 16, 1, "float16", 16, 1)
    with pytest.raises(ValueError, match="no shrink config fits a device with 512 bytes"):
        default_config(key, footprint.Limits(512))
