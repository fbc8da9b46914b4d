"""Raw results of older schemas mean today what they meant then."""

from __future__ import annotations

import pytest

from csgmv import raw_results, records, rules, schemas
from fabricated import BETTER, DEFAULT, REMOVED, bent, document, faults, finalist, older, record

ROW = (64, 16, 256, 1, 1, 4, 3, None, False)
EXPAND_ROW = (64, 64, 16, 1, 4, 3, None, False)
OTHER = [16, 64, 128, 1, 2, 8, 3, 96, True]


def test_a_field_that_came_later_is_in_no_older_row() -> None:
    """Prefetch came with schema 2, sliced_k with 3: an older row must not have them, and is read as one without."""
    for op, rows in (
        ("shrink", (ROW[:-1], ROW[:-1], ROW)),
        ("expand", (EXPAND_ROW[:-1], EXPAND_ROW, EXPAND_ROW)),
        ("add_lora", [(*ROW[:-1], *EXPAND_ROW[:-1], True), (*ROW[:-1], *EXPAND_ROW, True), (*ROW, *EXPAND_ROW, True)]),
    ):
        for schema, row in enumerate(rows, start=1):
            assert len(schemas.field_names(op, schema)) == len(row)
            assert rules.config_fault(op, row, schema) is None
            assert schemas.current_row(op, schema, row, 64, 64) == rows[-1]
            for other in rows:
                fault = f"expected {len(row)} values" if len(other) != len(row) else "None"
                assert fault in str(rules.config_fault(op, other, schema))
        assert schemas.field_names(op, 3) == rules.FIELD_NAMES[op]


def test_a_field_that_came_later_is_kept_where_it_is() -> None:
    """A row of schema 2 says what prefetch is, one of schema 3 what sliced_k is too."""
    before, today = (*ROW[:-1], *EXPAND_ROW[:-1], True, True), (*ROW[:-1], True, *EXPAND_ROW[:-1], True, True)
    assert schemas.current_row("add_lora", 2, before, 64, 64) == (*ROW, *EXPAND_ROW[:-1], True, True)
    assert schemas.current_row("add_lora", 3, today, 64, 64) == today
    assert schemas.current_row("shrink", 3, (*ROW[:-1], True), 16, 64) == (*ROW[:-1], True)


def test_rows_of_schema_1_had_no_tile_larger_than_a_segment() -> None:
    """A tile of 64 rows was cut down to segments of 16; since then it takes four of them together."""
    assert schemas.current_row("shrink", 1, ROW[:-1], 16, 64) == (16, *ROW[1:])
    assert schemas.current_row("shrink", 1, ROW[:-1], 48, 64) == ROW
    assert schemas.current_row("shrink", 2, ROW[:-1], 16, 64) == ROW
    before = (*ROW[:-1], *EXPAND_ROW[:-1], True)
    stages = [schemas.current_row("expand", 1, EXPAND_ROW[:-1], 64, max_rank)[5] for max_rank in (16, 17)]
    assert stages == [1, EXPAND_ROW[5]]  # the whole rank of 16 at once: one tile ahead, through registers
    assert schemas.current_row("add_lora", 1, before, 20, 64) == (32, *ROW[1:], 32, *EXPAND_ROW[1:], True)


@pytest.mark.parametrize("field", ["batches", "tuned_on"])
def test_batches_came_with_schema_2(field: str) -> None:
    """Since then they must be told; a file of schema 1 that has them says something else than it means."""
    assert faults(bent(f"records[0].{field}", REMOVED)) == [f"$.records[0].{field}: missing"]
    assert f"$.records[0].{field}: unknown field" in faults(document(schema=1))


