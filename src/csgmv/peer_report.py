"""Tell what bench_peers.py measured: tables, the sums and ratios that they come to, and how they were measured."""

from __future__ import annotations

import argparse
import datetime
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import csgmv
from csgmv import columns, files, peer_plot, peers, readme_block
from csgmv.peers import NAMES, OURS, PEERS, Comparison, Run

MARKER = "peers"
SMALL_US = 8.0  # below such a floor launches cost more than memory
_NOTHING = Comparison((), {})
_LINE = re.compile(r"(?P<gpu>\S.*?) torch (?P<torch>\S+) triton (?P<triton>\S+)( (?P<date>\d{4}-\d\d-\d\d))?")
_CAPTIONS = {
    "prefill": (
        "Prefill: a decoder layer's eight LoRA calls, Qwen3-Embedding-0.6B, rank 64, 30,720 tokens, fp16, one "
        "adapter; µs, each backend at its best single chunk size ({chunks})"
    ),
    "mixed": (
        "Mixed: shrink + expand of Qwen3-Embedding-0.6B's layers, rank 64, bf16, rows gathered, requests of "
        "Zipf-distributed lengths; µs, each backend at its best chunk size"
    ),
    "decode": "Decode: shrink + expand of Qwen3.5-9B's layers, rank 32, bf16, chunk size 16, rows dealt evenly; µs",
    "host": (
        "Host: µs of CPU time of one call for 8 tokens of 8 adapters, the queue never full "
        "(`torch.empty` alone: {empty}); compare within a run only"
    ),
    peers.WHOLE_MODELS: (
        "End to end: transformers' Qwen3 of Qwen3-Embedding-0.6B's shape, random weights, bf16, 8 adapters of rank 64 "
        "on all seven projections in one batch; ms, in brackets multiples of the bare model's time"
    ),
}
_LABELS = {
    "prefill": ("layer", "kernel"),
    "mixed": ("tokens × adapters", "layer"),
    "decode": ("tokens × adapters", "layer"),
    "host": ("call",),
}
METHOD = (
    "Times but host's: median µs of GPU time of one launch with a cold L2; prefill by triton.testing.do_bench, mixed "
    "and decode by a CUDA graph that takes copies of all tensors in turn, together more than the L2. Every backend's "
    "whole output was first compared with a float32 reference on top of a random base; a wrong one, or one that could "
    "not be captured, has no time (-). floor: the bytes that must move (inputs read once, output read and written "
    "once) at the bandwidth of a device-to-device copy in the same run. limit: a plain torch pass over the same bytes "
    "(`x.sum()`, `out.mul_(1)`). cuBLAS: `torch.mm` and `addmm_` for one adapter, without routing. sglang 0.5.11: its "
    "chunked SGMV kernels with their shipped configs. 0.5.23: those as shipped; tuned: over its own tuner's space for "
    "the decode shapes; split-K: its split-K shrink. vLLM 0.33: lora_shrink and lora_expand as shipped, which have no "
    "chunk size. csgmv: add_lora in mixed and decode; in prefill and host lora_shrink and lora_expand by way of "
    "csgmv.integrations.sglang, but add_lora in rows that say so, where the peers' times are still those of their two "
    "calls. best peer: the fastest of sglang's and vLLM's columns in that row."
)
METHOD_OF_WHOLE_MODELS = (
    "End to end: median of 9 forward passes, each from an idle GPU to its last kernel, csgmv's in turn with the bare "
    "model's, the others before; `MultiLoRA`, whose last hidden states were first compared with PEFT's. no adapters: a "
    "batch in which no row has one. torch.bmm: forward hooks of two torch.bmm a projection. PEFT: its mixed batch "
    "(adapter_names)."
)
_WAYS = {  # columns, and the bare model's time that each is held against
    "csgmv": ("csgmv", "base"),
    "no adapters": ("csgmv_no_adapter", "base_beside_no_adapter"),
    "torch.bmm": ("torch_bmm", "base"),
    "PEFT": ("peft_mixed", "base"),
}


class Setting(NamedTuple):
    """Where the times were measured, which the JSON does not say."""

    gpu: str
    torch: str
    triton: str
    date: str | None = None  # None where only the files' own can tell

    def __str__(self) -> str:
        return f"{self.gpu}, torch {self.torch}, Triton {self.triton}"


