"""Raw results laid over the tables: later launches get their rows, and results with a fault change nothing."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import csgmv
from batches import DEVICE, assert_close, make_batch, poisoned
from csgmv import (
    Segments,
    ShrinkConfig,
    chunk_sizes,
    dispatch,
    fallback,
    footprint,
    launch,
    lora_shrink,
    reference,
    rules,
    show,
)
from csgmv.config import to_row
from csgmv.overlay import Overlay, load_overlay
from fabricated import BETTER, DEFAULT, document, finalist, put, record, record_of
from fake_gpu import fake_gpu
from laid import tables

OTHER = [16, 64, 128, 1, 2, 8, 3, 96, True]
H200 = ("NVIDIA H200", "3.6.0")
KEY = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)  # that of a document
KNOWN = fallback.Tables(
    {H200: fallback.by_layer({KEY: tuple(OTHER), KEY._replace(input_dim=512): tuple(OTHER)})},
    {"NVIDIA H200": ("9.0", 132)},
    {"9.0": {"shrink": {128: tuple(OTHER), 2048: tuple(OTHER)}, "expand": {16: (1,)}}, "8.0": {"shrink": {}}},
)
SIZES = {H200: {(8, 8): 128, (2048, 8): 128}}
_resolve = dispatch.resolve


@pytest.fixture
def known() -> Iterator[None]:
    """The tables are KNOWN and SIZES."""
    with tables(KNOWN, SIZES):
        yield


@pytest.mark.usefixtures("known")
def test_results_count_where_both_know_something(tmp_path: Path) -> None:
    """Of rows, a GPU's facts, an architecture's defaults and chunk sizes; all else stays."""
    file = put(tmp_path, "a.json", document(record(), record(chunk_size=64, tuned_us=29.9)))
    loaded = csgmv.load_overlay(file)
    assert loaded == Overlay(rows=1, defaults_kept=1, replaced=1, chunk_sizes=1, duplicates=0)
    rows, gpus, defaults = dispatch.tables()
    known = {KEY: tuple(BETTER), KEY._replace(input_dim=512): tuple(OTHER), KEY._replace(chunk_size=64): None}
    assert rows == {H200: fallback.by_layer(known)}
    assert gpus == {"NVIDIA H200": ("9.0", 132)}
    of_shrink = {128: tuple(BETTER), 512: tuple(BETTER), 2048: tuple(OTHER)}
    assert defaults == {"9.0": {"shrink": of_shrink, "expand": {16: (1,)}}, "8.0": {"shrink": {}}}
    assert chunk_sizes.table() == {H200: {(8, 8): 16, (2048, 8): 128}}
    assert len(fallback.flat(KNOWN.rows[H200])) == 2, "the tables themselves were written to"
    assert SIZES[H200][8, 8] == 128


@pytest.mark.usefixtures("known")
def test_a_later_overlay_counts_over_an_earlier_one(tmp_path: Path) -> None:
    """And leaves what it does not know; of one load's duplicates the better measurement counts, not the last file."""
    one, two = tmp_path / "one", tmp_path / "two"
    put(one, "a.json", document())
    put(one, "b.json", document(record(tuned_us=25.0, finalists=[finalist(OTHER, 25.0)]), gpu="NVIDIA L4"))
    assert load_overlay(str(one)).replaced == 1
    put(two, "better.json", document(record(60.0, 30.0, finalists=[finalist(DEFAULT, 30.0)])))
    put(two, "x/worse.json", document(record()))
    loaded = load_overlay(two)
    assert (loaded.rows, loaded.replaced, loaded.duplicates) == (1, 1, 1)
    rows = {target: fallback.flat(of) for target, of in dispatch.tables().rows.items()}
    assert rows[H200][KEY] == tuple(DEFAULT)
    assert rows["NVIDIA L4", "3.6.0"] == {KEY: tuple(OTHER)}


def nested(depth: int) -> str:
    return json.dumps(document()).replace('"schema": 4', '"schema": ' + "[" * depth + "]" * depth)


def twice(text: str) -> str:
    return text.replace('"gpu": ', '"gpu": "NVIDIA A100", "gpu": ')


