"""What the page says: headline figures, verdicts and tables, as the records have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csgmv import kernel_hash
from csgmv.reporting import findings, sections
from csgmv.reporting.elements import Section, Table
from fabricated import BETTER, document, finalist, put, record


def chapter(folder: Path, *records: dict[str, Any], **more: Any) -> findings.Chapter:
    put(folder, "one.json", document(*records, **more))
    return findings.read(folder, bandwidth=1e11).chapters[0]


def several(folder: Path) -> findings.Chapter:
    """Speed-ups of 3, 1.5 and 1, the last of a default that is kept; a batch that loses; a failure."""
    return chapter(
        folder,
        record(30.0, 20.0, others=[[8, 8, 8, 10.0, 12.5]]),
        record(30.0, 10.0, chunk_size=32, failed={"out of memory": 2}),
        record(30.0, 29.9, chunk_size=64, noise_us=2.4),
    )


def cards(section: Section) -> dict[str, tuple[str, str]]:
    return {card.label: (card.value, card.note) for card in section.cards}


def rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.header, row)) for row in table.rows]


def test_headline_figures(tmp_path: Path) -> None:
    """Of three keys; the floor is long enough in all."""
    found = cards(sections.headline(several(tmp_path)))
    assert found["keys"] == ("3", "timed on 6 batches")
    assert found["rows baked"] == ("2", "1 keep the default")
    assert found["median speed-up"][0] == "1.50×"
    assert found["least speed-up"] == ("1.00×", "largest: 3.00×")
    assert found["slowest batch"][0] == "0.80×"
    floor_us = 2 * (101 * 1024 + 5 * 192 * 1024 + 101 * 192) / 1e5
    assert found["of the floor"] == (
        f"{100 * floor_us / 20:.0f} %",
        "median of the 3 keys whose floor is 8 µs or more",
    )
    assert found["candidates measured"] == ("6", "36 pruned")
    assert found["candidates failed"] == ("2", "in 1 of 3 keys")


def test_headlines_without_any_default(tmp_path: Path) -> None:
    """There is no speed-up to tell."""
    found = cards(sections.headline(chapter(tmp_path, record(None))))
    assert [found[name][0] for name in ("median speed-up", "least speed-up", "slowest batch")] == ["-", "-", "-"]


def test_verdicts_mark_what_speaks_against_trust(tmp_path: Path) -> None:
    """Other kernels, batches that lose, noise, failures; not the accuracy, which is checked."""
    section = sections.checks(several(tmp_path))
    marked = [verdict.text for verdict in section.verdicts if not verdict.good]
    assert marked == [
        "3 of 3 rows were measured with other kernels than those installed; csgmv tune --stale measures them again.",
        "1 of 6 batches are slower with the baked row than with the default by more than the noise.",
        "1 of 3 keys have a noise above 5 % of the default's time; the median is 0.4 %.",
        "1 of 3 keys had candidates that failed.",
    ]
    assert any("largest error took 12 % of the tolerance" in verdict.text for verdict in section.verdicts)
    [table] = section.tables
    [lost] = rows(table)
    assert (lost["tokens × adapters"], lost["default µs"], lost["row µs"], lost["speed-up"]) == (
        "8 × 8",
        "10.00",
        "12.50",
        "0.80×",
    )


def test_nothing_is_marked_where_all_is_well(tmp_path: Path) -> None:
    """Measured with today's kernels, every batch gains, little noise."""
    made = document()
    made["runs"][0]["kernel_hash"] = kernel_hash.kernel_hash()
    section = sections.checks(chapter(tmp_path, **made))
    assert all(verdict.good for verdict in section.verdicts)
    assert list(section.tables) == []


def test_spills_of_a_baked_row_are_marked(tmp_path: Path) -> None:
    """Of the winner alone."""
    spilling = finalist(BETTER, 20.0) | {"spills": 8}
    texts = [
        verdict.text
        for made in (record(finalists=[spilling]), record(finalists=[finalist(BETTER, 20.0)]))
        for verdict in sections.checks(chapter(tmp_path, made)).verdicts
        if "spill" in verdict.text and not verdict.good
    ]
    assert texts == ["1 of 1 keys have a baked row whose registers spill."]


def test_what_became_of_every_config_by_reason(tmp_path: Path) -> None:
    """Added up over the keys; a reason is told as it is recorded."""
    hostile = "<script>alert($\\frac$)</script>"
    made = chapter(
        tmp_path,
        record(pruned={"registers": 3}, failed={hostile: 2}),
        record(chunk_size=32, pruned={"registers": 4, "shared memory": 1}),
    )
    [table] = sections.search(made).tables
    assert table.header == ("fate", "reason", "shrink", "all")
    assert [tuple(row) for row in table.rows] == [
        ("measured", "to the end", "2", "2"),
        ("measured", "stopped early, as slower", "2", "2"),
        ("measured", "again at full length, as finalists", "2", "2"),
        ("pruned", "registers", "7", "7"),
        ("pruned", "shared memory", "1", "1"),
        ("failed", hostile, "2", "2"),
    ]


def test_speedups_by_layer_and_chunk_size(tmp_path: Path) -> None:
    """The median, and the least."""
    pytest.importorskip("matplotlib")
    made = chapter(
        tmp_path,
        record(30.0, 20.0),
        record(30.0, 10.0, num_segments=30, segment_bucket=32),
        record(30.0, 12.0, chunk_size=32),
    )
    [table] = sections.speedup(made).tables
    assert rows(table) == [
        {
            "operation": "shrink",
            "layer": "1024 → 3·64",
            "keys": "3",
            "chunk 16": "2.25× (1.50×)",
            "chunk 32": "2.50× (2.50×)",
        }
    ]


def test_the_floor_states_its_bandwidth_and_the_farthest_keys(tmp_path: Path) -> None:
    """The worst first."""
    pytest.importorskip("matplotlib")
    section = sections.floor(several(tmp_path))
    assert "at 0.1 TB/s: as given by --bandwidth." in section.lead
    [table] = section.tables
    assert [row["µs"] for row in rows(table)] == ["30.00", "20.00", "10.00"]


def test_the_environment_has_a_column_a_run(tmp_path: Path) -> None:
    """With the number of its keys."""
    made = document(record(), record(chunk_size=32), record(chunk_size=64, run=1))
    made["runs"].append(made["runs"][0] | {"driver": "600.1"})
    put(tmp_path, "one.json", made)
    [table] = sections.environment(findings.read(tmp_path).chapters[0]).tables
    assert table.header == ["", "2 keys", "1 key"]
    assert ["driver", "580.65.06", "600.1"] in table.rows


def test_every_key_has_a_row_and_the_least_gains_come_first(tmp_path: Path) -> None:
    """With what the record says of it."""
    least, every = sections.keys(several(tmp_path)).tables
    assert [row["speed-up"] for row in rows(least)] == ["1.00×", "1.50×", "3.00×"]
    assert every.folded
    assert [row["speed-up"] for row in rows(every)] == ["1.50×", "3.00×", "1.00×"]
    first = rows(every)[0]
    assert first["tokens × adapters"] == "101 × 5"
    assert first["segments"] == "6-11"
    assert first["tried / pruned / failed"] == "2 / 12 / 0"
    assert "block_n=32" in first["config (what differs from the default)"]
    assert rows(every)[2]["config (what differs from the default)"] == "default"
