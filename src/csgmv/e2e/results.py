"""What was measured end to end, told as text, Markdown and JSON; standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from csgmv import columns

# The columns' names, in their order. What is served by csgmv's tuned configs, by its defaults, …
BARE, OURS, DEFAULTS, NONE, BMM, PEFT = "bare", "csgmv", "defaults", "no adapters", "torch.bmm", "PEFT"
SMALL_CHUNK = 16  # what small batches get, and all of them where nothing was tuned
COLUMNS: tuple[tuple[str, bool], ...] = (  # a way to serve, and whether at SMALL_CHUNK or at the chunk size of choice
    (OURS, False),
    (OURS, True),
    (DEFAULTS, False),
    (DEFAULTS, True),
    (NONE, False),
    (BMM, False),
    (PEFT, False),
)


@dataclass(frozen=True)
class Timed:
    """One way to serve a batch, measured.

    Attributes:
        way: one of the names above.
        chunk_size: of its segments; None for ways that have none.
        error: of its hidden states, as `reference.error` has it; None for a number that is not finite.
        ms: median milliseconds of a call; None where the result was wrong: such a one is worth no time.
    """

    way: str
    chunk_size: int | None
    error: float | None
    ms: float | None


@dataclass(frozen=True)
class Batch:
    """A batch, and all ways to serve it.

    Attributes:
        rows: its sequences.
        tokens: of each; 1 for a step of decoding.
        chunk_size: that csgmv chooses for it.
        tolerance: what an error may be.
        floor_ms: time in which the bytes that the adapters' calls must move could be copied.
        timed: the bare model first.
    """

    rows: int
    tokens: int
    chunk_size: int
    tolerance: float
    floor_ms: float
    timed: Sequence[Timed]

    def find(self, way: str, small: bool = False) -> Timed | None:
        """A way to serve it, at SMALL_CHUNK or at the chunk size of choice."""
        small &= self.chunk_size != SMALL_CHUNK  # where that is the chosen one, it was measured once
        sizes = (SMALL_CHUNK,) if small else (None,)
        return next((each for each in self.timed if each.way == way and each.chunk_size in sizes), None)

    def ms(self, way: str, small: bool = False) -> float | None:
        """Its time, if it has one."""
        found = self.find(way, small)
        return None if found is None else found.ms

    def gain(self, *, over_small: bool, small: bool) -> float | None:
        """How many times as much tuned configs get done as the defaults, each at SMALL_CHUNK or at the chosen size."""
        before, after = self.ms(DEFAULTS, over_small), self.ms(OURS, small)
        return None if before is None or after is None else before / after

    @property
    def right(self) -> bool:
        """Whether every way gave what it should."""
        return all(each.ms is not None for each in self.timed)


@dataclass(frozen=True)
class Subject:
    """A model and its adapters."""

    model: str
    layers: int
    dtype: str
    adapters: int
    ranks: tuple[int, ...]  # the adapters' in turn
    batches: Sequence[Batch]

    @property
    def caption(self) -> str:
        """One line on it."""
        what = f"{self.adapters} {'adapter' if self.adapters == 1 else 'adapters'}"
        layers = f"{self.layers} {'layer' if self.layers == 1 else 'layers'}"
        ranks = "+".join(map(str, self.ranks))
        return f"{self.model}'s shapes, {layers}, {self.dtype}; {what} of rank {ranks} on all linear layers"


def _cell(batch: Batch, way: str, small: bool) -> str:
    found, bare = batch.find(way, small), batch.ms(BARE)
    if found is None:
        return "-"
    if found.ms is None:
        return "WRONG" if found.error is None else f"WRONG: {found.error:.1e}"
    return f"{found.ms:.2f} ({found.ms / bare:.2f}×)" if bare else f"{found.ms:.2f}"


def _percent(gain: float | None) -> str:
    return "-" if gain is None else f"{100 * (gain - 1):+.1f} %"


def times_table(subject: Subject) -> tuple[list[str], list[list[str]]]:
    """Header and rows: milliseconds of a batch by each way to serve it, and as multiples of the bare model's."""
    names = [f"{way}, chunk {SMALL_CHUNK}" if small else way for way, small in COLUMNS]
    rows = []
    for batch in subject.batches:
        bare = batch.ms(BARE)
        floor = f"{1 + batch.floor_ms / bare:.2f}×" if bare else "-"
        cells = (_cell(batch, way, small) for way, small in COLUMNS)
        rows.append([f"{batch.rows} × {batch.tokens}", f"{bare:.2f}" if bare else "-", floor, *cells])
    return ["batch", "bare ms", "floor", *names], rows