WHOLE = json.dumps(document())
HOSTILE = {
    "no JSON": ("{", "$: Expecting"),
    "cut off": (WHOLE[:-1], "$: Expecting"),
    "no object": ("[]", "$: expected an object, got []"),
    "NaN": (WHOLE.replace("0.12", "NaN"), "$: NaN is not a JSON number"),
    "infinite": (
        WHOLE.replace("0.12", "1e999"),
        "$.records[0].noise_us: expected a number from 0 up to 1e+09, got inf",
    ),
    "huge": (WHOLE.replace('"tokens": 101', '"tokens": 1' + "0" * 4000), "$.records[0].tokens: expected an integer"),
    "too many digits": (WHOLE.replace('"tokens": 101', '"tokens": 1' + "0" * 9000), "$"),
    "deep": (nested(400), "$"),
    "deeper": (nested(100_000), "$: nested too deeply"),
    "given twice": (twice(WHOLE), "$.gpu: given more than once"),
    "code": (WHOLE.replace("NVIDIA H200", "H'] = __import__('os')"), "$.gpu: expected a name of letters, digits"),
    "code for a row": (WHOLE.replace("[32, 32, 128, 2,", '["exit()", 32, 128, 2,'), "$.records[0].finalists[0].row: "),
    "no such launch": (WHOLE.replace('"max_rank": 64', '"max_rank": 257'), "$.max_rank: expected 1 to 256, got 257"),
    "unknown": (WHOLE.replace('"runs"', '"colour": "blue", "runs"'), "$.colour: unknown field"),
    "missing": (WHOLE.replace('"noise_us": 0.12', '"noise": 0.12'), "$.records[0].noise_us: missing"),
    "no records": (json.dumps({**document(), "records": []}), "$.records: expected an array of 1 or more, got []"),
}


def state() -> tuple[Any, ...]:
    return dispatch.tables(), chunk_sizes.table(), dispatch.remembered(), dict(launch.plans)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("what", HOSTILE)
def test_with_a_fault_in_one_file_nothing_changes(tmp_path: Path, what: str) -> None:
    """The error names the file and the field; the good file beside it does not count, and nothing is forgotten."""
    text, fault = HOSTILE[what]
    assert text != WHOLE
    put(tmp_path, "good.json", document())
    (tmp_path / "bad.json").write_text(text)
    dispatch.choose(KEY, torch.device("cpu"))
    launch.remember(("a key",), "a plan")
    before = state()
    copied = pickle.dumps(before)
    with pytest.raises(ValueError, match=r"bad\.json") as caught:
        load_overlay(tmp_path)
    assert all(line.startswith(f"{tmp_path / 'bad.json'}: $") for line in str(caught.value).splitlines())
    assert f"{tmp_path / 'bad.json'}: {fault}" in str(caught.value)
    after = state()
    assert all(now is then for now, then in zip(after[:2], before))
    assert pickle.dumps(after) == copied
    (tmp_path / "bad.json").unlink()
    assert load_overlay(tmp_path).rows == 1
    assert dispatch.remembered() == []
    assert launch.plans == {}


@pytest.mark.usefixtures("known")
def test_every_value_may_be_anything(tmp_path: Path) -> None:
    """Whatever stands in place of any value of a file, it is loaded or refused with the file's name, never a crash."""
    whole = document(record(), record(chunk_size=32, default=None))
    places = list(within(whole))
    refused = 0
    for place in places:
        for odd in (None, True, -1, 0, 5e-324, 1e308, 2**63, "", "\ud800", "x" * 600, [], [[]], {}, {"": 0}):
            content = copy.deepcopy(whole)
            at: Any = content
            for name in place[:-1]:
                at = at[name]
            at[place[-1]] = odd
            put(tmp_path, "odd.json", content)
            known = dispatch.tables()
            error = refusal(tmp_path)
            refused += error is not None
            assert error is None or (error.startswith(f"{tmp_path / 'odd.json'}: $") and dispatch.tables() is known)
    assert refused > 12 * len(places)


def refusal(path: Path) -> str | None:
    """What the error says, if there is one."""
    try:
        load_overlay(path)
    except ValueError as error:
        return str(error)
    return None


