"""`python -m codegen --diff REV`: what changed between a revision's results and the working tree's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from codegen import diff
from codegen.__main__ import main
from codegen.source import choose, collect, raw_results
from fabricated import ADD_LORA, BETTER, document, finalist, put, record, record_of

OTHER = [64, *BETTER[1:]]


def choice(*contents: dict[str, Any]) -> choose.Chosen:
    return choose.choose(
        collect.Found(f"{index}.json", result)
        for index, content in enumerate(contents)
        for result in raw_results.results(content)
    )


def lines(before: choose.Chosen, after: choose.Chosen, most: int | None = diff.MOST) -> dict[str, list[str]]:
    """What is told, by kind."""
    found: dict[str, list[str]] = {}
    for line in diff.report(before, after, most):
        kind, _, rest = line.partition(": ")
        found.setdefault(kind, []).append(rest)
    return found


def at(chunk_size: int, tuned_us: float, row: list[Any] = BETTER, **more: Any) -> dict[str, Any]:
    return record(chunk_size=chunk_size, finalists=[finalist(row, tuned_us)], **more)


def test_nothing_changed() -> None:
    """Counts say so; no row is listed."""
    same = choice(document())
    assert lines(same, same) == {
        "keys": ["1 → 1: 0 added, 0 removed, 0 changed, 0 slower, 0 faster, 0 measured again with the same row"],
        "chunk sizes": ["1 → 1: 0 added, 0 removed, 0 changed"],
        "defaults of architectures": ["1 → 1: 0 added, 0 removed, 0 changed"],
    }


def test_rows_added_removed_changed_and_slower() -> None:
    """Each under its kind, a row that changed and got slower under both; within the noise nothing is slower."""
    before = choice(document(at(16, 20.0), at(32, 20.0), at(64, 20.0), at(128, 20.0)))
    after = choice(document(at(32, 18.0), at(64, 22.0, OTHER), at(128, 20.1), at(256, 15.0)))
    found = lines(before, after)
    assert found["keys"] == [
        "4 → 4: 1 added, 1 removed, 1 changed, 1 slower, 1 faster, 2 measured again with the same row"
    ]
    place = "NVIDIA H200, Triton 3.6.0, shrink 1024 → 3·64, bfloat16, chunk size"
    row = "block_m=32 block_n=32 block_k=128 column_tiles=2 split_k=1 num_warps=4 num_stages=2 maxnreg=None"
    row += " sliced_k=False"
    assert found["added"] == [f"{place} 256, 8 segments: {row}, 15.00 µs"]
    assert found["removed"] == [f"{place} 16, 8 segments: {row}, 20.00 µs"]
    slower = "20.00 → 22.00 µs (+10.0 %, noise 0.20)"
    assert found["changed"] == [f"{place} 64, 8 segments: block_m 32 → 64; {slower}"]
    assert found["slower"] == [f"{place} 64, 8 segments: {slower}"]


@pytest.mark.parametrize(("us", "noise", "slower"), [(20.19, 0.1, 0), (20.21, 0.1, 1), (20.9, 1.0, 0), (21.1, 1.0, 1)])
def test_slower_is_by_more_than_the_noise(us: float, noise: float, slower: int) -> None:
    """That of either run, and no less than the share of the time that a tuned row has to save."""
    before, after = choice(document(at(16, 20.0))), choice(document(at(16, us, noise_us=noise)))
    assert f" {slower} slower, 0 faster" in lines(before, after)["keys"][0]
    assert f" 0 slower, {slower} faster" in lines(after, before)["keys"][0]


def test_races_alone_are_told_apart() -> None:
    """The record itself was not measured again."""
    before = choice(document(at(16, 20.0), at(64, 20.0)))
    race = {"run": 0, "samples": 96, "times": [[BETTER, 10.0], [OTHER, 11.0]]}
    after = choice(document(at(16, 20.0, races=[race]), at(64, 20.0, races=[race], noise_us=0.1)))
    (told,) = lines(before, after)["keys"]
    assert told.endswith("0 slower, 0 faster, 1 measured again with the same row, 1 with other races")


def test_a_default_kept_is_timed_as_the_default() -> None:
    """A row that no longer beats it is a change, from the row's time to the default's."""
    before, after = choice(document(at(16, 20.0))), choice(document(at(16, 29.9)))
    told = lines(before, after)["changed"][0]
    assert told.endswith("num_stages=2 maxnreg=None sliced_k=False → default; 20.00 → 30.00 µs (+50.0 %, noise 0.20)")
    unrunnable = choice(document(at(16, 29.9, default=None, others=[])))
    assert "1 changed" in lines(after, unrunnable)["keys"][0]


def test_chunk_sizes_and_defaults() -> None:
    """Of which batch, GPU and architecture."""
    sizes = (128, 64, 32, 16)
    quick, slow = (
        document(*(record_of("add_lora", us, size, 2048, 8) for us, size in zip(times, sizes)), **ADD_LORA)
        for times in ((10.0, 20.0, 30.0, 40.0), (40.0, 30.0, 20.0, 10.0))
    )
    found = lines(choice(quick), choice(slow))
    assert found["chunk sizes"] == ["1 → 1: 0 added, 0 removed, 1 changed"]
    assert found["chunk size"] == ["NVIDIA H200, Triton 3.6.0, 2048 rows, 8 adapters: 128 → 16"]
    found = lines(
        choice(document(at(16, 20.0))), choice(document(at(16, 20.0, OTHER, candidates=[]), gpu="NVIDIA H100"))
    )
    assert found["defaults of architectures"] == ["1 → 1: 0 added, 0 removed, 1 changed"]
    assert found["default"][0].startswith("architecture 9.0, shrink, 128 rows: block_m=32 block_n=32 ")
    assert " → block_m=64 block_n=32 " in found["default"][0]


def test_long_lists_are_cut_and_told_whole_on_request() -> None:
    """Counts are of all."""
    keys = [at(16, 20.0, segment_bucket=1 << n, num_segments=1 << n) for n in range(14)]
    before, after = choice(document(at(32, 20.0))), choice(document(at(32, 20.0), *keys))
    added = lines(before, after)["added"]
    assert len(added) == diff.MOST + 1
    assert added[-1] == "… and 4 more, which --all lists"
    assert len(lines(before, after, None)["added"]) == 14


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose first commit has no results, whose second has one that has changed since."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    git(tmp_path, "init", "-q", ".")
    (tmp_path / "README.md").write_text("nothing yet")
    for name, content in (("none", None), ("one", document(at(16, 20.0)))):
        if content is not None:
            put(tmp_path, "kept/configs/h200/a.json", content)
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", name)
        git(tmp_path, "tag", name)
    put(tmp_path, "kept/configs/h200/a.json", document(at(16, 22.0), at(32, 20.0)))
    return tmp_path


def told(repository: Path, *arguments: str) -> int:
    configs, out = repository / "kept" / "configs", repository / "table.py"
    status = main(["--configs", str(configs), "--out", str(out), *arguments])
    assert not out.exists()
    return status


def test_the_working_tree_against_a_revision(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, hash or relative to another; what is not committed counts; the exit status is 0, nothing is written."""
    assert told(repository, "--diff", "one") == 0
    first, keys, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{repository}/kept/configs since one (")
    assert keys == "keys: 1 → 2: 1 added, 0 removed, 0 changed, 1 slower, 0 faster, 1 measured again with the same row"
    git(repository, "commit", "-q", "-a", "-m", "two")
    assert told(repository, "--diff", "HEAD~1", "--all") == 0
    assert capsys.readouterr().out.splitlines()[1] == keys
    assert told(repository, "--diff", "HEAD") == 0
    assert "keys: 2 → 2: 0 added" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nope", "--diff: expected a revision that git knows, got 'nope'"),
        ("--output=x", "--diff: expected a revision that git knows, got '--output=x'"),
        ("none", "--diff: expected a revision with the folder kept/configs, got 'none', which has none"),
    ],
)
def test_a_revision_without_results_is_an_error(
    revision: str, message: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which says what was expected; the exit status is 1."""
    assert told(repository, f"--diff={revision}") == 1
    assert capsys.readouterr() == ("", f"{message}\n")


def test_faulty_results_of_a_revision_are_told_by_its_name(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by the folder that they were unpacked to."""
    good = (repository / "kept/configs/h200/a.json").read_text()
    put(repository, "kept/configs/h200/a.json", document(at(16, 20.0), colour="blue"))
    git(repository, "commit", "-q", "-a", "-m", "bad")
    (repository / "kept/configs/h200/a.json").write_text(good)
    assert told(repository, "--diff", "HEAD") == 1
    error = capsys.readouterr().err
    assert error.endswith(":configs/h200/a.json: $.colour: unknown field\n")
    assert str(repository) not in error


def test_without_git_or_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of results that git knows nothing of; a machine without git."""
    put(tmp_path, "kept/configs/a.json", document())
    if shutil.which("git") is not None:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert told(tmp_path, "--diff", "HEAD") == 1
        assert "to be in a git repository that can be read" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert told(tmp_path, "--diff", "HEAD") == 1
    assert capsys.readouterr().err == "--diff: expected git, which reads the revision, got no such program\n"
