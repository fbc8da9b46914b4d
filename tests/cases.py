"""Cases: one call of an operation each, by all that can differ from one to the next, drawn at random.

A case is numbers and words only, so that one line repeats it. It is drawn in two parts: the kind, which decides what
is compiled (dimensions, strides, layout, config), and the batch (rows, adapters, how they are grouped), of which a kind
can have many. What draws is a `random.Random`, or hypothesis in the guise of one.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from csgmv import config as configs
from csgmv import dispatch, fallback, footprint, rules
from csgmv.tuning import space

MIXES = ("random", "runs", "prompts", "turns", "one", "some", "none")
GROUPINGS = ("tokens", "sequences", "on the device", "refilled", "refilled on the device", "other adapters")
SOURCES = ("the table", "the default", "a row", "the tuning space", "any")
TENSORS = ("x", "lora_a", "lora_b", "base_output")
SLICED = ("lora_a", "lora_b", "h", "base_output")


class Scale(NamedTuple):
    """How large cases get; of each size any value is as likely as any other.

    Attributes:
        input_dims, widths, max_ranks, chunk_sizes, tokens, loras: what is drawn from.
        most_programs: of one launch, but for batches of a single segment.
        most_numbers: of one weight tensor, but for those of a single adapter.
        most_loaded: numbers that a thread loads for one step or tile: with very many a kernel spills, and compiling it
            takes longer than all else. Rows of the table and defaults have what they have.
    """

    input_dims: Sequence[int]
    widths: Sequence[int]
    max_ranks: Sequence[int]
    chunk_sizes: Sequence[int]
    tokens: Sequence[int]
    loras: Sequence[int]
    most_programs: int
    most_numbers: int
    most_loaded: int


# Interpreted, a program takes some milliseconds.
SMALL = Scale(
    input_dims=(1, 5, 16, 17, 24, 32, 40, 48, 61, 64, 72, 96, 101, 128, 160, 200, 256, 300),
    widths=(0, 1, 4, 5, 7, 8, 9, 16, 24, 31, 32, 40, 48, 64, 65, 96),
    max_ranks=(1, 2, 3, 4, 5, 7, 8, 8, 12, 16, 16, 17, 24, 32, 32, 40, 48, 64, 72, 130, 256),
    chunk_sizes=(1, 3, 8, 16, 16, 24, 32, 64, 128, 200),
    tokens=(0, 1, 1, 2, 3, 5, 8, 13, 16, 17, 24, 33, 40, 64, 90, 150, 300),
    loras=(1, 1, 2, 3, 4, 6, 9),
    most_programs=32,
    most_numbers=2**20,
    most_loaded=2**30,
)
TINY = SMALL._replace(tokens=SMALL.tokens[:-3], loras=(1, 2, 3, 4), most_programs=16)
LARGE = Scale(
    input_dims=(1, 8, 61, 64, 72, 128, 200, 256, 512, 1000, 1024, 1536, 2048, 2049, 3072, 4096, 8192, 12345, 14336),
    widths=(0, 1, 5, 8, 9, 16, 40, 64, 65, 96, 128, 256, 500, 512, 1000, 1024, 2048, 2049, 3072, 4096, 8192, 12345),
    max_ranks=(1, 2, 3, 4, 7, 8, 8, 12, 16, 16, 24, 32, 32, 40, 48, 64, 64, 96, 128, 200, 256),
    chunk_sizes=(1, 7, 8, 16, 16, 16, 24, 32, 32, 64, 64, 128, 128, 200, 256),
    tokens=(0, 1, 1, 2, 3, 5, 8, 13, 16, 17, 24, 32, 33, 64, 90, 128, 150, 256, 300, 512, 700, 1024, 2000, 3000),
    loras=(1, 1, 2, 3, 4, 6, 8, 9, 16, 32, 100, 128),
    most_programs=2**20,
    most_numbers=2**24,
    most_loaded=320,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        op, dtype, input_dim, widths, max_rank, chunk_size, padded, batch_invariant: as the operations are told; of
            widths shrink has only the number.
        x_extra, base_extra: columns between rows of x or h, and of base_output, which nobody may touch.
        unaligned: the tensor that does not begin at a multiple of 16 bytes; "" for none.
        given_out: whether shrink is given the tensor that it writes.
        apart: of SLICED those whose slices are tensors of their own, as far as the operation takes them.
        config: the config's row; None for what the operation finds.
        source: where that came from, one of SOURCES.
        num_tokens, idle_rows: rows of the batch, and rows of x after these.
        ranks, scalings: of each adapter slot.
        spare_loras: slots of the weights that the segments do not know of.
        mix: which rows have which adapter, one of MIXES.
        grouping: how the Segments are made, one of GROUPINGS.
        spare_tokens: rows that Segments which are refilled could have besides.
        seed: of the numbers in the tensors, and of the mix.
    """

    op: str
    dtype: str
    input_dim: int
    widths: tuple[int, ...]
    max_rank: int
    chunk_size: int
    padded: bool
    batch_invariant: bool
    x_extra: int
    base_extra: int
    unaligned: str
    given_out: bool
    config: rules.Row | None
    source: str
    num_tokens: int = 0
    idle_rows: int = 0
    ranks: tuple[int, ...] = (1,)
    scalings: tuple[float, ...] = (1.0,)
    spare_loras: int = 0
    mix: str = "none"
    grouping: str = "tokens"
    spare_tokens: int = 0
    seed: int = 0
    apart: tuple[str, ...] = ()

    @property
    def key(self) -> rules.Key:
        """What the call is looked up under, but for the number of its segments."""
        widths = () if self.op == "shrink" else self.widths
        dim = 0 if self.op == "expand" else self.input_dim
        return rules.Key(self.op, dim, widths, self.max_rank, len(self.widths), self.dtype, self.chunk_size, 1)

    def ids(self) -> list[int]:
        """The adapter slot of each row of the batch, -1 for none."""
        draw, slots = random.Random(self.seed), range(-1, len(self.ranks))
        one = draw.randrange(len(self.ranks))
        if self.mix == "none":
            return [-1] * self.num_tokens
        if self.mix == "one":
            return [one] * self.num_tokens
        if self.mix == "some":  # of a few rows, here and there
            return [one if draw.random() < 0.1 else -1 for _ in range(self.num_tokens)]
        if self.mix == "turns":
            return [token % len(self.ranks) for token in range(self.num_tokens)]
        if self.mix == "prompts":  # of 128 tokens each
            prompts = -(-self.num_tokens // 128)
            return [slot for _ in range(prompts) for slot in [draw.randrange(len(self.ranks))] * 128][: self.num_tokens]
        if self.mix == "random":
            return [draw.choice(slots) for _ in range(self.num_tokens)]
        ids: list[int] = []
        while len(ids) < self.num_tokens:
            ids += [draw.choice(slots)] * draw.randint(1, 1 + self.num_tokens // 3)
        return ids[: self.num_tokens]

    def line(self) -> str:
        """The case as one line, which `read` takes."""
        return json.dumps(dataclasses.asdict(self))


def read(line: str) -> Case:
    """The case of a line."""
    fields = json.loads(line)
    return Case(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def draw_kind(draw: random.Random, scale: Scale, dtypes: Sequence[str], limits: footprint.Limits) -> Case:
    """A call without rows, whose config a device with these limits can run."""
    kind = Case(
        op=draw.choice(rules.OPS),
        dtype=draw.choice(dtypes),
        input_dim=draw.choice(scale.input_dims),
        widths=tuple(draw.choice(scale.widths) for _ in range(draw.randint(1, rules.MAX_SLICES))),
        max_rank=draw.choice(scale.max_ranks),
        chunk_size=draw.choice(scale.chunk_sizes),
        padded=draw.random() < 0.3,
        batch_invariant=draw.random() < 0.15,
        x_extra=draw.choice((0, 0, 0, 3, 8, 16)),
        base_extra=draw.choice((0, 0, 0, 3, 8, 16)),
        unaligned=draw.choice(TENSORS) if draw.random() < 0.1 else "",
        given_out=draw.random() < 0.5,
        config=None,
        source=draw.choice(SOURCES),
        apart=tuple(name for name in SLICED if draw.random() < 0.5) if draw.random() < 0.4 else (),
    )
    return kind if kind.source == "the table" else dataclasses.replace(kind, config=_row(draw, kind, scale, limits))


def draw_batch(draw: random.Random, kind: Case, scale: Scale) -> Case:
    """The same call with rows and adapters."""
    slots = draw.choice(scale.loras)
    most = scale.most_numbers // (kind.max_rank * max(sum(kind.widths), kind.input_dim * len(kind.widths)))
    slots = max(1, min(slots, most))
    segments = max(1, scale.most_programs // _programs(kind))
    tokens = min(draw.choice(scale.tokens), segments * min(kind.chunk_size, 64))
    ranks = tuple(_rank(draw, kind.max_rank) for _ in range(min(slots, segments)))
    large = 1000.0 if kind.dtype == "float16" else 1e6  # float16 ends at 65504
    scalings = (1.0, 0.5, -1.25, 2.0, 0.0, -0.0, 2.0**-12, large, -large)
    return dataclasses.replace(
        kind,
        num_tokens=tokens,
        idle_rows=draw.choice((0, 0, 0, 1, 7)),
        ranks=ranks,
        scalings=tuple(draw.choice(scalings) for _ in ranks),
        spare_loras=draw.choice((0, 0, 1, 2)),
        mix=draw.choice(MIXES),
        grouping=draw.choice(GROUPINGS),
        spare_tokens=draw.choice((0, 0, 1, 20, 100)) if scale is LARGE else draw.choice((0, 0, 1, 20)),
        seed=draw.randrange(2**31),
    )


def _rank(draw: random.Random, max_rank: int) -> int:
    """All of max_rank, which the kernels have paths of their own for, more often than anything less; sometimes 0."""
    how = draw.random()
    return max_rank if how < 0.4 else 0 if how < 0.5 else draw.randint(1, max_rank)


def _row(draw: random.Random, kind: Case, scale: Scale, limits: footprint.Limits) -> rules.Row:
    """A config from the kind's source, cut down to what the device can run."""
    if kind.source == "a row":
        tuned = (item for rows in dispatch.tables().rows.values() for item in fallback.flat(rows).items())
        row = draw.choice([row for key, row in tuned if key[0] == kind.op and row])
    elif kind.source == "the default":
        row = configs.to_row(configs.default_config(kind.key, limits))
    else:
        row = tuple(_value(draw, kind, field) for field in rules.FIELDS[kind.op])
    if kind.batch_invariant:
        low = configs.with_block_m(configs.from_row(kind.op, row), dispatch.INVARIANT_BLOCK_M)
        row = configs.to_row(low)
    plain = kind.source in ("a row", "the default")
    while footprint.resource_fault(row, kind.key, limits) or not (plain or _loaded(kind, row) <= scale.most_loaded):
        row = _smaller(draw, kind, row)
    splits = "shrink_split_k" if kind.op == "add_lora" else "split_k"
    named = dict(zip(rules.FIELD_NAMES[kind.op], row))
    while named.get(splits, 1) > 2 and _programs(dataclasses.replace(kind, config=row)) > scale.most_programs:
        named[splits] //= 2
        row = tuple(named.values())
    return row


def _value(draw: random.Random, kind: Case, field: rules.Field) -> Any:
    part, _, name = field.name.partition("_") if kind.op == "add_lora" else (kind.op, "", field.name)
    values = space.VALUES.get(part, {}).get(name)
    if kind.source == "the tuning space" and values:
        return draw.choice(values)
    if field.boolean:
        return draw.random() < 0.5
    if field.optional and draw.random() < 0.6:
        return None
    if field.power_of_two:
        return draw.choice([size for size in range(field.least, field.most + 1) if size & (size - 1) == 0])
    return draw.randint(field.least, min(field.most, draw.choice((4 * field.least, field.most))))


def _loaded(kind: Case, row: rules.Row) -> int:
    """Numbers that a thread loads for one step of shrink, or one tile of expand, whichever are more."""
    most = 0
    for part, _, fields in rules.parts(kind.op, row):
        m, n, k = fields["block_m"], fields["block_n"], fields["block_k"]
        if part == "shrink":
            numbers = (m + footprint.shrink_columns(n, fields["column_tiles"], kind.key)) * k
        else:
            k = footprint.rank_step(k, kind.max_rank)
            numbers = (m + n) * k + m * n
        most = max(most, numbers // (32 * fields["num_warps"]))
    return most


def _smaller(draw: random.Random, kind: Case, row: rules.Row) -> rules.Row:
    """The row with one field drawn nearer to its least; a register cap is dropped, a flag cleared."""
    named = dict(zip(rules.FIELD_NAMES[kind.op], row))
    least: dict[str, Any] = {
        f.name: None if f.optional else False if f.boolean else f.least for f in rules.FIELDS[kind.op]
    }
    field = draw.choice([field for field in rules.FIELDS[kind.op] if named[field.name] != least[field.name]])
    value: Any = named[field.name]
    named[field.name] = least[field.name] if field.optional or field.boolean else max(field.least, value // 2)
    return tuple(named.values())


def _programs(kind: Case) -> int:
    """Programs of a tile of rows, in the launch that has more of them."""
    if kind.config is None:
        return max(1, sum(kind.widths) // 32 + len(kind.widths) * kind.max_rank // 16)
    return max(_cells(kind, part, fields) for part, _, fields in rules.parts(kind.op, kind.config))


def _cells(kind: Case, part: str, fields: dict[str, Any]) -> int:
    wide = fields["block_n"] * fields["column_tiles"]
    if part == "shrink":
        return int(-(-len(kind.widths) * kind.max_rank // wide) * fields["split_k"])
    return max(1, sum(-(-width // wide) for width in kind.widths))


def drawn(
    seed: int, count: int, batches: int, scale: Scale, dtypes: Sequence[str], limits: footprint.Limits
) -> Iterator[list[Case]]:
    """`count` cases, by kinds of `batches` cases each."""
    for number in range(-(-count // batches)):
        draw = random.Random(f"{seed}, {number}")
        kind = draw_kind(draw, scale, dtypes, limits)
        yield [draw_batch(draw, kind, scale) for _ in range(min(batches, count - number * batches))]
