"""End-to-end results from the JSON that `Report.json` wrote; standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csgmv import checks
from csgmv.e2e.results import BARE, BMM, DEFAULTS, NONE, OURS, PEFT, Batch, Report, Subject, Timed

_time = checks.or_null(checks.number(most=1e7))
_size = checks.integer(1)
_fault_of = checks.record(
    subjects=checks.array(
        checks.record(
            model=checks.phrase,
            layers=_size,
            dtype=checks.phrase,
            adapters=_size,
            ranks=checks.array(_size, least=1),
            batches=checks.array(
                checks.record(
                    rows=_size,
                    tokens=_size,
                    chunk_size=_size,
                    tolerance=checks.number(),
                    floor_ms=checks.number(),
                    timed=checks.array(
                        checks.record(
                            way=checks.one_of(BARE, OURS, DEFAULTS, NONE, BMM, PEFT),
                            chunk_size=checks.or_null(_size),
                            error=checks.or_null(checks.number(or_equal=True, most=1e300)),
                            ms=_time,
                        ),
                        least=1,
                    ),
                ),
                least=1,
            ),
        ),
        least=1,
    ),
    gpu=checks.phrase,
    torch=checks.phrase,
    triton=checks.phrase,
    transformers=checks.phrase,
    peft=checks.or_null(checks.phrase),
    csgmv=checks.phrase,
    table=checks.or_null(checks.phrase),
    date=checks.date,
    copy_bandwidth=checks.number(most=1e15),
    method=checks.phrase,
    command=checks.phrase,
)


def read(path: Path) -> Report:
    """What `Report.json` wrote.

    Raises:
        ValueError: the file is none of these; the first fault is named.
        OSError: it cannot be read.
    """
    wanted = f"expected what `csgmv bench --e2e --json` wrote, got {path}"
    try:
        document = checks.parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wanted}: {error}") from None
    if fault := next(_fault_of(document, "$"), None):
        raise ValueError(f"{wanted}: {fault}")
    return Report(**{**document, "subjects": tuple(map(_subject, document["subjects"]))})


def _subject(given: dict[str, Any]) -> Subject:
    batches = (
        Batch(**{**batch, "timed": tuple(Timed(**timed) for timed in batch["timed"])}) for batch in given["batches"]
    )
    return Subject(**{**given, "ranks": tuple(given["ranks"]), "batches": tuple(batches)})
