"""`csgmv bench --e2e`: what is asked for, with options and without, and which have no place there."""

from __future__ import annotations

import argparse

import pytest

from csgmv import bench, bench_options, cli
from csgmv.e2e import options


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    bench.add_arguments(parser)
    args = parser.parse_args(["--e2e", *argv])
    bench_options.check(args)
    return args


def test_without_options_it_is_the_published_table() -> None:
    """Prompts by the whole small model, decoding by some layers of a larger one's shapes."""
    prefill, decode = options.subjects(parsed())
    assert prefill == ("Qwen/Qwen3-Embedding-0.6B", None, ((8, 1024), (32, 512), (64, 128)))
    assert decode == ("Qwen/Qwen3-8B", 4, ((32, 1),))


def test_a_model_is_measured_alone() -> None:
    """With the batches given, or those of prompts."""
    asked = parsed("--model", "llama-3.1-8b", "--layers", "2", "--batches", "3x7", "16×1")
    assert options.subjects(asked) == [("llama-3.1-8b", 2, [(3, 7), (16, 1)])]
    assert options.subjects(parsed("--model", "qwen3-8b"))[0].batches == options.PREFILL


@pytest.mark.parametrize("given", ["8", "0x4", "4x0", "x", "8x-1", "8x1x1"])
def test_a_batch_is_rows_and_tokens(given: str) -> None:
    """Both positive."""
    with pytest.raises(argparse.ArgumentError, match=f"expected ROWSxTOKENS, such as 8x1024, got '{given}'"):
        parsed("--model", "qwen3-8b", "--batches", given)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--e2e", "--tokens", "3"], "--tokens: expected without --e2e"),
        (["--e2e", "--batch-invariant"], "--batch-invariant: expected without --e2e"),
        (["--e2e", "--host"], "--e2e: expected without --host"),
        (["--e2e", "--peers", "x.json"], "--e2e: expected without --peers"),
        (["--e2e", "--layers", "3"], "--layers: expected together with --e2e and --model"),
        (["--batches", "3x4", "--model", "x"], "--batches: expected together with --e2e and --model"),
        (["--e2e", "--adapters", "2", "4"], "--adapters: expected one value with --e2e, got 2"),
        (["--e2e", "--rank", "8", "16", "4"], "--rank: expected one value with --e2e, got 3"),
    ],
)
def test_options_that_have_no_place_there_are_refused(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name."""
    assert cli.main(["bench", *argv]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"csgmv: error: {said}\n"
