"""Keys without a row of their own are noted once, and the file of them is whole whatever happens to the process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import csgmv
from batches import DEVICE, make_batch
from csgmv import ShrinkConfig, dispatch, fallback, files, lora_shrink, misses, record_misses, rules
from csgmv.config import to_row
from laid import tables

CPU = torch.device("cpu")
KEY = rules.Key("shrink", 1024, (), 64, 3, "float16", 64, 32)
INVARIANT = KEY._replace(chunk_size=16, segment_bucket=32)
FAST = KEY._replace(segment_bucket=4)  # nothing beat the default there
KNOWN = fallback.Tables(
    {("NVIDIA H200", "3.6.0"): fallback.by_layer({KEY: to_row(ShrinkConfig(block_n=64)), FAST: None})},
    {"NVIDIA H200": ("9.0", 132)},
)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The tables are KNOWN, by which interpreted launches are those of an H200; nothing is recorded afterwards."""
    with tables(KNOWN, {}):
        yield
        record_misses(None)


def miss(key: rules.Key) -> misses.Miss:
    return misses.Miss("NVIDIA H200", "3.6.0", key)


def test_what_is_not_exact_is_noted_once(tmp_path: Path) -> None:
    """With the step that served it; a key whose default was measured best has an answer of its own."""
    path = tmp_path / "folder" / "misses.json"
    record_misses(path)
    assert misses.read(path) == {}
    other, dtype = KEY._replace(segment_bucket=8), KEY._replace(dtype="float32")
    for key in (KEY, FAST, other, other, dtype):
        dispatch.choose(key, CPU)
    record_misses(None)
    assert misses.read(path) == {miss(other): "nearest segment bucket (32)", miss(dtype): "default"}
    dispatch.choose(KEY._replace(segment_bucket=1), CPU)
    assert len(misses.read(path)) == 2, "recording had ended"
    assert len(path.read_text().splitlines()) == 4


def test_what_was_looked_up_before_is_noted_at_once(tmp_path: Path) -> None:
    """It will not be looked up again; exact ones are not noted then either."""
    other = KEY._replace(input_dim=2048)
    for key in (KEY, other):
        dispatch.choose(key, CPU)
    record_misses(tmp_path / "misses.json")
    record_misses(None)
    assert list(misses.read(tmp_path / "misses.json")) == [miss(other)]


def test_a_batch_invariant_launch_misses_the_key_it_is_looked_up_under(tmp_path: Path) -> None:
    """Which has another chunk size and bucket than its batch, so that tuning it helps."""
    record_misses(tmp_path / "misses.json")
    dispatch.choose(KEY, CPU, batch_invariant=True)
    record_misses(None)
    assert list(misses.read(tmp_path / "misses.json")) == [miss(INVARIANT)]


def test_a_launch_is_noted(tmp_path: Path) -> None:
    """By the operations themselves, on a GPU as interpreted, and of calls like one before only the first."""
    batch = make_batch([8, 0, 5], 8, 96, [16, 32], 40)
    record_misses(str(tmp_path / "misses.json"))
    for _ in range(3):
        lora_shrink(batch.x, batch.lora_a, batch.segments, batch.num_slices)
    record_misses(None)
    where = dispatch.target(batch.x.device)
    key = dispatch.shrink_key(96, 8, 2, torch.float16, batch.segments)
    (found,) = misses.read(tmp_path / "misses.json")
    assert found == (where.gpu, where.triton, key)
    assert where.gpu == ("NVIDIA H200" if DEVICE == "cpu" else torch.cuda.get_device_name())