def worth_table(subject: Subject) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what the table of configs is worth, as throughput over that of the default configs."""
    header = [
        "batch",
        "chosen chunk",
        f"table, both at {SMALL_CHUNK}",
        "table, both at the chosen",
        f"table at the chosen, default at {SMALL_CHUNK}",
    ]
    gains = ((True, True), (False, False), (True, False))
    rows = [
        [
            f"{batch.rows} × {batch.tokens}",
            str(batch.chunk_size),
            *(_percent(batch.gain(over_small=over_small, small=small)) for over_small, small in gains),
        ]
        for batch in subject.batches
    ]
    return header, rows


@dataclass(frozen=True)
class Report:
    """Figures of one run, and all that one must know to make them again."""

    subjects: Sequence[Subject]
    gpu: str
    torch: str
    triton: str
    transformers: str
    peft: str | None  # None where it is not installed
    csgmv: str
    table: str | None  # the digest of the tuned configs
    date: str
    copy_bandwidth: float  # bytes per second, read and written
    method: str  # how a time was taken
    command: str

    @property
    def right(self) -> bool:
        """Whether every result was."""
        return all(batch.right for subject in self.subjects for batch in subject.batches)

    def note(self) -> str:
        """GPU, versions, date and method: what stands beneath the tables."""
        peft = f"PEFT {self.peft}" if self.peft else "PEFT not installed"
        return (
            f"{self.gpu}, torch {self.torch}, Triton {self.triton}, transformers {self.transformers}, {peft}, csgmv "
            f"{self.csgmv}, table {(self.table or 'none')[:14]}, {self.date}. Random weights; the decoder without its "
            f"head; batches are rows × tokens, rows take the adapters in turn. {self.method}. Each way's last hidden "
            "states were first compared with each row's own in float32, its adapter merged into the weights: by row, "
            "in norm, at most twice off what the bare model in the same dtype is; a wrong one has no time. In brackets "
            "multiples of the bare model's time. floor: the bare model, and the bytes that the adapters' calls must "
            f"move, at the {self.copy_bandwidth / 1e12:.2f} TB/s of a device-to-device copy in the same run. csgmv: "
            "MultiLoRA with the table's configs, at the chunk size that csgmv chooses; defaults: with the built-in "
            "default configs instead, as without a table. no adapters: MultiLoRA, no row with an adapter. torch.bmm: "
            "forward hooks of two torch.bmm a layer, with A and B gathered by row. PEFT: its mixed batch "
            "(adapter_names), which cannot be captured. What the table is worth: batches in the same time, more than "
            "with default configs."
        )

    def _tables(self) -> Iterator[tuple[str, tuple[list[str], list[list[str]]]]]:
        for subject in self.subjects:
            yield subject.caption, times_table(subject)
            yield "What the table is worth", worth_table(subject)

    def text(self, width: int | None) -> str:
        """For a terminal of so many columns (None: any)."""
        parts = [f"{caption}\n\n{columns.aligned(*table, width)}" for caption, table in self._tables()]
        return "\n\n".join([*parts, self.note()])

    def markdown(self) -> str:
        """For the README, with the command that prints it."""
        parts = [f"**{caption}**\n\n{columns.markdown(*table)}" for caption, table in self._tables()]
        return "\n\n".join([*parts, f"{self.note()} Printed by `{self.command}`."])

    def json(self) -> str:
        """Everything, by name."""
        return json.dumps(asdict(self), indent=1) + "\n"
