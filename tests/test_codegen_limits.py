"""What borrowing may lose stands in pyproject.toml; above that there is no table."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen import CONFIGS, generate, limits
from codegen.__main__ import main
from codegen.limits import Excessive, MostLost
from codegen.regret import Regret
from fabricated import document, put, record

PLAIN = "[tool.csgmv.regret]\nmedian = 0.05\npercentile-95 = 0.25\nleast = 100\n"


@pytest.fixture(scope="module")
def found() -> list[Regret]:
    """Of the shipped results."""
    return generate(CONFIGS).regrets


def with_losses(found: list[Regret], losses: list[float | None], way: str = "key") -> list[Regret]:
    return [found[0]._replace(left_out=way, loss=loss) for loss in losses]


def test_the_shipped_results_are_within_the_limits(found: list[Regret]) -> None:
    """Which are those of this tree, and say something of them."""
    own = limits.read()
    assert own.median <= 0.05
    assert own.percentile_95 <= 0.25
    assert sum(regret.loss is not None for regret in found if regret.left_out == "key") >= own.least
    limits.enforce(found, own)


def test_median_and_percentile_are_judged_each(found: list[Regret]) -> None:
    """Of the keys that are left out by themselves and whose loss is known; what is at the limit passes."""
    most = MostLost(median=0.05, percentile_95=0.25, least=20)
    limits.enforce(with_losses(found, [0.05] * 11 + [0.25] * 9), most)
    limits.enforce(with_losses(found, [0.05] * 19 + [9.0] + [None] * 50), most)  # one of twenty may lose any
    limits.enforce(with_losses(found, [9.0] * 99, way="rank"), most)
    with pytest.raises(Excessive, match=r"median expected at most 5 % .*, got 5\.1 % of 20 keys"):
        limits.enforce(with_losses(found, [0.051] * 20), most)
    with pytest.raises(Excessive, match=r"95th percentile expected at most 25 % .*, got 26\.0 % of 20 keys"):
        limits.enforce(with_losses(found, [0.0] * 18 + [0.26] * 2), most)


def test_few_losses_say_nothing(found: list[Regret]) -> None:
    """Who builds with the results of a GPU of their own has few keys."""
    limits.enforce(with_losses(found, [9.0] * 19), MostLost(0.05, 0.25, least=20))
    limits.enforce([], MostLost(0.05, 0.25, least=0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        PLAIN.replace("median = 0.05", ""),
        PLAIN.replace("0.25", '"0.25"'),
        PLAIN.replace("100", "true"),
        PLAIN + "worst = 1.0",
    ],
)
def test_limits_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    """Saying what was expected; a limit that is not known is not taken for one."""
    file = tmp_path / "pyproject.toml"
    file.write_text(PLAIN)
    assert limits.read(file) == (0.05, 0.25, 100)
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r"expected numbers for median, percentile-95, least in \[tool\.csgmv\.regret\]"
    ):
        limits.read(file)


def test_no_table_is_written_above_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report that tells why is."""
    put(tmp_path, "configs/h200/a.json", document(record(), record(chunk_size=64)))
    command = ["--configs", str(tmp_path / "configs"), "--out", str(tmp_path / "table.py")]
    monkeypatch.setattr(limits, "read", lambda: MostLost(-1.0, 0.25, least=1))
    assert main(command) == 1
    assert "median expected at most -100 %" in capsys.readouterr().err
    assert not (tmp_path / "table.py").exists()
    assert main([*command, "--regret"]) == 0
    monkeypatch.setattr(limits, "read", lambda: MostLost(0.0, 0.25, least=1))
    assert main(command) == 0
