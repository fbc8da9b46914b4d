"""`csgmv bench`: which kernels it measures, and that it times only right results."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from csgmv import bench, cli, figures, launch, models, readme_block, workload

CPU = torch.device("cpu")


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    bench.add_arguments(parser)
    return parser.parse_args(argv, argparse.Namespace(command_line="csgmv bench"))


def test_without_options_it_is_the_published_table():
    """Seven kernels (o and down share their expand) at four chunk sizes: 28 rows, one adapter of rank 64."""
    args = options()
    cases = bench.cases(bench.layers(args), args)
    assert len(cases) == 28
    assert [(case.layers, case.op, case.dimension) for case in cases[::4]] == [
        (("qkv",), "shrink", "1024 → 3·64"),
        (("o",), "shrink", "2048 → 64"),
        (("gate_up",), "shrink", "1024 → 2·64"),
        (("down",), "shrink", "3072 → 64"),
        (("qkv",), "expand", "64 → 2048+1024+1024"),
        (("o", "down"), "expand", "64 → 1024"),
        (("gate_up",), "expand", "64 → 3072+3072"),
    ]
    assert [case.chunk_size for case in cases[:4]] == [16, 32, 64, 128]
    assert {(case.tokens, case.adapters, case.ranks) for case in cases} == {(30720, 1, (64,))}


def test_every_combination_of_the_batch_is_measured():
    """Two ranks, one of them mixed, times two token counts, times two numbers of adapters."""
    args = options(
        *("--layer", "mine:96:40+7", "--ops", "add_lora", "--rank", "8", "4+16"),
        *("--tokens", "5", "9", "--adapters", "1", "3", "--chunk-sizes", "16", "--distribution", "zipf"),
    )
    cases = bench.cases(bench.layers(args), args)
    assert len(cases) == 8
    assert {case.ranks for case in cases} == {(8,), (4, 16)}
    assert {(case.tokens, case.adapters) for case in cases} == {(5, 1), (5, 3), (9, 1), (9, 3)}
    assert {case.dimension for case in cases} == {"96 → 2·8 → 40+7", "96 → 2·16 → 40+7"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--rank", "0"), "expected R or R+R+… with ranks of 1 to 256, got '0'"),
        (("--rank", "8+x"), "got '8+x'"),
        (("--tokens", "-3"), "expected a whole number from 1 on, got '-3'"),
        (("--layer", "qkv:1024"), "such as qkv:1024:2048+1024+1024; got 'qkv:1024'"),
        (("--dtype", "int8"), "invalid choice: 'int8'"),
    ],
)
def test_a_bad_option_says_what_was_expected(argv, said):
    """And what came."""
    with pytest.raises(argparse.ArgumentError, match="argument --") as caught:
        options(*argv)
    assert said in str(caught.value)


def test_into_needs_markdown(capsys):
    """Text columns have no place in a README."""
    assert cli.main(["bench", "--into", "README.md"]) == 2
    assert "csgmv: error: --into: expected together with --markdown" in capsys.readouterr().err


@pytest.mark.skipif(not launch.INTERPRETED, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    """Interpreted kernels have no speed."""
    assert cli.main(["bench"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "csgmv: error: bench needs a GPU, and torch finds none: " in captured.err


@pytest.fixture
def timeless(monkeypatch):
    """Every kernel takes 20 µs: times need a GPU, what is done with them does not. Yields the configs timed."""
    timed = []

    def times(_works, _op, configs):
        timed.extend(configs)
        return [20.0 for _ in configs]

    monkeypatch.setattr(bench.measure, "times", times)
    monkeypatch.setattr(bench.measure, "num_copies", lambda *_: 1)
    return timed


def tiny(op: str) -> figures.Case:
    return figures.Case(("mine",), op, 48, (40, 7), (16, 5), 13, 3, "zipf", 16, "float16")


@pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels on the CPU")
@pytest.mark.usefixtures("timeless")
@pytest.mark.parametrize("op", ["shrink", "expand", "add_lora"])
def test_a_figure_has_errors_times_and_floor(op):
    """The floor is bytes over bandwidth: at 1 MB a second a microsecond moves one byte."""
    figure = bench.figure(tiny(op), CPU, bandwidth=1e6)
    assert figure.right
    assert max(figure.default_error, figure.tuned_error) <= workload.TOLERANCE[torch.float16]
    assert (figure.default_us, figure.tuned_us) == (20.0, 20.0)
    # zipf over 13 tokens: 7 + 1 (the rest), 3, 2 tokens; ranks 16, 5, 16 in turn
    active = [(16, 8), (5, 3), (16, 2)]
    assert figure.floor_us == workload.moved_bytes(op, 48, (40, 7), active, 2)


@pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels on the CPU")
def test_a_batch_invariant_launch_is_checked_and_timed_too(timeless):
    """By the config that such a launch gets, which has tiles of 16 rows."""
    figure = bench.figure(tiny("shrink"), CPU, bandwidth=1e6, invariant=True)
    assert figure.right
    assert figure.invariant_us == 20.0
    assert figure.invariant_error <= workload.TOLERANCE[torch.float16]
    assert figure.invariant_config is not None
    assert figure.invariant_config["block_m"] == timeless[-1].block_m == 16
    assert bench.figure(tiny("shrink"), CPU, bandwidth=1e6).invariant_config is None


@pytest.mark.skipif(not launch.INTERPRETED, reason="runs kernels on the CPU")
@pytest.mark.usefixtures("timeless")
def test_a_report_has_a_figure_a_case(monkeypatch):
    """Two operations of two layers of which one shape is shared: three figures, and all that the note needs."""
    monkeypatch.setattr(bench.measure, "copy_bandwidth", lambda _: 2e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU of the test")
    shapes = ("--layer", "one:48:24", "--layer", "two:32:24", "--ops", "shrink", "expand")
    batch = ("--tokens", "9", "--adapters", "2", "--rank", "5+16", "--chunk-sizes", "16", "--dtype", "float16")
    report = bench.report(options(*shapes, *batch), CPU)
    assert [figure.case.layers for figure in report.figures] == [("one",), ("two",), ("one", "two")]
    assert all(figure.right for figure in report.figures)
    assert report.note().startswith(f"GPU of the test, torch {torch.__version__}, Triton ")
    assert "9 tokens, 2 adapters (even), rank 5+16, float16. Times: median of" in report.note()
    assert "at the 2.00 TB/s" in report.note()


@pytest.mark.parametrize("wrong_one", ["default", "tuned"])
def test_a_wrong_config_is_not_timed(wrong_one, timeless, monkeypatch):
    """Its error is kept; the other config is timed all the same."""
    ask = iter([0.9, 1e-4] if wrong_one == "default" else [1e-4, float("nan")])
    monkeypatch.setattr(workload.Workload, "error", lambda *_: next(ask))
    figure = bench.figure(tiny("expand"), CPU, bandwidth=1e6)
    assert not figure.right
    assert len(timeless) == 1
    assert (figure.default_us, figure.tuned_us) == ((None, 20.0) if wrong_one == "default" else (20.0, None))


def test_equal_configs_are_timed_once(monkeypatch):
    """Where the table has nothing better than the default, noise cannot show a speed-up."""
    made = []

    class Graph:
        def __init__(self, *_):
            made.append(self)

    monkeypatch.setattr(bench.measure, "ColdGraph", Graph)
    monkeypatch.setattr(bench.measure, "interleaved", lambda graphs, _: [[3.0, 1.0, 2.0] for _ in graphs])
    work = bench._workload(tiny("expand"), CPU)
    default, other = bench.config.ExpandConfig(), bench.config.ExpandConfig(num_warps=8)
    assert bench.measure.times([work], "expand", [default, default]) == [2.0, 2.0]
    assert len(made) == 1
    bench.measure.times([work], "expand", [default, other])
    assert len(made) == 3


def test_layers_of_a_model_folder(tmp_path):
    """A local config.json is enough; tensor-parallel splits apply."""
    pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes}))
    args = options("--model", str(tmp_path), "--tp", "2")
    assert bench.layers(args)[0] == models.LayerShape("qkv", 64, (32, 16, 16))


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path):
    """Right results, times no shorter than nine tenths of the floor, the figures in the file and in the README."""
    readme, numbers = tmp_path / "README.md", tmp_path / "figures.json"
    readme.write_text("\n".join(readme_block.markers("bench")))
    batch = ["--tokens", "4096", "--adapters", "4", "--rank", "16+64", "--chunk-sizes", "32", "--ops", "add_lora"]
    output = ["--markdown", "--into", str(readme), "--json", str(numbers)]
    assert cli.main(["bench", *batch, *output]) == 0
    measured = json.loads(numbers.read_text())["figures"]
    assert len(measured) == 4
    assert all(figure["tuned_us"] > 0.9 * figure["floor_us"] for figure in measured)
    assert "| gate_up | add_lora | 1024 → 2·64 → 3072+3072 | 32 |" in readme.read_text()
