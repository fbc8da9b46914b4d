"""Launch configs of the three operations: frozen classes and their built-in defaults.

A config holds everything about a launch that does not change its result: tile sizes, split-K, warps, stages,
register cap. Its fields, and what each may be, are listed in `rules.FIELDS`, from which tuner and codegen work too.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Union

from csgmv import footprint, rules

# Not dataclasses.astuple: that copies recursively, which is slow, and the tuner makes hundreds of thousands of rows.
_values = {op: operator.attrgetter(*rules.FIELD_NAMES[op]) for op in ("shrink", "expand")}


def _check(op: str, row: tuple[object, ...]) -> None:
    if fault := rules.config_fault(op, row):
        raise ValueError(f"{op} config: {fault}")


@dataclass(frozen=True)
class ShrinkConfig:
    """How `lora_shrink` is launched. The defaults are sglang's (BLOCK_N 16, BLOCK_K 256).

    Attributes:
        block_m: rows of a tile. A longer segment is cut into several tiles; where chunk_size is at most half of it,
            neighbouring segments share a tile as far as they share an adapter.
        block_n: columns of one accumulator (columns are num_slices · rank).
        block_k: input columns multiplied per step.
        column_tiles: accumulators of one program, all fed by the same tile of x; the last one is narrower where that
            holds all columns that are left.
        split_k: parts that input_dim is cut into, each summed by a program of its own into float32 partials.
        num_warps: warps of a program.
        num_stages: depth of the software pipeline over block_k steps.
        maxnreg: registers a thread may use, or None to let the compiler choose.
        sliced_k: every warp multiplies its own part of each step's block_k columns, for all of the program's tile, and
            the parts are added up at the end (CUTLASS's sliced-K); else warps divide the tile among them.
    """

    op: ClassVar[str] = "shrink"
    block_m: int = 64
    block_n: int = 16
    block_k: int = 256
    column_tiles: int = 1
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None
    sliced_k: bool = False

    def __post_init__(self) -> None:
        _check(self.op, to_row(self))


@dataclass(frozen=True)
class ExpandConfig:
    """How `lora_expand` is launched. The defaults are sglang's (BLOCK_N 64, BLOCK_K 16).

    Attributes:
        block_m: rows of a tile. A longer segment is cut into several tiles; where chunk_size is at most half of it,
            neighbouring segments share a tile as far as they share an adapter.
        block_n: output columns of a tile.
        block_k: ranks multiplied per step; the whole rank at once where it is at least max_rank.
        column_tiles: tiles that one program computes one after the other, keeping its rows of h on chip.
        num_warps: warps of a program.
        num_stages: depth of the software pipeline, through shared memory, over tiles (over block_k steps where these
            are less than the rank); 1 loads one tile ahead through registers.
        maxnreg: registers a thread may use, or None to let the compiler choose.
        prefetch: move the base_output of a program's first tiles into L2 while h is being fetched (num_stages > 1).
    """

    op: ClassVar[str] = "expand"
    block_m: int = 64
    block_n: int = 64
    block_k: int = 16
    column_tiles: int = 1
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None
    prefetch: bool = False

    def __post_init__(self) -> None:
        _check(self.op, to_row(self))


@dataclass(frozen=True)
class AddLoraConfig:
    """How `add_lora` is launched: its two kernels, tuned together.

    Attributes:
        shrink: the first kernel; with split_k > 1 it leaves float32 partials that the second sums as it loads them.
        expand: the second kernel.
        overlap: start the second kernel's loads of weights and base before the first has finished
            (programmatic dependent launch; compute capability 9.0 and Triton 3.5, and later).
    """

    op: ClassVar[str] = "add_lora"
    shrink: ShrinkConfig = field(default_factory=ShrinkConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)
    overlap: bool = False

    def __post_init__(self) -> None:
        for name, part, kind in (("shrink", self.shrink, ShrinkConfig), ("expand", self.expand, ExpandConfig)):
            if not isinstance(part, kind):
                raise TypeError(f"{name}: expected {kind.__name__}, got {type(part).__name__}")
        _check(self.op, to_row(self))


Config = Union[ShrinkConfig, ExpandConfig, AddLoraConfig]
_CLASSES: Mapping[str, type[Any]] = {"shrink": ShrinkConfig, "expand": ExpandConfig}


def to_row(config: Config) -> rules.Row:
    """A config's values in the order of `rules.FIELDS`: what the table and the raw results hold."""
    if isinstance(config, AddLoraConfig):
        return (*to_row(config.shrink), *to_row(config.expand), config.overlap)
    row: rules.Row = _values[config.op](config)
    return row


def from_row(op: str, row: rules.Row) -> Config:
    """The inverse of `to_row`.

    Raises:
        ValueError: the row is not a well-formed config of this operation.
    """
    _check(op, row)
    if op == "add_lora":
        cut = len(fields(ShrinkConfig))
        return AddLoraConfig(ShrinkConfig(*row[:cut]), ExpandConfig(*row[cut:-1]), bool(row[-1]))  # type: ignore[arg-type]
    config: Config = _CLASSES[op](*row)
    return config


def with_block_m(config: Config, block_m: int) -> Config:
    """The same config with tiles of this many rows, in both kernels where there are two."""
    if isinstance(config, AddLoraConfig):
        shrink, expand = replace(config.shrink, block_m=block_m), replace(config.expand, block_m=block_m)
        return replace(config, shrink=shrink, expand=expand)
    return replace(config, block_m=block_m)


def _smaller(config: ShrinkConfig | ExpandConfig) -> Iterator[Any]:
    """The config and ever more modest ones, for devices and dtypes that the first asks too much of."""
    yield config
    for block_m in (config.block_m, 32, 16):
        for block_k in (config.block_k, 128, 64, 32, 16):
            for num_stages in (config.num_stages, 2, 1):
                if block_m <= config.block_m and block_k <= config.block_k and num_stages <= config.num_stages:
                    yield replace(config, block_m=block_m, block_k=block_k, num_stages=num_stages)


def default_config(key: rules.Key, limits: footprint.Limits) -> Config:
    """The built-in config for a key that no table row serves: the class defaults, made to fit the device.

    Its tiles have no more rows than a segment: what taking segments together gains depends on the batch.

    Raises:
        ValueError: not even the smallest tile fits.
    """
    if key.op == "add_lora":
        shrink, expand = (default_config(key._replace(op=op), limits) for op in ("shrink", "expand"))
        assert isinstance(shrink, ShrinkConfig)
        assert isinstance(expand, ExpandConfig)
        return AddLoraConfig(shrink, expand)
    plain = _CLASSES[key.op]()
    if key.op == "expand" and plain.block_k >= key.max_rank:
        plain = replace(plain, num_stages=1)  # the whole rank at once and one tile: there is nothing to pipeline
    plain = replace(plain, block_m=footprint.row_tile(plain.block_m, key.chunk_size))
    configs = _smaller(plain)
    if key.op == "shrink" and plain.block_m == 16:  # 10 to 25 % faster (H200, 4,096 columns, 1 to 32 segments)
        configs = itertools.chain(_smaller(replace(plain, sliced_k=True)), configs)
    for config in configs:
        if footprint.resource_fault(to_row(config), key, limits) is None:
            return config  # type: ignore[no-any-return]
    raise ValueError(f"no {key.op} config fits a device with {limits.shared_memory} bytes of shared memory")