def test_what_the_file_has_already_stays(tmp_path: Path) -> None:
    """So a server may be started again; another path begins another file."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    keys = [KEY._replace(input_dim=16 << number) for number in range(3)]
    record_misses(one)
    dispatch.choose(keys[0], CPU)
    record_misses(two)
    dispatch.choose(keys[1], CPU)
    dispatch._remembered.clear()
    record_misses(one)
    dispatch.choose(keys[2], CPU)
    record_misses(None)
    assert list(misses.read(one)) == [miss(keys[0]), miss(keys[2])]
    assert list(misses.read(two)) == [miss(keys[0]), miss(keys[1])]


LINE = (
    '{"gpu": "a GPU", "triton": "3.6.0", "op": "shrink", "input_dim": 16, "slice_widths": [], "max_rank": 8, '
    '"num_slices": 1, "dtype": "float16", "chunk_size": 16, "segment_bucket": 8, "step": "default"}'
)


def of_lines(*lines: str) -> str:
    return f'{{"schema": 1, "misses": [{", ".join(lines)}]}}'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# notes", "$: Expecting value"),
        ("[" * 100_000, "$: nested too deeply"),
        ("{}", "$.schema: missing"),
        (of_lines(LINE).replace("1,", "2,", 1), "$.schema: expected 1, got 2"),
        (of_lines(LINE, LINE.replace("8,", "NaN,", 1)), "$: NaN is not a JSON number"),
        (of_lines(LINE, LINE.replace('"max_rank": 8', '"max_rank": 999')), "$.misses[1].max_rank: expected 1 to 256"),
        (of_lines(LINE.replace("shrink", "__import__('os')")), "$.misses[0].op: expected one of shrink, expand"),
        (of_lines(LINE.replace('"slice_widths": []', '"slice_widths": "ab"')), "$.misses[0].slice_widths: expected an"),
        (of_lines(LINE.replace('"step"', '"steps"')), "$.misses[0].steps: unknown field"),
        (
            of_lines(LINE.replace('"gpu": "a GPU"', '"gpu": "a GPU", "gpu": "b"')),
            "$.misses[0].gpu: given more than once",
        ),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, text: str, fault: str) -> None:
    """Naming the file, the field, what was expected and what came; nothing is recorded then."""
    path = tmp_path / "misses.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"misses\.json") as caught:
        record_misses(path)
    assert f"{path}: {fault}" in str(caught.value)
    assert path.read_text() == text
    assert dispatch.watchers == []


def test_a_path_is_needed() -> None:
    """Or None."""
    with pytest.raises(TypeError, match="path: expected a str, a PathLike or None, got int"):
        record_misses(3)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_is_told_at_once_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never to a launch, which goes on."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        record_misses(tmp_path / "file" / "misses.json")
    record_misses(tmp_path / "misses.json")

    def no_space(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", no_space)
        assert dispatch.choose(KEY._replace(input_dim=16), CPU).step == "default"
        with pytest.raises(OSError, match="no space left"):
            record_misses(None)
    record_misses(tmp_path / "misses.json")
    record_misses(None)
    assert list(misses.read(tmp_path / "misses.json")) == [miss(KEY._replace(input_dim=16))]


def test_threads_miss_nothing(tmp_path: Path) -> None:
    """Eight of them, each with keys of its own and some that all have, while the file is being written."""
    keys = [KEY._replace(input_dim=2048 + number) for number in range(400)]
    record_misses(tmp_path / "misses.json")
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(lambda n=number: [dispatch.choose(key, CPU) for key in keys[n * 40 :]])
    record_misses(None)
    noted = misses.read(tmp_path / "misses.json")
    assert {one.key for one in noted} == {*keys}


PROCESS = """
import sys
import torch
from csgmv import dispatch, record_misses, rules
record_misses(sys.argv[1])
for number in range(int(sys.argv[2])):
    key = rules.Key("shrink", 16 + number, (), 64, 3, "float32", 64, 32)
    dispatch.choose(key, torch.device("cpu"))
"""


def started(path: Path, count: int) -> subprocess.Popen[bytes]:
    """A process that notes so many keys, one after the other."""
    environment = {**os.environ, "PYTHONPATH": str(Path(csgmv.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(path), str(count)], env=environment)


def test_a_process_that_ends_leaves_everything(tmp_path: Path) -> None:
    """Also what it noted in its last moment."""
    process = started(tmp_path / "misses.json", 50)
    assert process.wait(timeout=120) == 0
    assert [found.key.input_dim for found in misses.read(tmp_path / "misses.json")] == list(range(16, 66))


def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    """While it goes on noting keys and writing them down; what was noted before the last writes is there."""
    path = tmp_path / "misses.json"
    process = started(path, 10**6)
    deadline = time.monotonic() + 60
    while not (path.exists() and len(misses.read(path)) > 100) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=60)
    found = [one.key.input_dim for one in misses.read(path)]
    assert len(found) > 100
    assert found == list(range(16, 16 + len(found)))


def test_a_fork_leaves_the_file_to_its_parent(tmp_path: Path) -> None:
    """Its own misses would take the place of the parent's."""
    record_misses(tmp_path / "misses.json")
    child = os.fork()
    if child == 0:
        status: Any = 1
        try:
            dispatch.choose(KEY._replace(input_dim=16), CPU)
            record_misses(None)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    record_misses(None)
    assert misses.read(tmp_path / "misses.json") == {}
