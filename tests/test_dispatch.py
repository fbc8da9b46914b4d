"""From a launch to its config: keys, the table, what the fallback finds as a config, what is remembered and said."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import csgmv
from batches import make_batch
from csgmv import ShrinkConfig, dispatch, fallback, footprint, host, launch, rules
from csgmv.config import to_row
from laid import tables

LIMITS = footprint.Limits(232_448, programmatic_launch=True)
HERE = dispatch.Target("NVIDIA H200", "3.6.0", LIMITS)
KEY = rules.Key("shrink", 1024, (), 64, 3, "float16", 64, 32)


def rows(*keys: rules.Key) -> fallback.Rows:
    """A row for each key that tells which one it is by its num_stages."""
    found = {key: to_row(ShrinkConfig(block_n=64, num_stages=1 + i)) for i, key in enumerate(keys)}
    return fallback.by_layer(found)


def test_what_serves_becomes_a_config() -> None:
    """A row of the operation's class with where it was tuned, or the built-in default with a word on why."""
    known = fallback.Tables({("NVIDIA H200", "3.5.1"): rows(KEY._replace(segment_bucket=16))})
    choice = dispatch.resolve(KEY, HERE, known)
    assert isinstance(choice.config, ShrinkConfig)
    assert choice.step == "Triton 3.5.1, nearest segment bucket (16)"
    assert (choice.source, choice.gpu, choice.triton) == (KEY._replace(segment_bucket=16), "NVIDIA H200", "3.5.1")
    choice = dispatch.resolve(KEY._replace(dtype="float32"), HERE, known)
    assert choice == (ShrinkConfig(num_stages=2), "default", None, None, None)  # as many stages as float32 has room for


def test_a_measured_default_is_kept() -> None:
    """None says: measured, the default was best. It is not a gap to be filled from a neighbour."""
    table = fallback.by_layer({**fallback.flat(rows(KEY._replace(segment_bucket=64))), KEY: None})
    choice = dispatch.resolve(KEY, HERE, fallback.Tables({("NVIDIA H200", "3.6.0"): table}))
    assert (choice.config, choice.source) == (ShrinkConfig(), KEY)
    assert choice.step == "exact: the default was measured best"


@pytest.fixture
def other_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU of the H200's architecture that the table does not know; nothing is remembered of it."""
    where = HERE._replace(gpu="NVIDIA H100", architecture="9.0", sm_count=114)
    known = fallback.Tables({("NVIDIA H200", "3.6.0"): rows(KEY)}, {"NVIDIA H200": ("9.0", 132)})
    monkeypatch.setattr(dispatch, "target", lambda _: where)
    monkeypatch.setattr(dispatch, "tables", lambda: known)
    monkeypatch.setattr(dispatch, "_remembered", {})
    dispatch._warn_untuned.cache_clear()
    return torch.device("cuda", 0)


def test_a_gpu_without_rows_is_warned_about_once(other_gpu: torch.device, recwarn: pytest.WarningsRecorder) -> None:
    """With its name and the command that tunes it, at the first launch and at no other key's; launches go on."""
    assert dispatch.choose(KEY, other_gpu).step == "GPU NVIDIA H200, exact"
    dispatch.choose(KEY._replace(segment_bucket=2), other_gpu)
    (warning,) = recwarn.list
    assert "no configs tuned for NVIDIA H100" in str(warning.message)
    assert "`csgmv tune --model NAME --rank N`" in str(warning.message)


