"""What `csgmv bench` measured, and how it is told: a table for people, Markdown for the README, JSON for programs.

Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from . import columns, rules


@dataclass(frozen=True)
class Case:
    """One kernel at one shape: what is timed. Layers that launch the very same kernel share it."""

    layers: tuple[str, ...]
    op: str
    input_dim: int
    slice_widths: tuple[int, ...]
    ranks: tuple[int, ...]  # the adapters' in turn
    tokens: int
    adapters: int
    distribution: str
    chunk_size: int
    dtype: str

    @property
    def dimension(self) -> str:
        """What the kernel maps from and to, e.g. '1024 → 3·64'."""
        return rules.dimensions(
            self.op, self.input_dim, self.slice_widths, len(self.slice_widths), max_rank=max(self.ranks)
        )


@dataclass(frozen=True)
class Figure:
    """A case, measured. Times are microseconds, None where a result was wrong: such a one is worth no time.

    Attributes:
        case: what was run.
        step: how dispatch came by the table's config.
        default_config, tuned_config: the two configs, by field.
        default_error, tuned_error: the largest error relative to the largest value of the float32 reference.
        default_us, tuned_us: median time of a call.
        floor_us: time in which the bytes that must move could be copied.
        invariant_config, invariant_error, invariant_us: the same of a launch with batch_invariant=True, if asked for.
    """

    case: Case
    step: str
    default_config: dict[str, int | bool | None]
    tuned_config: dict[str, int | bool | None]
    default_error: float
    tuned_error: float
    default_us: float | None
    tuned_us: float | None
    floor_us: float
    invariant_config: dict[str, int | bool | None] | None = None
    invariant_error: float = 0.0
    invariant_us: float | None = None

    @property
    def right(self) -> bool:
        """Whether every config gave the reference's result."""
        invariant = self.invariant_config is None or self.invariant_us is not None
        return self.default_us is not None and self.tuned_us is not None and invariant

    @property
    def cells(self) -> list[str]:
        """The figure as a row of the tables, in the order of HEADER."""
        case = self.case
        ranks = "+".join(map(str, case.ranks))
        batch = [f"{case.tokens}", f"{case.adapters} {case.distribution}" if case.adapters > 1 else "1", ranks]
        return [
            ", ".join(case.layers),
            case.op,
            case.dimension,
            *batch,
            str(case.chunk_size),
            _microseconds(self.default_us, self.default_error),
            _microseconds(self.tuned_us, self.tuned_error),
            f"{self.default_us / self.tuned_us:.2f}×" if self.default_us and self.tuned_us else "-",
            f"{self.floor_us:.1f}",
            f"{self.floor_us / self.tuned_us:.0%}" if self.tuned_us else "-",
            "-" if self.invariant_config is None else _microseconds(self.invariant_us, self.invariant_error),
            f"{self.invariant_us / self.tuned_us:.2f}×" if self.invariant_us and self.tuned_us else "-",
            self.step,
        ]


HEADER = (
    "layer",
    "kernel",
    "dimension",
    "tokens",
    "adapters",
    "rank",
    "chunk",
    "default µs",
    "tuned µs",
    "speed-up",
    "floor µs",
    "of floor",
    "invariant µs",
    "÷ tuned",
    "config",
)
_BATCH = slice(3, 6)  # columns that say nothing where every row has the same batch: the method line does then
_INVARIANT = slice(12, 14)  # columns that are there only if asked for


def _microseconds(time: float | None, error: float) -> str:
    return f"WRONG: {error:.1e}" if time is None else f"{time:.1f}"


@dataclass(frozen=True)
class Report:
    """Figures of one run, and all that one must know to make them again."""

    figures: Sequence[Figure]
    gpu: str
    torch: str
    triton: str
    csgmv: str
    date: str
    copy_bandwidth: float  # bytes per second, read and written
    method: str  # how a time was taken
    command: str

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows, without the columns of the batch where it is the same one throughout."""
        header, rows = list(HEADER), [figure.cells for figure in self.figures]
        unasked = all(figure.invariant_config is None for figure in self.figures)
        same = len({tuple(row[_BATCH]) for row in rows}) == 1
        for row in (header, *rows):
            if unasked:
                del row[_INVARIANT]
            if same:
                del row[_BATCH]
        return header, rows

    def _invariant(self) -> str:
        if all(figure.invariant_config is None for figure in self.figures):
            return ""
        return " invariant: batch_invariant=True, one config for batches of any size, with tiles of 16 rows."

    def _batch(self) -> str:
        batches = {
            f"{case.tokens} tokens, {case.adapters} {'adapter' if case.adapters == 1 else 'adapters'}"
            + (f" ({case.distribution})" if case.adapters > 1 else "")
            + f", rank {'+'.join(map(str, case.ranks))}, {case.dtype}"
            for case in (figure.case for figure in self.figures)
        }
        return f"{batches.pop()}. " if len(batches) == 1 else f"{self.figures[0].case.dtype}. " if self.figures else ""

    def note(self) -> str:
        """GPU, versions, date and method: what stands beneath every table of figures."""
        return (
            f"{self.gpu}, torch {self.torch}, Triton {self.triton}, csgmv {self.csgmv}, {self.date}. {self._batch()}"
            f"{self.method} Every result was compared with a float32 reference first. "
            f"floor: inputs read once and outputs written once (base_output also read), at the "
            f"{self.copy_bandwidth / 1e12:.2f} TB/s of a device-to-device copy in the same run, bytes read and written "
            f"both counted. config: the step of the fallback that the tuned config came from.{self._invariant()}"
        )

    def text(self, width: int | None) -> str:
        """For a terminal of so many columns (None: any)."""
        return f"{columns.aligned(*self._table(), width)}\n\n{self.note()}"

    def markdown(self) -> str:
        """For the README, with the command that prints it."""
        return f"{columns.markdown(*self._table())}\n\n{self.note()} Printed by `{self.command}`."

    def json(self) -> str:
        """Everything, by name."""
        return json.dumps(asdict(self), indent=1) + "\n"
