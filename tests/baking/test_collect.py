"""Raw results on disk, validated or refused with every fault."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from csgmv.baking.collect import MOST_BYTES, Faulty, collect
from fabricated import document, put, record


def refusal(folder: Path) -> list[str]:
    """The faults for which a folder is refused, without the folder's own path."""
    with pytest.raises(Faulty) as caught:
        collect(folder)
    return [fault.replace(f"{folder}{os.sep}", "") for fault in caught.value.faults]


def test_results_are_found_at_any_depth(tmp_path: Path) -> None:
    """In the order of their names, each with the file it stands in; README.md at the top is no result."""
    put(tmp_path, "nvidia-h200/triton-3.6.0/b.json", document())
    put(tmp_path, "a.json", document(record(), record(chunk_size=64)))
    (tmp_path / "README.md").write_text("# Raw results")
    found = collect(tmp_path).found
    assert [(one.file, one.result.key.chunk_size) for one in found] == [
        ("a.json", 16),
        ("a.json", 64),
        ("nvidia-h200/triton-3.6.0/b.json", 16),
    ]


def test_a_file_may_be_read_alone(tmp_path: Path) -> None:
    """Whatever stands beside it; it is checked like those of a folder."""
    one = put(tmp_path, "one.json", document())
    (tmp_path / "notes.txt").write_text("not read")
    assert [found.file for found in collect(one).found] == ["one.json"]
    (link := tmp_path / "link.json").symlink_to(one)
    for path, fault in ((link, "a plain file, got a link"), (tmp_path / "notes.txt", "only .json files")):
        (told,) = refusal(path)
        assert told.startswith(f"{path}: $: expected {fault}")


def test_every_fault_of_every_file_is_told(tmp_path: Path) -> None:
    """One bad file does not hide another, and one fault not the next."""
    put(tmp_path, "x/one.json", document(record(noise_us=-1), gpu=None))
    put(tmp_path, "good.json", document())
    (tmp_path / "two.json").write_text(json.dumps(document())[:-1])
    faults = refusal(tmp_path)
    assert [fault.partition(": expected")[0] for fault in faults[1:]] == [
        "x/one.json: $.gpu",
        "x/one.json: $.records[0].noise_us",
    ]
    assert faults[0].startswith("two.json: $: Expecting ',' delimiter: line 1 column ")


def test_no_results_are_a_fault(tmp_path: Path) -> None:
    """A wheel with an empty table would look as if all were well."""
    (tmp_path / "README.md").write_text("# Raw results")
    assert refusal(tmp_path) == [f"{tmp_path}: expected raw results, got none"]
    assert refusal(tmp_path / "nowhere") == [
        f"{tmp_path / 'nowhere'}: expected raw results, got no such file or folder"
    ]


@pytest.mark.parametrize("name", ["notes.txt", "x/README.md", ".result.json.tmp", "result.json.orig", "\x1b[2J.json"])
def test_other_files_are_faults(tmp_path: Path, name: str) -> None:
    """What was put here by mistake, or was meant to count and is named so that it would not."""
    put(tmp_path, "good.json", document())
    put(tmp_path, name, document())
    (fault,) = refusal(tmp_path)
    assert fault.isprintable()
    assert ": $: expected only .json files" in fault


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Neither to a file nor to a folder: what is built must stand in the tree."""
    outside = put(tmp_path, "outside/result.json", document())
    inside = put(tmp_path, "configs/good.json", document()).parent
    (inside / "file.json").symlink_to(outside)
    (inside / "folder").symlink_to(outside.parent)
    wanted = "expected a plain file, got a link or a special file"
    assert refusal(inside) == [f"file.json: $: {wanted}", f"folder: $: {wanted}"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Reading one would hang the build."""
    os.mkfifo(tmp_path / "pipe.json")
    (fault,) = refusal(tmp_path)
    assert fault.startswith("pipe.json: $: expected a plain file")


def test_a_file_nested_too_deeply_is_a_fault(tmp_path: Path) -> None:
    """Where parsing runs out of stack, and where it just does not."""
    for depth in (400, 100_000):
        (tmp_path / f"{depth}.json").write_text("[" * depth + "]" * depth)
    depth = sys.getrecursionlimit() - 60
    text = json.dumps(document()).replace('"schema": 4', '"schema": ' + "[" * depth + "]" * depth)
    (tmp_path / "schema.json").write_text(text)
    assert len(refusal(tmp_path)) == 3


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """It is told by its size."""
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert refusal(tmp_path) == [f"huge.json: $: expected at most {MOST_BYTES} bytes, got {MOST_BYTES + 1}"]


def test_bytes_that_are_no_text_are_a_fault(tmp_path: Path) -> None:
    """With where they stand."""
    (tmp_path / "latin.json").write_bytes(b'{"gpu": "\xe9"}')
    (fault,) = refusal(tmp_path)
    assert fault.startswith("latin.json: $: 'utf-8' codec can't decode byte 0xe9 in position 9")


def test_the_digest_tells_contents_apart(tmp_path: Path) -> None:
    """One number changed, or a file renamed, gives another digest."""
    put(tmp_path / "one", "a.json", document())
    put(tmp_path / "two", "a.json", document(record(tuned_us=20.01)))
    put(tmp_path / "three", "b.json", document())
    assert len({collect(tmp_path / name).digest for name in ("one", "two", "three")}) == 3


def test_documents_are_the_files_as_parsed(tmp_path: Path) -> None:
    """By the name under which their results stand."""
    put(tmp_path, "gpu/one.json", document())
    collected = collect(tmp_path)
    assert collected.documents == {"gpu/one.json": document()}
    assert {found.file for found in collected.found} == collected.documents.keys()


def test_the_digest_is_of_content_alone(tmp_path: Path) -> None:
    """Not of the place it stands in, nor of line ends, spaces or the order of fields."""
    put(tmp_path / "here", "x/a.json", document())
    there = put(tmp_path / "there/configs", "x/a.json", document())
    there.write_bytes(json.dumps(dict(reversed(document().items()))).replace(", ", ",\r\n").encode())
    assert collect(tmp_path / "here").digest == collect(tmp_path / "there/configs").digest
