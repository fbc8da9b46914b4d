"""Each binary is compiled once, whichever keys and configs launch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from csgmv import launch, rules
from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig, to_row
from csgmv.tuning import compile as compiling
from csgmv.tuning.compile import Binary, CompileFarm, Compiler, outcome
from csgmv.tuning.worker import Failure

pytestmark = pytest.mark.skipif(
    launch.INTERPRETED and not launch.DEPENDENT,
    reason="Triton 3.4's interpreted kernels do not say what is specialised",
)

SHRINK = rules.Key("shrink", 256, (), 16, 2, "float16", 16, 1)
EXPAND = rules.Key("expand", 0, (512, 256), 16, 2, "float16", 16, 1)
JOINT = rules.Key("add_lora", 256, (512, 256), 16, 2, "float16", 16, 1)
ONE, SPLIT = ShrinkConfig(16, 16, 64), ShrinkConfig(16, 16, 64, split_k=2)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """One in this process, which is to launch again afterwards. It describes on the CPU only if kernels interpret."""
    if not launch.INTERPRETED:
        pytest.skip("on a GPU, a compiler has a process of its own")
    monkeypatch.setattr(launch, "run", launch.run)
    return Compiler("cpu", None)


def binaries(compiler: Compiler, key: rules.Key, *configs: Any) -> list[tuple[object, ...]]:
    described = compiler.describe(key, [to_row(config) for config in configs])
    assert all(isinstance(one, tuple) for one in described), described
    return described  # type: ignore[return-value]


def test_sizes_that_a_kernel_takes_at_run_time_do_not_matter(compiler: Compiler) -> None:
    """input_dim, output widths, chunk size, and how far input_dim is split."""
    (one,) = binaries(compiler, SHRINK, ONE)
    assert binaries(compiler, SHRINK._replace(input_dim=1024), ONE) == [one]
    assert binaries(compiler, SHRINK._replace(chunk_size=48), ONE) == [one]
    (two,) = binaries(compiler, SHRINK, SPLIT)
    (four,) = binaries(compiler, SHRINK, dataclasses.replace(SPLIT, split_k=4))
    assert two[0] == four[0]
    assert len(two) == 2  # the second one sums the partials, whose number is unrolled
    (wide,) = binaries(compiler, EXPAND._replace(slice_widths=(1024, 512)), ExpandConfig(16, 64, 16))
    assert binaries(compiler, EXPAND, ExpandConfig(16, 64, 16)) == [wide]


@pytest.mark.parametrize(
    ("key", "config"),
    [
        (SHRINK, dataclasses.replace(ONE, num_warps=8)),
        (SHRINK, dataclasses.replace(ONE, maxnreg=128)),
        (SHRINK, dataclasses.replace(ONE, block_k=128)),
        (SHRINK, SPLIT),
        (SHRINK._replace(input_dim=264), ONE),  # not a multiple of block_k
        (SHRINK._replace(max_rank=32), ONE),
        (SHRINK._replace(dtype="float32"), ONE),
    ],
)
def test_what_a_binary_depends_on_makes_another_one(compiler: Compiler, key: rules.Key, config: ShrinkConfig) -> None:
    """Constants, launch options, whether sizes are multiples of blocks, dtypes."""
    (one,) = binaries(compiler, SHRINK, ONE)
    (other,) = binaries(compiler, key, config)
    assert set(one).isdisjoint(other)


def test_a_pair_shares_one_part_when_the_other_changes(compiler: Compiler) -> None:
    """Another expand leaves the first binary. How far input_dim is split leaves both, whether it is changes both."""
    expand = ExpandConfig(16, 64, 16)
    pairs = [
        AddLoraConfig(SPLIT, expand),
        AddLoraConfig(SPLIT, dataclasses.replace(expand, num_warps=2)),
        AddLoraConfig(dataclasses.replace(SPLIT, split_k=4), expand),
        AddLoraConfig(ONE, expand),
    ]
    first, second, third, whole = binaries(compiler, JOINT, *pairs)
    assert first[0] == second[0] == third[0] != whole[0]
    assert first[1] == third[1]
    assert len({first[1], second[1], whole[1]}) == 3


def test_a_config_that_its_wrapper_refuses_says_why(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs that config; the others are described."""
    monkeypatch.setattr(compiling, "from_row", lambda _, row: ExpandConfig() if row[0] == 32 else ONE)
    refused, fine = compiler.describe(SHRINK, [(32,), to_row(ONE)])
    assert refused == "TypeError: config: expected ShrinkConfig or None, got ExpandConfig"
    assert isinstance(fine, tuple)


