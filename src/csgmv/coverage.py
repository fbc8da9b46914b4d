"""Say how much of a model the table covers: by layer and kernel which keys are tuned, and what serves the others.

The keys are those that `csgmv tune` would tune. What a borrowed config is expected to lose is what its step of the
fallback was found to cost. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

import torch
import triton

from csgmv import columns, dispatch, dtypes, footprint, known_models, launch, layer_options, readme_block, rules
from csgmv.cover import BORROWED, DEFAULT, STATES, TUNED, Cover, covers
from csgmv.option_types import number, version, whole
from csgmv.shares import percent
from csgmv.show import bucket_text
from csgmv.tuning.plan import Plan

STATUS = {TUNED: 0, BORROWED: 3, DEFAULT: 4}  # 1 is for what went wrong, 2 for a bad command line
STATUSES = {
    STATUS[TUNED]: "every key is tuned, or expected to lose no more than --max-loss; always so with --markdown",
    STATUS[BORROWED]: "some keys borrow, and none gets a default",
    STATUS[DEFAULT]: "some keys get a default",
}
EXAMPLES = {
    "csgmv coverage --model Qwen/Qwen3-8B": "Ranks 16 and 64, on this machine's GPU.",
    "csgmv coverage --model llama-3.1-70b --tp 4 --rank 16 --gpu H200 --all": "One rank, four GPUs a model, a line a "
    "key.",
    "csgmv coverage --adapter adapters/sql --max-loss 5 && serve": "In a start script: go on if no key loses over 5 %.",
}
RANKS = (16, 64)  # where none is given
MARKER = "coverage"
_SOURCES = 3  # that a line names
_LEGEND = (
    "lose: the median of what keys that this step serves lose to rows of their own; 95 %: the 95th percentile. Judged "
    "by the layers that were tuned (`python -m codegen --regret`): what is far from all of these may lose more. "
    "`csgmv tune` gives keys rows of their own."
)


def status(found: Iterable[Cover], max_loss: float | None) -> int:
    """The exit status: of the worst key that is neither tuned nor expected to lose at most `max_loss` (a share)."""
    forgiven = -1.0 if max_loss is None else max_loss
    short = {
        cover.state for cover in found if cover.state != TUNED and (cover.expected is None or cover.expected > forgiven)
    }
    return max((STATUS[state] for state in short), default=STATUS[TUNED])


def _expected(found: Sequence[Cover]) -> tuple[str, int]:
    """The mean of the expected losses, and the number of keys for which there is none."""
    known = [cover.expected for cover in found if cover.expected is not None]
    return percent(fmean(known)) if known else "-", len(found) - len(known)


def _from(found: Iterable[Cover]) -> str:
    """'nearest segment bucket (32; 64), 6 keys lose 0.6 %, …'."""
    kinds: dict[str, list[Cover]] = defaultdict(list)
    for cover in found:
        if cover.state != TUNED:
            kinds[cover.kind].append(cover)
    said = []
    for kind, of_kind in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lent = [whence for whence, _ in Counter(cover.whence for cover in of_kind if cover.whence).most_common()]
        more = [f"{len(lent) - _SOURCES} more"] * (len(lent) > _SOURCES)
        sources = f" ({'; '.join(lent[:_SOURCES] + more)})" if lent else ""
        one, loss = len(of_kind) == 1, of_kind[0].loss
        loses = f"{'loses' if one else 'lose'} {loss}" if loss else "whose loss was not measured"
        said.append(f"{kind}{sources}, {len(of_kind)} {'key' if one else 'keys'} {loses}")
    return "; ".join(said) or "all exact"


def _dimension(key: rules.Key) -> str:
    return rules.dimensions(key.op, key.input_dim, key.slice_widths, key.num_slices, key.max_rank)


def _kernels(found: Iterable[Cover]) -> Iterator[list[str]]:
    """A row a kernel: layers, kernel, dimension, numbers of keys, what serves those that are not tuned."""
    kernels: dict[rules.Key, list[Cover]] = defaultdict(list)
    for cover in found:
        kernels[cover.key._replace(chunk_size=1, segment_bucket=1)].append(cover)
    for kernel, of_kernel in kernels.items():
        states = Counter(cover.state for cover in of_kernel)
        counts = [str(len(of_kernel)), *(str(states[state]) for state in STATES)]
        yield [", ".join(of_kernel[0].layers), kernel.op, _dimension(kernel), *counts, _from(of_kernel)]


def _each(found: Iterable[Cover]) -> Iterator[list[str]]:
    for cover in found:
        key = cover.key
        sizes = [str(key.chunk_size), bucket_text(key.segment_bucket)]
        loss = "-" if cover.expected is None else percent(cover.expected)
        yield [", ".join(cover.layers), key.op, _dimension(key), *sizes, cover.state, loss, cover.served.step]


def _summary(found: Sequence[Cover]) -> str:
    states = Counter(cover.state for cover in found)
    loss, unmeasured = _expected(found)
    parts = [
        *(f"{states[state]} {state}" for state in STATES),
        f"expected loss {loss}" + (f" ({unmeasured} keys without a measured one)" if unmeasured else ""),
    ]
    return f"{len(found)} keys: {', '.join(parts)}"


def text(found: Sequence[Cover], every: bool, width: int | None) -> str:
    """For a terminal of so many columns (None: any), by kernel or, with `every`, by key."""
    if every:
        header = ("layer", "kernel", "dimension", "chunk", "segments", "config", "loss", "from")
        table = columns.aligned(header, list(_each(found)), width, fold=True)
    else:
        table = columns.aligned(
            ("layer", "kernel", "dimension", "keys", *STATES, "served by"), list(_kernels(found)), width, fold=True
        )
    return "\n".join([*columns.folded(_summary(found), width), "", table])


def markdown(found: Mapping[tuple[str, int], Sequence[Cover]], where: dispatch.Target, command: str) -> str:
    """For configs/README.md: a row a model and rank, and what it says."""
    header = ("model", "rank", "keys", *STATES, "expected loss", "unmeasured")
    rows = []
    for (model, rank), of_model in found.items():
        states = Counter(cover.state for cover in of_model)
        loss, unmeasured = _expected(of_model)
        shares = [f"{round(100 * number / len(of_model))} %" for number in (*(states[s] for s in STATES), unmeasured)]
        rows.append([model, str(rank), str(len(of_model)), *shares[:-1], loss, shares[-1]])
    return (
        f"{columns.markdown(header, rows)}\n\n"
        f"{where.gpu}, Triton {where.triton}. keys: what `csgmv tune` would tune for the model. borrowed: "
        "by another key's row. default: the architecture's, or the built-in one. expected loss: the mean over keys of "
        "what each loses to a row of its own, by the median of the step of the fallback that serves it; nothing where "
        "it is tuned. unmeasured: keys whose step no result could judge, which that mean leaves out. Steps are judged "
        f"by the layers that were tuned: what is far from all of these may lose more. Printed by `{command}`."
    )


def _json(found: Mapping[tuple[str, int], Sequence[Cover]], where: dispatch.Target) -> str:
    keys = [
        {
            "model": model,
            "layers": cover.layers,
            **cover.key._asdict(),
            "state": cover.state,
            "step": cover.served.step,
            "source": cover.served.source and cover.served.source._asdict(),
            "expected_loss": cover.expected,
        }
        for (model, _), of_model in found.items()
        for cover in of_model
    ]
    return json.dumps({"gpu": where.gpu, "triton": where.triton, "keys": keys}, indent=1)


def target(gpu: str | None, version: str | None) -> dispatch.Target:
    """Where to look up: a GPU of the table by its name or part of it.

    Args:
        gpu: None for the one here, or where there is none for the one that the table knows best.
        version: of Triton; None for the installed one, or where the GPU is not here for that of its rows.

    Raises:
        ValueError: the table knows no such GPU or several, or none at all.
    """
    known = dispatch.tables().gpus
    if torch.cuda.is_available() and not launch.INTERPRETED:
        here = dispatch.target(torch.device("cuda", torch.cuda.current_device()))
        if gpu is None or dispatch.named(gpu) == [here.gpu]:
            return here._replace(triton=version or here.triton)
    if gpu is None and known:
        best = dispatch.target(torch.device("cpu"))
        gpu, version = best.gpu, version or best.triton
    names = [] if gpu is None else dispatch.named(gpu)
    if len(names) != 1:
        wanted = f"--gpu: expected one of the table's, {', '.join(known) or 'which has none'}"
        raise ValueError(f"{wanted}; got {gpu if gpu is not None else 'none, and there is no GPU here'}")
    architecture, sm_count = known[names[0]]
    limits = footprint.LIMITS.get(architecture, footprint.UNLIMITED)
    return dispatch.Target(names[0], version or dispatch.tuned_under(names[0]), limits, architecture, sm_count)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv coverage`."""
    what = parser.add_argument_group("what to look up", f"ranks {' and '.join(map(str, RANKS))} if none is given")
    layer_options.add_arguments(what)
    add = what.add_argument
    add(
        "--chunk-sizes",
        type=whole(1),
        nargs="+",
        default=rules.CHUNK_SIZES,
        metavar="N",
        help="most rows of a segment",
    )
    add(
        "--gpu",
        metavar="NAME",
        help="one of the table's, or part of its name (default: this machine's, or the one that has most rows)",
    )
    add(
        "--triton",
        type=version,
        metavar="VERSION",
        help=f"whose rows to look for (default: the installed one, {triton.__version__}; for a GPU that is not here "
        "that of its rows)",
    )
    output = parser.add_argument_group("output")
    add = output.add_argument
    add(
        "--max-loss",
        type=number(),
        metavar="PERCENT",
        help="put up with keys expected to lose at most this",
    )
    form = output.add_mutually_exclusive_group()
    form.add_argument("--all", action="store_true", help="a line a key")
    form.add_argument("--json", action="store_true", help="every key, as JSON")
    form.add_argument(
        "--markdown", action="store_true", help="a line a model: of --model, or of all models known by name"
    )
    add(
        "--into",
        type=pathlib.Path,
        metavar="FILE",
        help=f"with --markdown: put it into FILE between {' and '.join(readme_block.markers(MARKER))}",
    )