@dataclass(frozen=True)
class Table:
    """Cells to be laid out, and the lines that sum them up."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: Sequence[str]


def _us(time: float | None) -> str:
    return "-" if time is None else f"{time:.1f}" if time < 1000 else f"{time:,.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _in_both(cells: Iterable[str]) -> str:
    """'3.10', or with a second run's beside it '3.10 (3.05)'; once where both say the same."""
    first, *others = dict.fromkeys(cells)
    return f"{first} ({others[0]})" if others else first


def _ratios(runs: Sequence[Sequence[Comparison]]) -> Iterator[str]:
    """Geometric mean and worst of the ratios of all rows, in brackets those of a second run."""

    def of(ratio: Callable[[Comparison], float | None], worst: Callable[[list[float]], float], asked: list[int]) -> str:
        found = [[value for value in map(ratio, run) if value is not None] for run in runs]
        means = _in_both(f"{statistics.geometric_mean(values):.2f}" if values else "-" for values in found)
        worsts = _in_both(f"{worst(values):.2f}" if values else "-" for values in found)
        counted = _in_both(f"{len(values)} of {rows}" for values, rows in zip(found, asked))
        return f"geometric mean {means}, worst {worsts}, over {counted} rows"

    yield f"best peer ÷ csgmv: {of(lambda row: row.ahead, min, [len(run) for run in runs])}."
    large = [[row for row in run if row.us.get("floor", 0.0) > SMALL_US] for run in runs]
    if large[0]:
        over = of(lambda row: row.over_floor if row.us["floor"] > SMALL_US else None, max, [len(run) for run in large])
        yield f"csgmv ÷ floor where the floor exceeds {SMALL_US:g} µs: {over}."


def _spread(runs: Sequence[Sequence[Comparison]]) -> Iterator[str]:
    if len(runs) > 1:
        shifts = [
            abs(again.us[name] / us - 1)
            for row, again in zip(*runs)
            for name, us in row.us.items()
            if name in again.us and name in (*PEERS, OURS)
        ]
        if shifts:
            yield (
                f"again, and in brackets: a second run; its times differ from the first's by "
                f"{statistics.median(shifts):.1%} in the median, by {max(shifts):.1%} at most."
            )


def _table(suite: str, runs: Sequence[Run]) -> Table:
    compared = [run.comparisons(suite) for run in runs]
    told = compared
    summary = [*(_ratios(compared) if suite != "host" else ()), *_spread(compared)]
    chunks, empty = "", ""
    if suite == "prefill":
        told = [[*rows, *run.prefill_sums()] for rows, run in zip(compared, runs)]
        best = runs[0].best_chunks()
        chunks = ", ".join(f"{NAMES[n]} {chunk}" for n, chunk in best.items() if n in (OURS, "s511", "s523"))
    elif suite == "host":
        empty = _in_both(_us(run.suites[suite][0]["torch.empty"]) for run in runs)
    names = [name for name in NAMES if any(name in row.us for row in told[0])]
    again = [{row.labels: row for row in rows} for rows in told[1:]]
    header = [*_LABELS[suite], *(NAMES[name] for name in names), *("again" for _ in again)]
    header += ["best peer ÷ csgmv", *("again" for _ in again), *(["csgmv ÷ floor"] if "floor" in names else [])]
    rows = []
    for row in told[0]:
        seconds = [second.get(row.labels, _NOTHING) for second in again]
        cells = [*row.labels, *(_us(row.us.get(name)) for name in names), *(_us(s.us.get(OURS)) for s in seconds)]
        cells += [_ratio(row.ahead), *(_ratio(second.ahead) for second in seconds)]
        rows.append([*cells, *([_ratio(row.over_floor)] if "floor" in names else [])])
    return Table(_CAPTIONS[suite].format(chunks=chunks, empty=empty), header, rows, summary)


def _whole_models(runs: Sequence[Run]) -> Table:
    """The suite of whole models."""

    def cell(row: peers.Row, way: str) -> str:
        ms, bare = (row.get(name) for name in _WAYS[way])
        return "-" if ms is None else f"{ms:.1f} ({ms / bare:.3f}×)" if bare else f"{ms:.1f}"

    again = [run.suites[peers.WHOLE_MODELS] for run in runs[1:]]
    rows = []
    for index, row in enumerate(runs[0].suites[peers.WHOLE_MODELS]):
        bare = row.get("base")
        ours, *others = (cell(row, way) for way in _WAYS)
        seconds = [cell(second[index], OURS) for second in again]
        rows.append([f"{row['batch']} × {row['length']}", f"{bare:.1f}" if bare else "-", ours, *seconds, *others])
    ours, *others = _WAYS
    header = ["batch × length", "bare", ours, *("again" for _ in again), *others]
    return Table(_CAPTIONS[peers.WHOLE_MODELS], header, rows, ())