def test_an_older_schema_is_read_as_what_it_meant() -> None:
    """One batch, that of the record; a tile of more rows than a segment was one of the segment's rows then."""
    assert faults(older(document())) == []
    (result,) = raw_results.results(older(document()))
    assert result.batches == ((101, 5, 7, 30.0, 20.0),)
    assert result.tuned_on == 1
    assert result.default.row == (16, *DEFAULT[1:])  # type: ignore[union-attr]
    assert records.baked_row(result) == (16, *BETTER[1:])
    assert [result.default.row for result in raw_results.results(document())] == [tuple(DEFAULT)]  # type: ignore[union-attr]


def test_schema_2_is_read_as_having_shared_no_steps() -> None:
    """Everything else stays as it was measured: larger tiles, every batch with its times, and how many decided."""
    batches = [[9, 6, 6, 15.0, 12.5], [80, 1, 5, 12.0, 13.0]]
    content = older(document(record(finalists=[finalist(OTHER, 20.0)], others=batches, tuned_on=2)), 2)
    assert faults(content) == []
    (result,) = raw_results.results(content)
    assert result.default == (tuple(DEFAULT), 30.0, 48)
    assert records.baked_row(result) == (*OTHER[:-1], False)
    assert {row[-1] for row in result.screened} == {False}
    assert result.batches == ((101, 5, 7, 30.0, 20.0), (9, 6, 6, 15.0, 12.5), (80, 1, 5, 12.0, 13.0))
    assert result.tuned_on == 2
    upgraded = schemas.upgraded(content)
    assert faults(upgraded) == []
    assert upgraded["schema"] == schemas.SCHEMA
    assert list(raw_results.results(upgraded)) == [result]


def test_sliced_k_came_with_schema_3() -> None:
    """Since then it must be told; an older file that has it says something else than it means."""
    assert any("expected 9 values" in fault for fault in faults({**older(document(), 2), "schema": 3}))
    found = faults({**older(document(), 3), "schema": 2})
    assert found[0].startswith("$.fields: ")
    assert all("expected 8 values" in fault for fault in found[1:])
    assert len(found) == 1 + 4  # the default, two candidates and a finalist


def test_races_came_with_schema_4() -> None:
    """Since then they must be told; an older file is read as having had none, and all else stays."""
    assert faults(bent("records[0].races", REMOVED)) == ["$.records[0].races: missing"]
    assert faults(document(schema=3)) == ["$.records[0].races: unknown field"]
    content = older(document(), 3)
    assert faults(content) == []
    assert list(raw_results.results(content)) == list(raw_results.results(document()))
    assert schemas.upgraded(content) == document()


def test_an_upgraded_file_is_valid_and_says_the_same() -> None:
    """Rows that were two ways to write one are merged: the faster time stays. Nothing changes a second time."""
    same = [16, *BETTER[1:]]
    finalists = [finalist(BETTER, 21.0), finalist(same, 20.0), finalist(OTHER, 22.0)]
    content = older(document(record(finalists=finalists, segment_bucket=8)))
    upgraded = schemas.upgraded(content)
    assert faults(upgraded) == []
    assert [one["row"] for one in upgraded["records"][0]["finalists"]] == [same, [*OTHER[:-1], False]]
    assert upgraded["records"][0]["finalists"][0]["p50_us"] == 20.0
    assert list(raw_results.results(upgraded)) == list(raw_results.results(content))
    assert schemas.upgraded(upgraded) == upgraded


def test_a_field_that_came_later_has_its_neutral_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older files need not have it, newer ones must; the rows that come out are of one length."""
    late = rules.Field("persistent", 0, 1, boolean=True, since=2, neutral=False)
    monkeypatch.setitem(rules.FIELDS, "shrink", (*rules.FIELDS["shrink"], late))  # type: ignore[arg-type]
    monkeypatch.setitem(rules.FIELD_NAMES, "shrink", (*rules.FIELD_NAMES["shrink"], "persistent"))  # type: ignore[arg-type]
    assert faults(older(document())) == []
    (result,) = raw_results.results(older(document()))
    assert result.finalists[0].row == (16, *BETTER[1:], False)
    assert any("expected 10 values" in fault for fault in faults(document()))