def _asked(args: argparse.Namespace, where: dispatch.Target) -> dict[tuple[str, int], list[Cover]]:
    """By model and rank."""
    named = bool(args.model or args.layer or args.adapter)
    models = [args.model] if named or not args.markdown else list(known_models.models())
    ranks = RANKS if args.rank is None and not args.adapter else (layer_options.rank(args),)
    found = {}
    for model in models:
        layers = layer_options.layers(argparse.Namespace(**{**vars(args), "model": model}))
        for rank in ranks:
            plan = Plan(layers, rank, args.chunk_sizes, dtype=dtypes.BY_NAME[args.dtype], ops=args.ops)
            found[model or "layers given", rank] = covers(plan, where)
    return found


def run(args: argparse.Namespace) -> int:
    """Print what serves the model's keys, and return the exit status that STATUSES promises.

    Raises:
        ValueError: the options do not fit together, or name no GPU, model or layers that there are.
    """
    if args.into is not None and not args.markdown:
        raise ValueError("--into: expected together with --markdown")
    where = target(args.gpu, args.triton)
    found = _asked(args, where)
    if args.markdown:
        told = markdown(found, where, args.command_line)
        if args.into is None:
            print(told)
        else:
            readme_block.put(args.into, told, MARKER)
        return 0
    if args.json:
        print(_json(found, where))
    else:
        width = columns.terminal_width()
        for (model, rank), of_model in found.items():
            said = f"{model}, rank {rank}, {args.dtype}, on {where.gpu} under Triton {where.triton}"
            print("\n".join(columns.folded(said, width)), text(of_model, args.all, width), sep="\n", end="\n\n")
        if any(cover.served.step != "exact" for of_model in found.values() for cover in of_model):
            print(*columns.folded(_LEGEND, width), sep="\n")
    return status([cover for of_model in found.values() for cover in of_model], args.max_loss and args.max_loss / 100)