def within(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a parsed document."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        yield from within(inner, *path, name)


@pytest.mark.parametrize("path", [None, 5, b"configs", ["a.json"]])
def test_a_path_is_needed(path: Any) -> None:
    """Of bytes neither; what came is named."""
    with pytest.raises(TypeError, match=f"path: expected a str or a PathLike, got {type(path).__name__}"):
        load_overlay(path)


@pytest.mark.usefixtures("known")
def test_no_results_are_an_error(tmp_path: Path) -> None:
    """A folder without any, and a path where nothing is: nobody should believe to be tuned."""
    for path, got in ((tmp_path, "none"), (tmp_path / "nowhere", "no such file or folder"), ("\0", "no such file")):
        with pytest.raises(ValueError, match=f"expected raw results, got {got}"):
            load_overlay(path)
    assert dispatch.tables() is KNOWN


def test_chunk_sizes_are_looked_up_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By batches whose caller names none, also where the answer was remembered."""
    monkeypatch.setattr(dispatch, "target", lambda _: dispatch.Target(*H200, footprint.UNLIMITED))
    monkeypatch.setattr(dispatch.target, "cache_clear", lambda: None, raising=False)
    gpu = torch.device("cuda", 0)
    with tables(KNOWN, SIZES):
        assert chunk_sizes.choose(2000, 8, gpu) == 128
        times = zip((16, 32, 64, 128), (30.0, 10.0, 20.0, 40.0))
        put(tmp_path, "a.json", document(*(record_of("shrink", us, size, 2048, 8) for size, us in times)))
        assert load_overlay(tmp_path).chunk_sizes == 1
        assert chunk_sizes.choose(2000, 8, gpu) == 32
        assert chunk_sizes.choose(8, 8, gpu) == 128


def results(gpu: str, triton: str, row: list[Any], segments: Segments, **shape: Any) -> dict[str, Any]:
    """A file in which a row beats the default at the key of a launch on this batch."""
    bucket = rules.segment_bucket(segments.num_segments)
    key = {"chunk_size": segments.chunk_size, "segment_bucket": bucket, "num_segments": bucket}
    made = record(**key, finalists=[finalist(row, 20.0)])
    return document(made, gpu=gpu, triton=triton, **shape)


def test_the_next_launch_takes_the_new_row(tmp_path: Path) -> None:
    """On a fake GPU, where a call like one before finds its plan: after a load it is made anew, once."""
    x, lora_a = (torch.zeros(*shape, dtype=torch.float16) for shape in ((40, 96), (2, 16, 96)))
    segments = Segments.from_tokens([0, 1, 1, 0] * 10, [8, 5], [1.0, 0.5], chunk_size=16, device="cpu")
    with tables(KNOWN, SIZES), fake_gpu() as gpu, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "resolve", _resolve)

        def launched() -> tuple[str, dict[str, Any]]:
            lora_shrink(x, lora_a, segments, 2)
            last = next(one for one in reversed(gpu.launched) if one.binary[0] == "_shrink_kernel")
            return last.way, dict((*last.binary[3], *last.binary[4]))

        before = [launched() for _ in range(2)]
        assert [way for way, _ in before] == ["long", "short"]
        shape = {"input_dim": 96, "max_rank": 8, "num_slices": 2, "dtype": "float16"}
        put(tmp_path, "a.json", results(*H200, [32, 32, 64, 1, 1, 2, 4, 104, True], segments, **shape))
        load_overlay(tmp_path)
        after = [launched() for _ in range(2)]
        assert [way for way, _ in after] == ["long", "short"]
        assert [how["maxnreg"] for _, how in after] == [104, 104]
        assert [how["num_stages"] for _, how in after] == [4, 4]
        assert before[0][1] != after[0][1]


ROW = [32, 32, 32, 2, 3, 2, 2, None, True]


def test_a_gpu_that_no_table_knows_launches_tuned(tmp_path: Path) -> None:
    """From the built-in default to the row of the results in one process; the result is right before and after."""
    device = torch.device("cuda", torch.cuda.current_device()) if DEVICE == "cuda" else torch.device("cpu")
    with tables(fallback.Tables({}), {}):
        batch = make_batch([8, 0, 5], 8, 96, [16, 32], 40, dtype=torch.float16)
        args = batch.x, batch.lora_a, batch.segments, batch.num_slices
        expected = reference.lora_shrink(*args)
        how: dict[str, Any] = {"max_rank": 8, "input_dim": 96, "num_slices": 2, "dtype": torch.float16}
        how |= {"chunk_size": 16, "num_segments": batch.segments.num_segments, "device": device}
        there = dispatch.target(device)

        def shrunk() -> torch.Tensor:
            return lora_shrink(*args, out=poisoned(len(batch.x), batch.lora_a.shape[1], dtype=torch.float16))

        if device.type == "cuda":
            dispatch._warn_untuned.cache_clear()
            with pytest.warns(UserWarning, match="no configs tuned"):
                before = csgmv.explain("shrink", **how)
        else:
            before = csgmv.explain("shrink", **how)
        assert before.step == "default"
        assert_close(shrunk(), expected, torch.float16)
        shape = {"input_dim": 96, "max_rank": 8, "num_slices": 2, "dtype": "float16"}
        name = there.gpu or "a GPU to be"
        put(tmp_path, "a.json", results(name, there.triton, ROW, batch.segments, **shape))
        load_overlay(tmp_path)
        after = csgmv.explain("shrink", **how)
        assert (after.step, after.gpu, after.triton) == ("exact", name, there.triton)
        assert isinstance(after.config, ShrinkConfig)
        assert to_row(after.config) == tuple(ROW)
        assert_close(shrunk(), expected, torch.float16)
        assert [entry.gpu for entry in show.entries()] == [name]


def test_what_reads_files_is_imported_when_it_is_asked_for() -> None:
    """Not by the operations."""
    script = "import sys, csgmv; csgmv.add_lora; print(*sorted(m for m in sys.modules if 'csgmv.' in m))"
    env = {**os.environ, "PYTHONPATH": str(Path(csgmv.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert "csgmv.dispatch" in done.stdout.split()
    assert not {"csgmv.overlay", "csgmv.misses", "csgmv.baking"} & {*done.stdout.split()}
