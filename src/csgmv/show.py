"""Print the table of tuned configs: counts per GPU, Triton version and operation, or the rows that the options ask for.

Which of them a launch gets is `csgmv explain`'s answer. Beneath stand the chunk sizes that batches get whose caller
names none, unless the options ask for some rows only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import csgmv
from csgmv import chunk_sizes, columns, config, dispatch, fallback, rules

EXAMPLES = {
    "csgmv show": "How many rows there are for which GPUs, and the chunk sizes.",
    "csgmv show --gpu h200 --op add_lora --rank 64": "One GPU's rows of one operation and rank.",
    "csgmv show --all --json": "Everything, for programs.",
}
STATUSES = {1: "no row is what the options ask for"}


class Entry(NamedTuple):
    """One row of the table, with all that it is stored under. Config None: the default was the fastest."""

    gpu: str
    triton: str
    key: rules.Key
    config: rules.Row | None


def entries() -> list[Entry]:
    """Every row of the table, sorted."""
    found = (
        Entry(gpu, triton, key, row)
        for (gpu, triton), rows in dispatch.tables().rows.items()
        for key, row in fallback.flat(rows).items()
    )
    return sorted(found, key=lambda entry: (entry.gpu, rules.version_numbers(entry.triton), entry.key))


def digest() -> str:
    """Digest of the raw results that the table was made from, or why there is none."""
    return csgmv.__table_digest__ or "without a digest (this tree has no generated table)"


def counts(everything: Sequence[Entry]) -> dict[str, int]:
    """Of the whole table: keys, those with a row that beats the default, chunk sizes, defaults of architectures."""
    return {
        "keys": len(everything),
        "tuned": sum(entry.config is not None for entry in everything),
        "chunk_sizes": sum(map(len, chunk_sizes.table().values())),
        "defaults": sum(len(rows) for by_op in dispatch.tables().defaults.values() for rows in by_op.values()),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv show`."""
    wanted = parser.add_argument_group("rows to print", "without any of these, only the counts are printed")
    wanted.add_argument("--all", action="store_true", help="every row")
    wanted.add_argument("--gpu", metavar="NAME", help="GPUs whose name contains this, in any case")
    wanted.add_argument("--triton", metavar="VERSION", help="e.g. 3.6.0")
    wanted.add_argument("--op", choices=rules.OPS, help="operation")
    wanted.add_argument("--input-dim", type=int, metavar="N", help="columns of x")
    wanted.add_argument("--slice-widths", type=int, nargs="+", metavar="N", help="columns of each slice")
    wanted.add_argument("--rank", type=int, metavar="N", help="largest rank of the loaded adapters (max_rank)")
    wanted.add_argument("--slices", type=int, metavar="N", help="num_slices of a shrink")
    wanted.add_argument("--dtype", choices=rules.DTYPE_BYTES, help="of every tensor")
    wanted.add_argument("--chunk-size", type=int, metavar="N", help="most rows of a segment")
    wanted.add_argument("--segments", type=int, metavar="N", help="number of segments; the nearest power of two counts")
    parser.add_argument("--json", action="store_true", help="JSON, every field of a config by its name")


def _wanted(args: argparse.Namespace) -> dict[str, object]:
    """The key fields that the options name, with the values that they ask for.

    Raises:
        ValueError: --segments is a number that no launch has.
    """
    if args.segments is not None and args.segments < 1:
        raise ValueError(f"--segments: expected a positive number, got {args.segments}")
    fields = {
        "op": args.op,
        "input_dim": args.input_dim,
        "slice_widths": None if args.slice_widths is None else tuple(args.slice_widths),
        "max_rank": args.rank,
        "num_slices": args.slices,
        "dtype": args.dtype,
        "chunk_size": args.chunk_size,
        "segment_bucket": None if args.segments is None else rules.segment_bucket(args.segments),
    }
    return {name: value for name, value in fields.items() if value is not None}


def selected(everything: Iterable[Entry], args: argparse.Namespace) -> list[Entry]:
    """The entries that the options ask for."""
    wanted = _wanted(args)
    return [
        entry
        for entry in everything
        if _on(args, entry.gpu, entry.triton)
        and all(getattr(entry.key, name) == value for name, value in wanted.items())
    ]


def _on(args: argparse.Namespace, gpu: str, triton: str) -> bool:
    """Whether the options ask for this GPU and Triton version."""
    return (args.gpu is None or args.gpu.lower() in gpu.lower()) and (args.triton is None or args.triton == triton)


def _counts(everything: Iterable[Entry]) -> list[list[str]]:
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in everything:
        groups.setdefault((entry.gpu, entry.triton, entry.key.op), []).append(entry)
    return [
        [
            *group,
            str(len({entry.key.layer for entry in found})),
            str(len(found)),
            str(sum(entry.config is not None for entry in found)),
        ]
        for group, found in groups.items()
    ]


def _defaults(op: str) -> rules.Row:
    classes: Mapping[str, type[config.Config]] = {
        "shrink": config.ShrinkConfig,
        "expand": config.ExpandConfig,
        "add_lora": config.AddLoraConfig,
    }
    return config.to_row(classes[op]())


def config_text(op: str, row: rules.Row | None) -> str:
    """The fields in which a config differs from the built-in default: what the tuner found to matter."""
    if row is None:
        return "default"
    cells = zip(rules.FIELD_NAMES[op], row, _defaults(op))
    return _fields_text(op, {name: value for name, value, default in cells if value != default}) or "default"


