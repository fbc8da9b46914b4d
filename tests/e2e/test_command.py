"""`csgmv bench --e2e`: every way to serve a batch is right before it is timed, and a wrong one has no time."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from csgmv import chunk_sizes, cli, dispatch, launch, workload
from csgmv.e2e import command, options, random_adapters, random_model, reference, results, saved, steps, ways
from csgmv.e2e.stopwatch import Call
from csgmv.integrations.row_batches import StaticBatch
from whole_models import batch, report

CPU = torch.device("cpu")
SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 96,
}
interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels on the CPU")


class Untimed:
    """Stands in for the stopwatch: the n-th call of a row takes n ms. Nothing is captured where there is no GPU."""

    def captured(self, call: Call) -> Call:
        """The call itself."""
        return call

    def medians(self, calls: Sequence[Call]) -> list[float]:
        """Each its number."""
        return [float(number) for number, _ in enumerate(calls, start=1)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One layer of a model whose folder has three, in float32."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return random_model.make(str(folder), 1, torch.float32, CPU)


@pytest.fixture(scope="module")
def adapters(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> list[random_adapters.Adapter]:
    return random_adapters.make(tiny, 3, (5, 16), torch.float32, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PROMPT", 2)


def test_a_known_model_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dimensions are the package's; layers and vocabulary aside, which are cut here."""
    monkeypatch.setitem(random_model.known_models.models()["Qwen/Qwen3-0.6B"]["config"], "vocab_size", 7)
    model = random_model.make("qwen3-0.6b", 1, torch.bfloat16, torch.device("meta"))
    assert (len(model.layers), model.layers[0].mlp.up_proj.weight.shape) == (1, (3072, 1024))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_twin_shares_its_weights_and_nothing_else(tiny: Any) -> None:
    """So that one can be wrapped while the other stays bare."""
    twin = random_model.twin(tiny)
    assert all(a is b for a, b in zip(twin.parameters(), tiny.parameters()))
    assert not {*map(id, twin.modules())} & {*map(id, tiny.modules())}


def test_adapters_differ_in_rank_and_scaling(adapters: list[random_adapters.Adapter]) -> None:
    """Ranks in turn, all seven projections, folders as PEFT saves them."""
    assert [(each.rank, each.scaling) for each in adapters] == [(5, 1.0), (16, 2.0), (5, 1.0)]
    assert {path.rpartition(".")[2] for path in adapters[0].weights} == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert json.loads((adapters[1].folder / "adapter_config.json").read_text())["lora_alpha"] == 32


