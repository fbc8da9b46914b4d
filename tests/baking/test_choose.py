"""Which measurement of a key counts, and in what order the table is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from csgmv import raw_results
from csgmv.baking.choose import choose
from csgmv.baking.collect import Found
from fabricated import BETTER, DEFAULT, document, finalist, record

OTHER = [16, 64, 128, 1, 2, 8, 3, 96, True]


def found(file: str, content: dict[str, Any]) -> list[Found]:
    assert not raw_results.faults(content)
    return [Found(file, result) for result in raw_results.results(content)]


def on(date: str, content: dict[str, Any]) -> dict[str, Any]:
    content["runs"][0]["date"] = date
    return content


@pytest.mark.parametrize(
    ("wins", "loses"),
    [
        # 30 → 20 saves a third, 60 → 42 but 30 %, though more microseconds
        (document(record(30.0, 20.0, finalists=[finalist(OTHER, 20.0)])), document(record(60.0, 42.0))),
        # where only the winner runs, the gain is without bounds
        (document(record(None, 99.0, finalists=[finalist(OTHER, 99.0)])), document(record(30.0, 1.0))),
        # a measured winner over none
        (document(record(finalists=[finalist(OTHER, 20.0)])), document(record(finalists=[]))),
        # the same gain: more samples
        (document(record(finalists=[finalist(OTHER, 20.0, samples=49)])), on("2026-12-24", document())),
        # and as many samples: the later date
        (on("2026-12-24", document(record(finalists=[finalist(OTHER, 20.0)]))), document()),
    ],
)
def test_the_better_measurement_of_a_key_counts(wins: dict[str, Any], loses: dict[str, Any]) -> None:
    """The larger share saved of its own default's time, then more samples, then the later date; whatever the names."""
    for names in (("a.json", "b.json"), ("b.json", "a.json")):
        choice = choose(found(names[0], wins) + found(names[1], loses))
        ((key, row),) = choice.table["NVIDIA H200", "3.6.0"].items()
        assert row == tuple(OTHER)
        assert [(one.key, one.kept, one.dropped) for one in choice.duplicates] == [(key, names[0], (names[1],))]


def test_of_equal_measurements_the_first_file_counts() -> None:
    """In the order of names, not in the order in which they come."""
    rivals = [found(f"{name}.json", document()) for name in "cab"]
    for order in itertools.permutations(rivals):
        (duplicate,) = choose(itertools.chain(*order)).duplicates
        assert (duplicate.kept, duplicate.dropped) == ("a.json", ("b.json", "c.json"))


def test_a_key_that_keeps_the_default_stands_in_the_table() -> None:
    """As None, so that nothing is borrowed for it from a neighbour."""
    choice = choose(found("a.json", document(record(), record(tuned_us=29.95, chunk_size=32))))
    assert list(choice.table["NVIDIA H200", "3.6.0"].values()) == [tuple(BETTER), None]


def test_gpus_and_versions_do_not_mix() -> None:
    """The same key on another GPU or under another Triton version is no duplicate; 3.10 comes after 3.6."""
    targets = [("NVIDIA H200", "3.10.0"), ("NVIDIA A100", "3.6.0"), ("NVIDIA H200", "3.6.0")]
    everything = [one for gpu, triton in targets for one in found("a.json", document(gpu=gpu, triton=triton))]
    choice = choose(everything)
    assert list(choice.table) == [("NVIDIA A100", "3.6.0"), ("NVIDIA H200", "3.6.0"), ("NVIDIA H200", "3.10.0")]
    assert choice.duplicates == []


def test_keys_are_sorted() -> None:
    """As numbers, whatever the order of records and files."""
    sizes = [(64, 8), (16, 16), (16, 8), (128, 8)]
    everything = [
        one
        for chunk_size, bucket in sizes
        for one in found("a.json", document(record(chunk_size=chunk_size, segment_bucket=bucket, num_segments=bucket)))
    ]
    keys = list(choose(everything).table["NVIDIA H200", "3.6.0"])
    assert [(key.chunk_size, key.segment_bucket) for key in keys] == sorted(sizes)


def test_the_default_itself_may_be_the_fastest() -> None:
    """Then the table says None, not the default's row: a later default may be better."""
    content = document(record(finalists=[finalist(DEFAULT, 30.0), finalist(BETTER, 33.0)]))
    assert list(choose(found("a.json", content)).table["NVIDIA H200", "3.6.0"].values()) == [None]
