"""Tables of another version of csgmv, or broken ones: launches are right all the same, and it is said once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import csgmv
from batches import assert_close, make_batch
from csgmv import _tuned_table, chunk_sizes, cover, dispatch, fallback, launch, reference, rules, tuned

TODAY = {name: getattr(_tuned_table, name) for name in (*tuned.NAMES, "FORMAT")}
HEAD = ("NVIDIA H200", "3.6.0")
FLAT = fallback.flat(TODAY["TABLE"][HEAD])
KEYS = {op: next(key for key in FLAT if key.op == op) for op in rules.OPS}
ROWS = {op: next(row for key, row in FLAT.items() if key.op == op and row is not None) for op in rules.OPS}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a table in the place of the generated one, and forgets what was looked up in another."""

    def put(**names: Any) -> None:
        module = ModuleType("csgmv._tuned_table")
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, "csgmv._tuned_table", module)

    tuned._warn.cache_clear()
    monkeypatch.setattr(dispatch, "_laid", [])
    monkeypatch.setattr(dispatch, "_remembered", {})
    monkeypatch.setattr(launch, "plans", {})
    dispatch.target.cache_clear()
    yield put
    tuned._warn.cache_clear()
    dispatch.target.cache_clear()


def launches() -> list[str]:
    """Every operation, compared with the reference; the steps of the fallback that served."""
    batch = make_batch([16, 7, 0], 16, 96, [48, 24], 37, chunk_size=None)
    b, offsets, segments = batch, batch.slice_offsets, batch.segments
    base = b.base_output.clone()
    h = csgmv.lora_shrink(b.x, b.lora_a, segments, 2, out=b.x.new_full((37, 32), float("nan")))
    csgmv.lora_expand(h, b.lora_b, segments, offsets, base)
    assert_close(base, reference.lora_expand(h, b.lora_b, segments, offsets, b.base_output), b.x.dtype)
    csgmv.add_lora(b.base_output, b.x, b.lora_a, b.lora_b, segments, offsets)
    assert_close(b.base_output, base.float(), b.x.dtype)
    return [choice.step for _, choice in dispatch.remembered()]


OLD_KEYS = {HEAD: {tuple(key): row for key, row in FLAT.items()}}  # from when rows stood by their whole keys
OLD_BATCHES = {HEAD: {key[:6]: {key[6:7]: row} for key, row in FLAT.items()}}
FEWER_FIELDS = {HEAD: fallback.by_layer({key: row and row[:-1] for key, row in FLAT.items()})}
TUNED = sum(row is not None for row in FLAT.values())
OTHERS = {
    ("NVIDIA H200", "2.1.0"): fallback.by_layer({KEYS["shrink"]: ROWS["shrink"]}),
    ("Another GPU", "99.0"): fallback.by_layer({KEYS[op]: ROWS[op] for op in ("expand", "add_lora")}),
}