def test_a_gpu_with_rows_is_not_warned_about(
    other_gpu: torch.device, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Nor is a launch that is interpreted."""
    dispatch.choose(KEY, torch.device("cpu"))
    monkeypatch.setattr(dispatch, "target", lambda _: HERE)
    dispatch.choose(KEY, other_gpu)
    assert recwarn.list == []


@pytest.mark.filterwarnings("ignore:csgmv has no configs")
def test_a_key_is_resolved_once(other_gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the walk was, the second launch does not take it."""
    first = dispatch.choose(KEY, other_gpu)
    monkeypatch.setattr(fallback, "serve", None)
    assert dispatch.choose(KEY, other_gpu) is first


@pytest.mark.gpu
def test_a_gpu_tells_its_architecture() -> None:
    """As records tell it, so that rows of its kind are found; and the limits known of the architecture are its own."""
    where = dispatch.target(torch.device("cuda", torch.cuda.current_device()))
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    assert where.architecture == f"{properties.major}.{properties.minor}"
    assert where.sm_count == properties.multi_processor_count
    if where.architecture in footprint.LIMITS:
        assert where.limits == footprint.LIMITS[where.architecture]


def test_keys_come_from_the_tensors_of_a_launch() -> None:
    """Segments count by power-of-two buckets; a slice's width counts, not only their sum."""
    segments = make_batch([8, 8], 8, 32, [8], 100).segments
    bucket = rules.segment_bucket(segments.num_segments)
    assert dispatch.shrink_key(32, 8, 3, torch.float16, segments) == ("shrink", 32, (), 8, 3, "float16", 16, bucket)
    assert dispatch.expand_key((5, 3), 8, torch.bfloat16, segments) == (
        "expand",
        0,
        (5, 3),
        8,
        2,
        "bfloat16",
        16,
        bucket,
    )
    key = dispatch.add_lora_key(32, (5, 3), 8, torch.float32, segments)
    assert key == ("add_lora", 32, (5, 3), 8, 2, "float32", 16, bucket)
    assert rules.key_fault(key) is None


def test_an_expand_of_one_slice_among_others_is_a_layer_of_its_own() -> None:
    """Slices without columns have no programs: k by itself has the row of a layer as wide."""
    segments = make_batch([8, 8], 8, 32, [8], 100).segments
    alone = dispatch.expand_key((1024,), 64, torch.bfloat16, segments)
    assert dispatch.expand_key((0, 1024, 0), 64, torch.bfloat16, segments) == alone
    assert dispatch.expand_key((0, 0), 64, torch.bfloat16, segments).slice_widths == (0,)
    told = dispatch.explain("expand", max_rank=64, slice_widths=(0, 1024, 0), chunk_size=16, num_segments=8)
    assert told.step == "exact"
    assert told.source == ("expand", 0, (1024,), 64, 1, "bfloat16", 16, 8)
    joint = dispatch.add_lora_key(64, (0, 1024), 64, torch.bfloat16, segments)
    assert joint.slice_widths == (0, 1024)  # its shrink has the columns of both


def test_wrappers_take_what_explain_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config that a launch gets is the one that csgmv.explain names."""
    batch = make_batch([8, 8], 8, 32, [16], 20)
    asked = []
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *key: asked.append(key[:2]) or choose(*key))
    monkeypatch.setattr(launch, "plans", {})  # a launch whose plan is known asks no more
    h = csgmv.lora_shrink(batch.x, batch.lora_a.nan_to_num(), batch.segments)
    csgmv.lora_expand(h, batch.lora_b, batch.segments, (0, 16), batch.base_output)
    csgmv.add_lora(batch.base_output, batch.x, batch.lora_a, batch.lora_b, batch.segments, (0, 16))
    monkeypatch.undo()
    assert [key.op for key, _ in asked] == ["shrink", "expand", "add_lora"]
    for key, device in asked:
        sizes = dict(input_dim=key.input_dim, slice_widths=key.slice_widths, max_rank=8, num_slices=1)
        counts = dict(chunk_size=16, num_segments=batch.segments.num_segments)
        said = csgmv.explain(key.op, **sizes, **counts, dtype=torch.float16, device=device)
        assert said is choose(key, device)


def test_a_missing_table_means_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel built without its hook still runs."""
    monkeypatch.setitem(sys.modules, "csgmv._tuned_table", None)
    with tables():
        assert dispatch.table() == {}
        assert dispatch.resolve(KEY, HERE, dispatch.tables()).config == ShrinkConfig()


def test_a_config_that_the_device_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it lacks, before a compiler gets to say it in a thousand lines."""
    batch = make_batch([8], 8, 32, [16], 5)
    monkeypatch.setattr(dispatch, "device_limits", lambda _: footprint.Limits(101_376))
    dispatch._fault.cache_clear()
    call = batch.base_output, batch.x, batch.lora_a, batch.lora_b, batch.segments, batch.slice_offsets
    with pytest.raises(ValueError, match="config: overlap needs programmatic dependent launch"):
        csgmv.add_lora(*call, config=csgmv.AddLoraConfig(overlap=True))
    with pytest.raises(ValueError, match=r"config: shrink needs \d+ bytes of shared memory"):
        csgmv.lora_shrink(batch.x, batch.lora_a, batch.segments, config=ShrinkConfig(block_n=256, num_stages=5))
    dispatch._fault.cache_clear()


WARM_LAUNCHES = """
import sys
sys.path[:0] = {paths!r}
import batches, csgmv
batch = batches.make_batch([16, 8], 16, 64, [32, 16], 40)
def launch():
    h = csgmv.lora_shrink(batch.x, batch.lora_a, batch.segments, 2)
    csgmv.lora_expand(h, batch.lora_b, batch.segments, batch.slice_offsets, batch.base_output)
    csgmv.add_lora(batch.base_output, batch.x, batch.lora_a, batch.lora_b, batch.segments, batch.slice_offsets)
launch()
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments) if event in ("open", "import") else None)
launch()
print("opened", opened)
"""


def test_warm_launches_open_nothing() -> None:
    """Once a kernel is compiled (or has been interpreted), a launch opens no file and imports nothing."""
    script = WARM_LAUNCHES.format(paths=sys.path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "opened []"


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("input_dim", [1024, 1008], ids=["hit", "remembered miss"])
def test_a_key_is_looked_up_in_the_time_of_three_gets(input_dim: int, batch_invariant: bool) -> None:
    """Of one plain dict with such a key, once the key has been resolved, whatever it was resolved to."""
    key, device = rules.Key("add_lora", input_dim, (2048, 1024, 1024), 64, 3, "bfloat16", 16, 8), torch.device("cpu")
    step = dispatch.choose(key, device, batch_invariant).step
    assert (step == "exact") == (input_dim == 1024)
    row = tuple(key)
    rows = {tuple(key): None}
    calls = {
        "look-up": lambda: dispatch.choose(key, device, batch_invariant),
        "three gets": lambda: (rows.get(row), rows.get(row), rows.get(row)),
        "nothing": lambda: None,
    }
    look_up, gets, nothing = host.costs(calls, wait=lambda: None)
    assert look_up.least - nothing.least <= gets.least - nothing.least


def test_other_tables_serve_for_a_while() -> None:
    """What was remembered on either side is there again when its side comes back, and so are its launches' plans."""
    row = (16, 32, 64, 1, 2, 4, 3, None, False)
    key = rules.Key("shrink", 1024, (), 64, 3, "bfloat16", 16, 8)
    device = torch.device("cpu")
    with tables(fallback.Tables({("GPU", "3.6.0"): fallback.by_layer({key: row})})):
        before = dispatch.choose(key, device)
        launch.remember(("mine",), "plan")
        untuned = dispatch.Instead(fallback.Tables({("GPU", "3.6.0"): {}}))
        for again in (False, True):
            with untuned:
                assert dispatch.choose(key, device).step == "default"
                if not again:
                    assert launch.plans == {}
                    launch.remember(("theirs",), "plan")
                assert launch.plans == {("theirs",): "plan"}
            assert before.step == "exact"
            assert dispatch.choose(key, device) is before
            assert launch.plans == {("mine",): "plan"}
        with pytest.raises(RuntimeError, match="within"), untuned:
            raise RuntimeError("within")
        assert dispatch.choose(key, device) is before
