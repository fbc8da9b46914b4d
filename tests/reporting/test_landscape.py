"""A key's sweep from above: the least time at each tile and number of warps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csgmv.reporting import findings
from csgmv.reporting.landscape import Place, landscapes, places, winners
from fabricated import ADD_LORA, BETTER, DEFAULT, document, finalist, put, record

EXPAND_ROW = [64, 64, 64, 4, 4, 3, None, True]


def read(folder: Path, made: dict[str, Any]) -> list[findings.Finding]:
    put(folder, "one.json", made)
    return list(findings.read(folder).chapters[0].findings)


def test_the_fastest_candidate_stands_for_its_place(tmp_path: Path) -> None:
    """As a multiple of the fastest of all; the winner is that of the times at full length."""
    slower = [*BETTER[:4], 8, *BETTER[5:]]  # another split_k: the same place
    other = [64, 32, 128, 1, 1, 8, 2, None, False]
    candidates = [[slower, 25.0, 12, False], [BETTER, 22.0, 12, False], [other, 20.0, 12, True]]
    [found] = read(tmp_path, document(record(candidates=candidates)))
    [(part, seen)] = landscapes(found).items()
    assert part == "shrink"
    assert seen.slowdowns == {Place(32, 32, 4): 1.1, Place(64, 32, 8): 1.0}
    assert seen.winner == Place(32, 32, 4)


def test_add_lora_has_a_landscape_a_kernel(tmp_path: Path) -> None:
    """In both every candidate counts, at the place of that kernel's tile."""
    rows = [[*BETTER, *EXPAND_ROW, False], [*DEFAULT, *EXPAND_ROW, True]]
    candidates = [[rows[0], 20.0, 12, False], [rows[1], 30.0, 12, False]]
    made = record(None, candidates=candidates, finalists=[finalist(rows[0], 20.0)])
    seen = landscapes(*read(tmp_path, document(made, **ADD_LORA)))
    assert seen["shrink"].slowdowns == {Place(32, 32, 4): 1.0, Place(64, 16, 4): 1.5}
    assert seen["expand"].slowdowns == {Place(64, 64, 4): 1.0}
    assert places("add_lora", tuple(rows[1]))["shrink"] == Place(64, 16, 4)


def test_winners_are_counted_by_place(tmp_path: Path) -> None:
    """A key each."""
    found = read(tmp_path, document(record(), record(chunk_size=32)))
    assert winners(found) == {"shrink": {Place(32, 32, 4): 2}}


def test_without_candidates_there_is_nothing_to_see(tmp_path: Path) -> None:
    """Such a record is valid."""
    assert landscapes(*read(tmp_path, document(record(candidates=[])))) == {}