def one_row(row: Any) -> dict[Any, Any]:
    return {HEAD: fallback.by_layer({KEYS["shrink"]: row})}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({}, "it has no TABLE, CHUNK_SIZES, GPUS, DEFAULTS, LOSSES, DIGEST"),
        ({"TABLE": TODAY["TABLE"]}, "it has no CHUNK_SIZES, GPUS, DEFAULTS, LOSSES, DIGEST"),
        ({**TODAY, "LOSSES": None}, "it has no LOSSES"),
        ({**TODAY, "TABLE": {}}, "it is empty"),
        ({**TODAY, "TABLE": {HEAD: {}}}, "it is empty"),
        ({**TODAY, "FORMAT": None, "TABLE": OLD_KEYS}, f"{len(OLD_KEYS[HEAD])} entries are of another format"),
        ({**TODAY, "FORMAT": None, "TABLE": OLD_BATCHES}, f"{len(OLD_BATCHES[HEAD])} entries are of another format"),
        ({**TODAY, "FORMAT": "old", "TABLE": FEWER_FIELDS}, f"{TUNED} entries are of another format"),
        ({**TODAY, "FORMAT": "old", "TABLE": {"NVIDIA H200": TODAY["TABLE"][HEAD]}}, "1 entries are of another"),
        (
            {**TODAY, "FORMAT": "old", "TABLE": one_row((17, *ROWS["shrink"][1:]))},
            "1 entries",
        ),
        (
            {**TODAY, "FORMAT": "old", "TABLE": one_row([*ROWS["shrink"]])},
            "1 entries",
        ),
        ({**TODAY, "FORMAT": "old", "TABLE": [HEAD]}, "1 entries are of another format"),
        ({**TODAY, "FORMAT": "old", "CHUNK_SIZES": {HEAD: {(512,): 16, (512, 8): 0, "x": 16}}}, "3 entries are"),
        ({**TODAY, "FORMAT": "old", "GPUS": {"NVIDIA H200": "9.0", 3: ("9.0", 132)}}, "2 entries are"),
        ({**TODAY, "FORMAT": "old", "DEFAULTS": {"9.0": {"shrink": {16: (1, 2)}, "fly": {}}}}, "2 entries are"),
        ({**TODAY, "FORMAT": "old", "LOSSES": {"shrink": {"exact": (1, 2)}}}, "1 entries are"),
        ({**TODAY, "FORMAT": "old"}, None),
        ({**TODAY, "TABLE": OTHERS}, None),
        (TODAY, None),
    ],
)
def test_launches_are_right_with_any_table(installed: Any, names: dict[str, Any], said: str | None) -> None:
    """What can be used of it is used."""
    installed(**names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps = launches()
        dispatch.tables(), chunk_sizes.table(), cover.losses()
    told = [str(one.message) for one in caught if "csgmv's table" in str(one.message)]
    if said is None:
        assert told == []
    else:
        (told_once,) = told
        assert f"csgmv's table of tuned configs: {said}" in told_once
        assert "`python -m codegen` makes it anew" in told_once
    if not any(tuned.tables().table.values()):
        assert all("default" in step for step in steps)


def test_a_table_of_another_format_keeps_what_is_still_right(installed: Any) -> None:
    """One bad row does not cost the others."""
    rows = {**FLAT, KEYS["expand"]: (1, 2, 3)}
    installed(**{**TODAY, "FORMAT": "old", "TABLE": {HEAD: fallback.by_layer(rows)}})
    with pytest.warns(UserWarning, match="1 entries are of another format"):
        found = tuned.tables()
    assert {where: fallback.flat(of) for where, of in found.table.items()} == {
        HEAD: {key: row for key, row in rows.items() if key != KEYS["expand"]}
    }
    assert found._replace(table={}) == tuned.Tuned(*(TODAY[name] for name in tuned.NAMES))._replace(table={})


@pytest.mark.usefixtures("installed")
def test_a_missing_table_and_one_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without its hook, and a file that was cut off."""
    monkeypatch.setitem(sys.modules, "csgmv._tuned_table", None)
    with pytest.warns(UserWarning, match="csgmv's table of tuned configs: this installation has none; .* defaults"):
        assert tuned.tables() == tuned.Tuned()

    def broken(_: str) -> ModuleType:
        raise SyntaxError("'{' was never closed")

    monkeypatch.setattr(tuned.importlib, "import_module", broken)
    with pytest.warns(UserWarning, match=r"it cannot be imported \(SyntaxError: '{' was never closed"):
        assert tuned.tables() == tuned.Tuned()


def test_the_format_is_that_of_the_rules() -> None:
    """A field more, or a wider range, is another format; so an older table is looked at row by row."""
    assert TODAY["FORMAT"] == rules.table_format()
    before = rules.table_format()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "FIELDS", {**rules.FIELDS, "shrink": rules.FIELDS["shrink"][:-1]})
        assert rules.table_format() != before