def _fields_text(op: str, fields: Mapping[str, rules.ConfigValue]) -> str:
    """'block_n=32 split_k=4'; for add_lora by part: 'shrink(block_n=32) expand(num_warps=8) overlap=True'."""
    if op != "add_lora":
        return " ".join(f"{name}={value}" for name, value in fields.items())
    parts = []
    for part in ("shrink", "expand"):
        own = [f"{n.removeprefix(part + '_')}={value}" for n, value in fields.items() if n.startswith(part + "_")]
        parts += [f"{part}({' '.join(own)})"] if own else []
    return " ".join([*parts, *(f"{name}={value}" for name, value in fields.items() if name == "overlap")])


def bucket_text(bucket: int) -> str:
    """The numbers of segments that share a bucket: 8 → '6-11'."""
    least, most = rules.bucket_sizes(bucket)
    return str(bucket) if least == most else f"{least}-{most}"


def widths_text(widths: Iterable[int]) -> str:
    """Slice widths in the notation of the command line's layers and of the raw results' file names."""
    return "+".join(map(str, widths)) or "-"


def _row_text(entry: Entry) -> list[str]:
    key = entry.key
    return [
        str(key.input_dim or "-"),
        widths_text(key.slice_widths),
        str(key.max_rank),
        str(key.num_slices),
        key.dtype,
        str(key.chunk_size),
        bucket_text(key.segment_bucket),
        config_text(key.op, entry.config),
    ]


def _print_rows(found: Iterable[Entry], width: int | None) -> None:
    groups: dict[tuple[str, str, str], list[list[str]]] = {}
    for entry in found:
        groups.setdefault((entry.gpu, entry.triton, entry.key.op), []).append(_row_text(entry))
    header = ("input_dim", "slice_widths", "rank", "slices", "dtype", "chunk", "segments", "config")
    for (gpu, triton, op), rows in groups.items():
        default = _fields_text(op, dict(zip(rules.FIELD_NAMES[op], _defaults(op))))
        print(f"\n{op} on {gpu}, Triton {triton}")
        print(columns.aligned(header, rows, width, fold=True))
        print(*columns.folded(f"Fields not named are as in the built-in default: {default}", width), sep="\n")


def _cells(args: argparse.Namespace) -> dict[fallback.Head, Mapping[rules.Cell, int]]:
    """The chunk sizes of the GPUs and versions that the options ask for."""
    found = {head: sizes for head, sizes in chunk_sizes.table().items() if sizes and _on(args, *head)}
    return dict(sorted(found.items(), key=lambda item: (item[0][0], rules.version_numbers(item[0][1]))))


def _print_chunk_sizes(args: argparse.Namespace, width: int | None) -> None:
    for (gpu, triton), sizes in _cells(args).items():
        batch_rows, adapters = (sorted(set(numbers)) for numbers in zip(*sizes))
        table = [[str(a), *(str(sizes.get((r, a), "-")) for r in batch_rows)] for a in adapters]
        said = f"chunk size where none is given, by rows with an adapter and active adapters, on {gpu}, Triton {triton}"
        print("", *columns.folded(said, width), sep="\n")
        print(columns.aligned(("adapters", *(f"{r} rows" for r in batch_rows)), table, width))


def _json(found: Iterable[Entry], everything: Sequence[Entry], args: argparse.Namespace) -> str:
    rows = [
        {
            "gpu": entry.gpu,
            "triton": entry.triton,
            **entry.key._asdict(),
            "config": None if entry.config is None else dict(zip(rules.FIELD_NAMES[entry.key.op], entry.config)),
        }
        for entry in found
    ]
    cells = [
        {"gpu": gpu, "triton": triton, "rows": batch_rows, "adapters": adapters, "chunk_size": chunk_size}
        for (gpu, triton), sizes in _cells(args).items()
        for (batch_rows, adapters), chunk_size in sizes.items()
    ]
    told = {"digest": csgmv.__table_digest__, "counts": counts(everything), "rows": rows, "chunk_sizes": cells}
    return json.dumps(told, indent=1)


def run(args: argparse.Namespace) -> int:
    """Print the table; exit status 1 where no row is what the options ask for."""
    everything = entries()
    found = selected(everything, args)
    if args.json:
        print(_json(found, everything, args))
        return 0 if found else 1
    count = counts(everything)
    width = columns.terminal_width()
    said = (
        f"table {digest()}: {count['keys']} keys, {count['tuned']} of them tuned,"
        f" {count['chunk_sizes']} chunk sizes, {count['defaults']} defaults of architectures"
    )
    print(*columns.folded(said, width), sep="\n")
    if args.all or args.gpu or args.triton or _wanted(args):
        _print_rows(found, width)
        print(f"\n{len(found)} of {len(everything)} keys")
        if not found:
            print(f"The table has rows for {', '.join(dispatch.tables().gpus) or 'no GPU'}.")
    elif everything:
        print(columns.aligned(("GPU", "Triton", "operation", "shapes", "keys", "tuned"), _counts(found), width))
        said = "For the other keys the built-in default was the fastest. `csgmv show --all` prints every row."
        print(*columns.folded(said, width), sep="\n")
    if not _wanted(args):
        _print_chunk_sizes(args, width)
    return 0 if found else 1
