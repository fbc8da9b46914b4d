"""Raw results of older schemas, as today's would have written them.

Standard library only, like `rules`, and for the same reason. configs/README.md tells what each schema brought.

    upgraded       a file without faults, of any schema → the same by today's
    current_row    a row, likewise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import footprint, records, rules

SCHEMA = 4
SCHEMAS = (1, 2, 3, 4)  # that can be read


def field_names(op: str, schema: int) -> tuple[str, ...]:
    """The fields that rows of an operation have in raw results of this schema."""
    return tuple(field.name for field in rules.FIELDS[op] if field.since <= schema)


def current_row(op: str, schema: int, values: Sequence[rules.ConfigValue], chunk_size: int, max_rank: int) -> rules.Row:
    """A row of raw results of this schema as it would be written today.

    Fields that came later have their neutral value. In schema 1 a tile of more rows than a segment has was cut down to
    the segment; since then it takes neighbouring segments together, so such a row is one of the smaller tile. And an
    expand that took the whole rank at once loaded one tile ahead, whatever num_stages was.
    """
    named = dict(zip(field_names(op, schema), values))
    row = {field.name: named.get(field.name, field.neutral) for field in rules.FIELDS[op]}
    if schema == 1:
        expand = "expand_" if op == "add_lora" else ""
        if op != "shrink" and (row[expand + "block_k"] or 0) >= max_rank:
            row[expand + "num_stages"] = 1
        tiles = {name: rows or 0 for name, rows in row.items() if name.endswith("block_m")}
        row |= {name: footprint.row_tile(rows, chunk_size) for name, rows in tiles.items()}
    return tuple(row.values())


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document that has no faults as today's schema would write it: what it left out is made explicit."""
    if document["schema"] == SCHEMA:
        return dict(document)
    op, schema = document["op"], document["schema"]
    new = {**document, "schema": SCHEMA, "fields": list(rules.FIELD_NAMES[op])}
    new["records"] = [_upgraded_record(op, schema, record, document["max_rank"]) for record in document["records"]]
    return new


def _upgraded_record(op: str, schema: int, record: Mapping[str, Any], max_rank: int) -> dict[str, Any]:
    def current(row: list[rules.ConfigValue]) -> rules.Row:
        return current_row(op, schema, row, record["chunk_size"], max_rank)

    # Rows that are one and the same today: the faster time stays.
    candidates: dict[rules.Row, list[Any]] = {}
    for row, *times in sorted(record["candidates"], key=lambda candidate: candidate[1]):
        candidates.setdefault(current(row), times)
    finalists: dict[rules.Row, Any] = {}
    for finalist in sorted(record["finalists"], key=lambda finalist: finalist["p50_us"]):
        finalists.setdefault(current(finalist["row"]), finalist)
    default = record["default"]
    new = {
        **record,
        "default": default and {**default, "row": list(current(default["row"]))},
        "candidates": [[list(row), *times] for row, times in candidates.items()],
        "finalists": [{**finalist, "row": list(row)} for row, finalist in finalists.items()],
        "races": [],
    }
    if schema > 1:
        return new
    best = records.fastest([records.timing_of(finalist) for finalist in new["finalists"]], record["noise_us"])
    batch = [record["tokens"], record["adapters"], record["num_segments"]]
    return new | {"batches": [[*batch, default and default["p50_us"], best and best.p50_us]], "tuned_on": 1}