@dataclass(frozen=True)
class Report:
    """One run of bench_peers.py, or two of the same suites, and all that one must know to make them again."""

    runs: Sequence[Run]
    setting: Setting
    date: str
    command: str

    def tables(self) -> list[Table]:
        """One for each suite that was run."""
        suites = self.runs[0].suites
        return [_whole_models(self.runs) if s == peers.WHOLE_MODELS else _table(s, self.runs) for s in suites]

    def note(self) -> str:
        """GPU, versions, date, method and command: what stands beneath the tables."""
        suites = self.runs[0].suites
        method = [METHOD] * (suites.keys() != {peers.WHOLE_MODELS})
        method += [METHOD_OF_WHOLE_MODELS] * (peers.WHOLE_MODELS in suites)
        return (
            f"{self.setting}, csgmv {csgmv.__version__}, {self.date}. {' '.join(method)} Measured by "
            f"`python bench_peers.py --json FILE`, told by `{self.command}`."
        )

    def text(self, width: int | None) -> str:
        """For a terminal of so many columns (None: any)."""
        parts = []
        for table in self.tables():
            caption = columns.folded(table.caption, width)
            parts.append("\n".join([*caption, columns.aligned(table.header, table.rows, width), *table.summary]))
        return "\n\n".join([*parts, *columns.folded(self.note(), width)])

    def markdown(self) -> str:
        """For the README."""
        parts = []
        for table in self.tables():
            parts += [f"**{table.caption}**", columns.markdown(table.header, table.rows), "<br>\n".join(table.summary)]
        return "\n\n".join(filter(None, [*parts, self.note()]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv bench` that tell what bench_peers.py measured."""
    told = parser.add_argument_group("peers", "tell what bench_peers.py measured, in place of measuring")
    told.add_argument(
        "--peers",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="JSON of one run, or of two of the same suites; either may be in several files, a suite in each",
    )
    told.add_argument(
        "--measured-on",
        metavar="LINE",
        help="first line that bench_peers.py printed, 'GPU torch VERSION triton VERSION', and after it the date if "
        "the files are copies (default: this machine's, and the files' own date)",
    )
    told.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw csgmv and the best peer against the floor")


def setting(line: str | None) -> Setting:
    """Where the times were measured: as the line says, or on this machine's GPU.

    Raises:
        ValueError: the line is another one, or there is none and no GPU either.
    """
    if line is not None:
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"--measured-on: expected 'GPU torch VERSION triton VERSION [YYYY-MM-DD]', got {line!r}")
        return Setting(**match.groupdict())
    import torch
    import triton

    if not torch.cuda.is_available():
        raise ValueError("--measured-on: expected the first line that bench_peers.py printed, there being no GPU here")
    return Setting(torch.cuda.get_device_name(), torch.__version__, triton.__version__)


def run(args: argparse.Namespace) -> int:
    """Tell what stands in the files of --peers.

    Raises:
        ValueError: a file is malformed, two are of different suites, or the options do not fit together.
    """
    if args.json is not None:
        raise ValueError("--json: --peers takes JSON and writes none")
    if args.plot is not None and args.plot.suffix != ".svg":
        raise ValueError(f"--plot: expected a file named .svg, got {args.plot}")
    runs = peers.together(args.peers)
    # bench_peers.py notes no date: a file's is no earlier than that of the measurement.
    date = datetime.date.fromtimestamp(max(path.stat().st_mtime for path in args.peers)).isoformat()
    where = setting(args.measured_on)
    report = Report(runs, where, where.date or date, args.command_line)
    if args.into is not None:
        readme_block.put(args.into, report.markdown(), args.block or MARKER)
    else:
        print(report.markdown() if args.markdown else report.text(columns.terminal_width()))
    if args.plot is not None:
        files.replace(args.plot, peer_plot.svg(report.runs[0], f"{report.setting}, {report.date}"))
    return 0
