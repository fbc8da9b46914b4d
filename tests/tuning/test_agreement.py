"""Two runs of the tuner agree where their winners, timed side by side, take as long."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from csgmv import records, rules
from csgmv.cli import main
from csgmv.tuning.agreement import Agreement, compare, results_of, summary, winners
from csgmv.tuning.plan import Batch
from csgmv.tuning.worker import Failure
from fabricated import BETTER, DEFAULT, document, finalist, put, record
from rigs import StillRig

OTHER = [*BETTER[:5], 8, *BETTER[6:]]
HERE = ("NVIDIA H200", "3.6.0")


class Bench:
    """Times by row and batch; notes what it was asked. Rows without a time are wrong."""

    def __init__(self, times: dict[tuple[tuple[object, ...], int], float]) -> None:
        self.times, self.asked = times, list[tuple[rules.Key, Batch]]()

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """The error."""
        if not any(row == timed for timed, _ in self.times):
            assert key.op == "shrink"
            raise Failure("WrongResult: wrong result")
        return 0.0

    def race(
        self, key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int
    ) -> tuple[list[list[float]], int]:
        """The median of each row's samples is its time."""
        self.asked.append((key, batch))
        noisy = [self.times[row, batch.tokens] for row in rows]
        return [[time, 9 * time, time / 9] * (rounds // 3) for time in noisy], 8


def results(*some: dict, path: Path) -> dict[rules.Key, records.Result]:
    put(path, "configs/a.json", document(*some))
    return results_of(path / "configs", *HERE)


def test_winners_are_timed_on_the_batches_that_decided(tmp_path: Path) -> None:
    """Their ratio is the geometric mean of those of the batches."""
    batches = [[101, 5, 7, 30.0, 20.0], [32, 32, 32, 30.0, 20.0], [64, 8, 32, 30.0, 20.0]]
    first = results(record(batches=batches, tuned_on=2), path=tmp_path / "1")
    second = results(record(finalists=[finalist(OTHER, 21.0)]), path=tmp_path / "2")
    mine, theirs = tuple(BETTER), tuple(OTHER)
    bench = Bench({(mine, 101): 10.0, (theirs, 101): 11.0, (mine, 32): 5.0, (theirs, 32): 6.0})
    (found,) = compare(first, second, StillRig(bench), 1)  # type: ignore[arg-type]
    assert [batch.tokens for _, batch in bench.asked] == [101, 32]
    assert (found.first, found.second) == (mine, theirs)
    assert found.ratio == pytest.approx(statistics.geometric_mean([1.1, 1.2]))


def test_the_same_row_is_not_timed_and_other_keys_are_left_out(tmp_path: Path) -> None:
    """A key that one run alone has says nothing of agreement."""
    first = results(record(), record(chunk_size=64), path=tmp_path / "1")
    second = results(record(), record(chunk_size=128), path=tmp_path / "2")
    bench = Bench({})
    (found,) = compare(first, second, StillRig(bench), 1)  # type: ignore[arg-type]
    assert found.ratio == 1.0
    assert found.key.chunk_size == record()["chunk_size"]
    assert bench.asked == []


def test_a_winner_that_does_not_work_here_agrees_with_none(tmp_path: Path) -> None:
    """The other keys are told of all the same."""
    first = results(record(), record(chunk_size=64), path=tmp_path / "1")
    second = results(record(finalists=[finalist(OTHER, 21.0)]), record(chunk_size=64), path=tmp_path / "2")
    found = compare(first, second, StillRig(Bench({(tuple(BETTER), 101): 10.0})), 1)  # type: ignore[arg-type]
    assert [one.ratio for one in found] == [math.inf, 1.0]
    text = summary(found, 0.02)
    assert "1 (50.0%) agree within 2.0%; on average the second run's winners take 1.0000 times as long" in text
    assert "of 1 a winner does not work here" in text


def test_without_a_difference_no_gpu_is_asked(tmp_path: Path) -> None:
    """Nor are processes started."""
    first = results(record(), path=tmp_path / "1")

    class Never:
        def opened(self, *_: object) -> None:
            pytest.fail("opened")

    (found,) = compare(first, first, Never(), 1)  # type: ignore[arg-type]
    assert found.ratio == 1.0


def test_where_nothing_beats_the_default_it_is_the_winner(tmp_path: Path) -> None:
    """As launches get it."""
    found = results(record(finalists=[finalist(BETTER, 29.99)]), path=tmp_path)
    assert list(winners(found).values()) == [tuple(DEFAULT)]


def test_the_summary_counts_and_names_the_furthest(tmp_path: Path) -> None:
    """Three of four keys within 2 %, one of them by the same row."""
    (key,) = results(record(), path=tmp_path)
    a, b = tuple(BETTER), tuple(OTHER)
    found = [
        Agreement(key, a, a, 1.0),
        Agreement(key, a, b, 1.019),
        Agreement(key, a, b, 0.981),
        Agreement(key._replace(chunk_size=128), a, b, 0.5),
    ]
    text = summary(found, 0.02)
    assert text.startswith("4 keys: 1 have the same row, 3 (75.0%) agree within 2.0%")
    assert text.splitlines()[3].startswith("0.500") or "0.500" in text.splitlines()[3]
    assert "chunk size 128" in text


def test_results_of_another_gpu_are_refused(tmp_path: Path) -> None:
    """Naming what was expected."""
    put(tmp_path, "configs/a.json", document(record()))
    with pytest.raises(ValueError, match=r"expected results of NVIDIA L4 under Triton 3\.6\.0, got 1 of others"):
        results_of(tmp_path / "configs", "NVIDIA L4", "3.6.0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2."""
    assert main(["agree", str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("csgmv: error: agree needs a GPU, and torch finds none: ")


@pytest.mark.gpu
def test_a_run_agrees_with_itself_and_not_with_a_slow_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On this GPU: one segment by the default's four warps, and by a single slow program."""
    import triton

    here = {"gpu": torch.cuda.get_device_name(), "triton": triton.__version__}
    slow = [16, 16, 64, 8, 1, 1, 1, None, False]
    put(tmp_path, "fast/a.json", document(record(), **here))
    put(tmp_path, "slow/a.json", document(record(finalists=[finalist(slow, 20.0)], candidates=[]), **here))
    assert main(["agree", str(tmp_path / "fast"), str(tmp_path / "fast")]) == 0
    assert main(["agree", str(tmp_path / "fast"), str(tmp_path / "slow")]) == 1
    assert "1 keys: 0 have the same row, 0 (0.0%) agree" in capsys.readouterr().out