class FakeFarm:
    """In place of processes: remembers what was asked for, answers nothing."""

    def __init__(self, _: int, factory: Any, *args: Any) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.made_by = factory, args

    def start(self, *_: Any, **_limit: float) -> None:
        """Nothing to start."""

    def submit(self, *args: Any, limit: float) -> Future[Binary]:
        """A future that stays open."""
        assert limit > 0
        self.asked.append(args)
        return Future()


@pytest.fixture
def farm(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> CompileFarm:
    class Scribe:
        def __init__(self, factory: Any, *_: Any) -> None:
            """No process."""
            self.made_by = factory

        def call(self, method: str, key: rules.Key, rows: Sequence[rules.Row], limit: float) -> Any:
            """Here, or not at all."""
            assert limit > 0
            if key.max_rank == 8:
                raise Failure("crashed with exit status -9")
            return getattr(compiler, method)(key, rows)

    monkeypatch.setattr(compiling, "Worker", Scribe)
    monkeypatch.setattr(compiling, "Farm", FakeFarm)
    return CompileFarm(torch.device("cpu"), 2)


def test_the_farm_compiles_each_binary_once(farm: CompileFarm) -> None:
    """Rows and keys share futures; what is missing is told before, and nothing is missing after."""
    rows = [to_row(SPLIT), to_row(dataclasses.replace(SPLIT, split_k=4))]
    assert farm.missing(SHRINK, rows) == {rows[0]: 2, rows[1]: 2}
    first = farm.submit(SHRINK._replace(segment_bucket=8), rows)
    assert farm.binaries == 3
    assert first[rows[0]][0] is first[rows[1]][0]
    other = SHRINK._replace(input_dim=512, chunk_size=32, segment_bucket=64)
    assert farm.missing(other, rows) == {rows[0]: 0, rows[1]: 0}
    assert farm.submit(other, rows) == first
    assert len(farm._farm.asked) == 3  # type: ignore[attr-defined]


def test_when_describing_fails_those_rows_fail(farm: CompileFarm) -> None:
    """Not the run."""
    rows = [to_row(ONE)]
    key = SHRINK._replace(max_rank=8)
    assert farm.missing(key, rows) == {rows[0]: 0}
    failed = outcome(farm.submit(key, rows)[rows[0]])
    assert str(failed) == "crashed with exit status -9"


def test_the_outcome_of_several_binaries() -> None:
    """The most that any takes, spills summed; one failure is the config's."""
    futures: list[Future[Binary]] = [Future(), Future()]
    futures[0].set_result(Binary(4096, 64, 8))
    futures[1].set_result(Binary(1024, 128, 4))
    assert outcome(futures) == Binary(4096, 128, 12)
    broken: Future[Binary] = Future()
    broken.set_exception(Failure("OutOfResources"))
    assert str(outcome([futures[0], broken])) == "OutOfResources"


def test_what_compiles_gives_way_to_what_measures(farm: CompileFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of the farm, once; that which describes does not, since a search waits for it."""
    nicer: list[int] = []
    monkeypatch.setattr(compiling.os, "nice", nicer.append)
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(compiling, "Compiler", lambda *args: made.append(args))
    factory, args = farm._farm.made_by  # type: ignore[attr-defined]
    factory(*args)
    assert made == [args]
    assert len(nicer) == 1
    assert nicer[0] > 0
    assert farm._scribe.made_by is not factory  # type: ignore[attr-defined]
