"""Which rows of other keys are timed at a key: first what the fallback would lend, then all winners, cut to the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossed import WHERE, chosen, folder, layer, own
from csgmv import fallback, footprint, refit, rules
from csgmv.baking import left_out
from csgmv.baking.choose import Chosen
from csgmv.tuning import heats as module
from csgmv.tuning.heats import heats
from fabricated import DEFAULT, finalist

LAYERS = [
    layer(512, 2),
    layer(1024, 3, finalists=[finalist(own(2), 21.0)]),
    layer(4096, 4),
    layer(2048, 5, max_rank=16),
    layer(2048, 6, gpu="NVIDIA H100"),
]


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    return chosen(folder(tmp_path_factory.mktemp("configs"), *LAYERS))


def known(choice: Chosen, key: rules.Key) -> set[rules.Row]:
    (result,) = (one for one in choice.results if one.key == key and one.gpu == WHERE[0])
    return {timing.row for timing in (*result.finalists, *filter(None, [result.default]))}


def test_what_the_fallback_would_lend_comes_first(choice: Chosen) -> None:
    """In every way of leaving out, other GPUs' rows too; not what the record has at full length already."""
    found = {heat.result.key: heat for heat in heats(choice, WHERE).lent}
    for key in choice.table[WHERE]:
        lent = [
            one.served.row for one in left_out.cases(choice) if one.result.key == key and one.result.gpu == WHERE[0]
        ]
        wanted = [row for row in dict.fromkeys(lent) if row and row not in known(choice, key)]
        assert (list(found[key].rows) if key in found else []) == wanted
    rows = {row for heat in found.values() for row in heat.rows}
    assert tuple(own(6)) in rows
    assert tuple(own(2)) not in found[next(key for key in found if key.input_dim == 1024 and key.chunk_size == 64)].rows


def test_then_the_winners_of_all_keys_of_the_rank(choice: Chosen) -> None:
    """Cut to the key, each once; those of other ranks and GPUs come only if they are lent."""
    planned = heats(choice, WHERE)
    for key, row in choice.table[WHERE].items():
        rows = {row for part in planned for heat in part if heat.result.key == key for row in heat.rows}
        lent = {row for heat in planned.lent if heat.result.key == key for row in heat.rows}
        winners = {
            refit.adapted(other_row, other, key, footprint.LIMITS["9.0"])
            for other, other_row in choice.table[WHERE].items()
            if other.max_rank == key.max_rank and other_row
        }
        assert rows == (winners | lent) - known(choice, key)
        assert row not in rows


def test_the_winner_and_the_default_are_beside_them(choice: Chosen) -> None:
    """In each race, in this order."""
    for heat in (*heats(choice, WHERE).lent, *heats(choice, WHERE).others):
        assert heat.beside == (choice.table[WHERE][heat.result.key], tuple(DEFAULT))
        assert not {*heat.beside} & {*heat.rows}


def test_the_nearest_comes_first_and_races_are_short(choice: Chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key's first race before any's second; layers take turns."""
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    planned = heats(choice, WHERE)
    assert max(len(heat.rows) for part in planned for heat in part) == 2
    keys = [heat.result.key for heat in planned.others]
    again = next(index for index, key in enumerate(keys) if key in keys[:index])
    assert {*keys} == {*keys[:again]}
    assert len({key.input_dim for key in keys[:3]}) == 3
    order = [row for heat in planned.others if heat.result.key == keys[0] for row in heat.rows]
    winners = {key: row for key, row in choice.table[WHERE].items() if row and key.max_rank == keys[0].max_rank}
    near = [
        refit.adapted(winners[key], key, keys[0], footprint.LIMITS["9.0"])
        for key in fallback.lenders(keys[0], fallback.by_layer(winners))
    ]
    assert len(order) > 1
    assert order == [row for row in dict.fromkeys(near) if row in order]


def test_what_is_done_is_left(tmp_path: Path) -> None:
    """Races of the record count, unless it is said which do."""
    layers = [layer(512, 2, (16,)), layer(1024, 3, (16,))]
    first, second = (tuple(own(stages, 1)) for stages in (2, 3))
    race = {"run": 0, "samples": 96, "times": [[list(first), 10.0], [list(second), 12.0]]}
    layers[0]["records"][0]["races"] = [race]
    choice = chosen(folder(tmp_path, *layers))
    every = [heat for part in heats(choice, WHERE) for heat in part]
    assert second not in {row for heat in every if heat.result.key.input_dim == 512 for row in heat.rows}
    again = [heat for part in heats(choice, WHERE, lambda _: ()) for heat in part]
    assert second in {row for heat in again if heat.result.key.input_dim == 512 for row in heat.rows}