@interpreted
def test_every_way_agrees_with_each_row_alone(
    tiny: Any, adapters: list[random_adapters.Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, far within the tolerance; csgmv's with the table's configs, and then with the defaults instead."""
    empty: list[bool] = []  # whether the tables are, in which each new key is looked up
    resolve = dispatch.resolve
    monkeypatch.setattr(dispatch, "_remembered", {})
    monkeypatch.setattr(launch, "plans", {})
    monkeypatch.setattr(
        dispatch, "resolve", lambda *args: (empty.append(not any(args[2].rows.values())), resolve(*args))[1]
    )
    found = ways.ways(tiny, adapters)
    these = [way for way in found if way.chunk_size is None]
    measured = command.measure(tiny, adapters, these, (4, 2), 16, 1e9, Untimed())
    names = [timed.way for timed in measured.timed]
    assert names == ["bare", "csgmv", "defaults", "no adapters", "torch.bmm", "PEFT"]
    assert [timed.ms for timed in measured.timed] == [1, 2, 3, 4, 5, 6]
    assert all(timed.error is not None and timed.error < 1e-5 for timed in measured.timed)
    assert measured.tolerance == reference.LEAST
    assert empty == [False] * (len(empty) // 2) + [True] * (len(empty) // 2) != []
    assert {way.chunk_size for way in found if isinstance(way, ways.Served)} == {None, 16}


@interpreted
@pytest.mark.usefixtures("short_prompts")
def test_a_step_of_decoding_is_what_comes_behind_the_prompt(tiny: Any, adapters: list[random_adapters.Adapter]) -> None:
    """By a key-value cache and a batch in fixed buffers, against the whole sequence at once."""
    found = [way for way in ways.ways(tiny, adapters) if way.name in ("bare", "csgmv", "torch.bmm")]
    found = [way for way in found if way.chunk_size is None]
    measured = command.measure(tiny, adapters, found, (3, 1), 16, 1e9, Untimed())
    assert [timed.way for timed in measured.timed] == ["bare", "csgmv", "torch.bmm"]
    assert all(timed.error is not None and timed.error < 1e-5 for timed in measured.timed)
    assert all(timed.ms is not None for timed in measured.timed)


class Swapped(ways.Hooked):
    """Two rows have each other's adapter."""

    @contextlib.contextmanager
    def use(self, batch: Any) -> Iterator[None]:
        """Of rows with the others' adapters."""
        first, second, *others = batch
        with super().use([second, first, *others]):
            yield


def test_csgmv_is_told_the_chunk_size() -> None:
    """A batch in fixed buffers has it already."""
    told: list[Any] = []
    buffers = object.__new__(StaticBatch)

    class Many:
        def use(self, batch: Any, *, chunk_size: int | None) -> contextlib.AbstractContextManager[None]:
            """Notes what it is told."""
            told.append((batch, chunk_size))
            return contextlib.nullcontext()

        def static(self, rows: int, *, chunk_size: int | None) -> StaticBatch:
            """Notes what it is told."""
            told.append((rows, chunk_size))
            return buffers

    buffers.update = told.append
    served = ways.Served("csgmv", None, Many(), chunk_size=16)
    names = ["a", None, "b"]
    for given in (names, served.fixed(names)):
        with served.use(given):
            pass
    assert told == [(3, 16), names, (names, 16), (buffers, None)]


def test_a_wrong_result_has_no_time(tiny: Any, adapters: list[random_adapters.Adapter]) -> None:
    """The others are timed all the same; that two of four rows are right is no help."""
    found = [ways.Bare("bare", tiny), Swapped(random_model.twin(tiny), adapters)]
    found.append(ways.Hooked(random_model.twin(tiny), adapters))
    measured = command.measure(tiny, adapters, found, (4, 2), 16, 1e9, Untimed())
    assert [timed.ms for timed in measured.timed] == [1.0, None, 2.0]
    assert not measured.right
    assert (measured.timed[1].error or 0) > 0.05


def test_what_is_no_number_is_wrong() -> None:
    """Nor is an error that is none within any tolerance."""
    wanted = torch.ones(3, 2, 4)
    assert math.isnan(reference.error(wanted.clone().fill_(float("nan")), wanted))
    assert reference.tolerance(float("nan")) == reference.LEAST
    one_row = wanted.clone()
    one_row[1] *= 1.5
    assert reference.error(one_row.half(), wanted) == pytest.approx(0.5)


def test_adapters_that_change_nothing_prove_nothing(tiny: Any, adapters: list[random_adapters.Adapter]) -> None:
    """A bare model would pass for any way to serve them."""
    weak = [each._replace(weights={path: (a, b * 1e-5) for path, (a, b) in each.weights.items()}) for each in adapters]
    with pytest.raises(ValueError, match=r"effect is 4 times the tolerance of 1\.0e-04, got .*: no wrong result"):
        command.measure(tiny, weak, [ways.Bare("bare", tiny)], (3, 2), 16, 1e9, Untimed())


def test_the_floor_counts_layers_with_one_input_as_one_call(tiny: Any, adapters: list[random_adapters.Adapter]) -> None:
    """Four calls, by the rows of each adapter; rows without one move nothing."""
    names = [adapters[0].name, adapters[1].name, None, adapters[0].name]
    active = [(5, 14), (16, 7)]
    calls = [(32, (32, 16, 16)), (32, (32,)), (32, (48, 48)), (48, (32,))]
    expected = sum(workload.moved_bytes("add_lora", dim, widths, active, 4) for dim, widths in calls)
    assert command.floor_bytes(tiny, adapters, names, 7, torch.float32) == expected


@pytest.mark.parametrize(("chosen", "sizes"), [(16, [None]), (64, [None, 16])])
def test_each_chunk_size_is_measured_once(
    chosen: int, sizes: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At decoding without what cannot be captured."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    monkeypatch.setattr(chunk_sizes, "choose", lambda *_: chosen)
    seen: list[list[ways.Way]] = []
    monkeypatch.setattr(command, "measure", lambda *args: (seen.append(args[2]), batch())[1])
    asked = options.Subject(str(tmp_path), None, [(4, 1), (2, 3)])
    made = command.subject(asked, 2, (4,), torch.float32, CPU, 1e9, Untimed())
    decode, prefill = ([(way.name, way.chunk_size) for way in these] for these in seen)
    assert [size for name, size in prefill if name == results.OURS] == sizes
    assert [size for name, size in prefill if name == results.DEFAULTS] == sizes
    assert {*prefill} - {*decode} == {(results.PEFT, None)}
    assert (made.layers, made.dtype, made.ranks) == (3, "float32", (4,))


@interpreted
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Interpreted kernels have no speed; what runs without a GPU is named."""
    assert cli.main(["bench", "--e2e"]) == cli.USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bench --e2e needs a GPU, and torch finds none: " in captured.err


@pytest.mark.parametrize("wrong", [False, True])
def test_the_command_tells_what_was_measured(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the terminal, in JSON, between the README's markers; exit status 1 if a result was wrong."""
    made = report(batch(PEFT=None if wrong else 300.0))
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("csgmv.e2e.command.copy_bandwidth", lambda _: 4e12)
    monkeypatch.setattr(command, "report", lambda *_: made)
    readme, numbers = tmp_path / "README.md", tmp_path / "e2e.json"
    readme.write_text("<!-- e2e:begin -->\n<!-- e2e:end -->\n")
    assert cli.main(["bench", "--e2e", "--json", str(numbers)]) == int(wrong)
    assert capsys.readouterr().out == made.text(None) + "\n"
    assert saved.read(numbers) == made
    assert cli.main(["bench", "--e2e", "--markdown", "--into", str(readme)]) == int(wrong)
    assert readme.read_text() == f"<!-- e2e:begin -->\n\n{made.markdown()}\n\n<!-- e2e:end -->\n"


def test_a_report_says_what_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options or their defaults; GPU and versions."""
    asked: list[Any] = []
    monkeypatch.setattr(command, "subject", lambda *args: (asked.append(args), report().subjects[0])[1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU of the test")
    parser = cli.parser()
    for argv in ([], ["--model", "qwen3-8b", "--adapters", "3", "--rank", "8+16", "--dtype", "float16"]):
        args = parser.parse_args(["bench", "--e2e", *argv])
        args.command_line = "csgmv bench --e2e"
        made = command.report(args, CPU, 4e12, Untimed())
    assert [each[1:4] for each in asked] == [(8, (64,), torch.bfloat16)] * 2 + [(3, (8, 16), torch.float16)]
    assert made.note().startswith(f"GPU of the test, torch {torch.__version__}, Triton ")
    assert made.method == command.METHOD


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    """Every way is right in bf16 at a real model's sizes, prompts and decoding in CUDA graphs, and has a time."""
    numbers = tmp_path / "e2e.json"
    model = ["--model", "Qwen/Qwen3-0.6B", "--layers", "3", "--batches", "8x128", "16x1", "--adapters", "5"]
    assert cli.main(["bench", "--e2e", *model, "--rank", "16+64", "--json", str(numbers)]) == 0
    (subject,) = saved.read(numbers).subjects
    for each in subject.batches:
        bare, ours = each.ms(results.BARE), each.ms(results.OURS)
        assert bare is not None
        assert ours is not None
        assert bare < ours < 20 * bare
        assert each.find(results.BMM)
