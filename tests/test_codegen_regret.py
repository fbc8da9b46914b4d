"""What keys lose that have to borrow: left out in turn, and judged by what was measured at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codegen import CONFIGS
from codegen.__main__ import main
from codegen.regret import HEADER, MARKER, Regret, losses, markdown, regrets, report
from codegen.source import choose, collect, left_out, raw_results, readme_block
from fabricated import BETTER, DEFAULT, document, finalist, put, record

OWN: dict[int, list[Any]] = {  # a winner for each input_dim, told apart by its stages
    input_dim: [32, 32, 128, 2, 1, 4, stages, None, False]
    for stages, input_dim in enumerate((512, 1024, 2048), start=2)
}


def layer(
    input_dim: int, others: dict[int, float], screened: dict[int, float] | None = None, **more: Any
) -> dict[str, Any]:
    """A file of one key: 20 µs with its own row, these with other layers' at length or in screening, 30 by default."""
    times = {input_dim: 20.0, **others}
    impressions = {input_dim: 22.0, **others, **(screened or {})}
    made = record(
        finalists=[finalist(OWN[dim], us) for dim, us in times.items()],
        candidates=[[OWN[dim], us, 12, False] for dim, us in impressions.items()],
    )
    return document(made, input_dim=input_dim, **more)


LAYERS = [
    layer(512, {1024: 25.0}),
    layer(1024, {}, {512: 33.0}),
    layer(2048, {512: 60.0}),
]


def judged(*contents: dict[str, Any]) -> list[Regret]:
    assert not any(map(raw_results.faults, contents))
    found = [collect.Found("a.json", result) for content in contents for result in raw_results.results(content)]
    return list(regrets(choose.choose(found)))


def by_dimension(found: list[Regret], way: str) -> dict[int, float | None]:
    """By input_dim."""
    return {one.result.key.input_dim: one.loss for one in found if one.left_out == way}


def test_a_key_is_judged_by_what_was_measured_there() -> None:
    """At length, else in screening as compared with its own row's; what was not measured is not made up."""
    found = judged(*LAYERS)
    assert by_dimension(found, "key") == {512: 0.25, 1024: 0.5, 2048: None}
    borrowed = {one.result.key.input_dim: one.served for one in found if one.left_out == "key"}
    assert {dim: served.source and served.source.input_dim for dim, served in borrowed.items()} == {
        512: 1024,
        1024: 512,
        2048: 1024,
    }
    assert by_dimension(found, "everything") == dict.fromkeys(OWN, 0.5)


def test_nothing_of_what_is_left_out_stays() -> None:
    """Dimensions go with their other ranks and dtypes, a rank with other dimensions, a batch with all layers."""
    twins = [layer(1024, {}, max_rank=32), layer(1024, {}, dtype="float16"), layer(1024, {}, triton="3.5.1")]
    found = [one for one in judged(*LAYERS, *twins) if one.served.source is not None]
    shared = {
        "key": lambda one: (one.result.gpu, one.result.triton, one.result.key),
        "dimensions": lambda one: one.result.key.input_dim,
        "rank": lambda one: one.result.key.max_rank,
        "Triton version": lambda one: one.result.triton,
    }
    lent = {
        "key": lambda one: (one.served.gpu, one.served.triton, one.served.source),
        "dimensions": lambda one: one.served.source.input_dim,
        "rank": lambda one: one.served.source.max_rank,
        "Triton version": lambda one: one.served.triton,
    }
    for way, of in shared.items():
        judges = [one for one in found if one.left_out == way]
        assert judges
        assert all(of(one) != lent[way](one) for one in judges)
    assert not any(one.left_out in ("batch", "rows", "all rows", "everything") for one in found)


def test_the_step_is_named_without_what_it_found() -> None:
    """So that it can be counted."""
    steps = {(one.left_out, one.step) for one in judged(*LAYERS)}
    assert ("dimensions", "nearest dimensions") in steps
    assert ("all rows", "architecture's default") in steps
    assert ("everything", "default") in steps
    twin = layer(1024, {}, triton="3.5.1", gpu="NVIDIA H100")
    steps = {one.step for one in judged(*LAYERS, twin) if one.left_out == "GPU"}
    assert "other GPU, other Triton version, exact" in steps


def test_an_architecture_s_default_is_made_without_the_dimensions_left_out() -> None:
    """Else the row that was measured best there would be judged there."""
    found = [one for one in judged(*LAYERS) if one.left_out == "all rows"]
    assert {one.result.key.input_dim for one in found} == set(OWN)
    assert all(one.served.row != tuple(OWN[one.result.key.input_dim]) for one in found)


def test_a_version_is_left_out_only_where_another_remains() -> None:
    """Of the same architecture; a GPU likewise."""
    assert {one.left_out for one in judged(*LAYERS)} == left_out.WAYS.keys() - {"Triton version", "GPU"}
    other = layer(1024, {}, triton="3.5.1", gpu="NVIDIA H100")
    assert {one.left_out for one in judged(*LAYERS, other)} == left_out.WAYS.keys()
    other["runs"][0]["compute_capability"] = "8.0"
    assert {one.left_out for one in judged(*LAYERS, other)} == left_out.WAYS.keys() - {"Triton version", "GPU"}


def test_a_row_that_the_table_does_not_have_is_measured_against_the_default() -> None:
    """A key at which nothing beat the default loses what a borrowed row takes longer than the default."""
    seen = [[OWN[1024], 59.9, 12, False], [BETTER, 29.95, 12, False], [DEFAULT, 33.0, 12, False]]
    flat = document(record(tuned_us=29.95, candidates=seen), input_dim=512)
    assert by_dimension(judged(flat, layer(1024, {})), "key")[512] == pytest.approx(59.9 / 33.0 - 1)
    raced = {"run": 0, "samples": 48, "times": [[BETTER, 14.0], [OWN[1024], 21.0]]}
    flat["records"][0]["races"] = [raced]
    assert by_dimension(judged(flat, layer(1024, {})), "key")[512] == pytest.approx(21.0 / 14.0 * 29.95 / 30.0 - 1)


def test_races_count_before_first_impressions() -> None:
    """And make keys known that no search has tried; the table tells how many were judged by which."""
    layers = [LAYERS[0], layer(1024, {}, {512: 33.0}), layer(2048, {512: 60.0})]
    before = judged(*layers)
    assert [one.judged for one in before if one.left_out == "key"] == ["at length", "screened", None]
    for content, lender, us in ((layers[1], 512, 12.0), (layers[2], 1024, 11.0)):
        own = OWN[content["input_dim"]]
        content["records"][0]["races"] = [{"run": 0, "samples": 48, "times": [[own, 10.0], [OWN[lender], us]]}]
    after = judged(*layers)
    assert by_dimension(after, "key") == {512: 0.25, 1024: pytest.approx(0.2), 2048: pytest.approx(0.1)}
    assert [one.judged for one in after if one.left_out == "key"] == ["at length"] * 3
    header = [cell.strip() for cell in markdown(before).splitlines()[0].split("|")[1:-1]]
    assert header == [HEADER[0], *HEADER[2:]]
    (line,) = (line for line in markdown(before).splitlines() if line.startswith("| key |  |"))
    told = dict(zip(header, (cell.strip() for cell in line.split("|")[1:-1])))
    assert [told[name] for name in ("keys", "at length", "screened", "unmeasured")] == ["3", "1", "1", "1"]


def test_the_report_sums_up_by_step_and_tells_the_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unmeasured keys are counted apart; the built-in default, which is not borrowed, is in no list of the worst."""
    for index, content in enumerate(LAYERS):
        put(tmp_path, f"configs/{index}.json", content)
    out = tmp_path / "table.py"
    assert main(["--configs", str(tmp_path / "configs"), "--out", str(out), "--regret"]) == 0
    assert not out.exists()
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("key ") and "shrink" in line)
    assert " ".join(line.split()) == "key shrink nearest dimensions 3 1 1 1 37.5 % 50.0 % 50.0 %"
    at = lines.index("The 10 borrowed rows that lose most:")
    worst = lines[at + 1 :]
    assert worst[0] == "  50.0 %  shrink 1024 → 3·64, bfloat16, chunk size 16, 8 segments (left out: key)"
    assert worst[1].strip() == (
        f"nearest dimensions, from shrink 512 → 3·64, bfloat16, chunk size 16, 8 segments: {tuple(OWN[512])}"
    )
    assert not any("default" in line for line in worst)


def test_the_report_lists_no_more_than_it_is_asked_for() -> None:
    """Two lines a key."""
    lines = list(report(judged(*LAYERS), worst=1))
    assert len(lines) - lines.index("\nThe 1 borrowed rows that lose most:") == 3


def test_the_table_tells_what_each_step_costs(tmp_path: Path) -> None:
    """In thousandths. Several ways of leaving out that come to the same row count once."""
    found = judged(*LAYERS)
    assert sum(one.step == "nearest dimensions" and one.loss is not None for one in found) > 2
    assert losses(found) == {
        "shrink": {
            "architecture's default": (1, 250, 250),
            "default": (3, 500, 500),
            "nearest dimensions": (2, 375, 500),
        }
    }
    for index, content in enumerate(LAYERS):
        put(tmp_path, f"configs/{index}.json", content)
    assert main(["--configs", str(tmp_path / "configs"), "--out", str(tmp_path / "table.py")]) == 0
    assert "        'nearest dimensions': (2, 375, 500),\n" in (tmp_path / "table.py").read_text()


def test_the_report_goes_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between its markers, as Markdown, and nowhere else; no table is written."""
    put(tmp_path, "configs/a.json", LAYERS[0])
    begin, end = readme_block.markers(MARKER)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    argv = ["--configs", str(tmp_path / "configs"), "--out", str(tmp_path / "table.py"), "--regret"]
    assert main([*argv, "--into", str(readme)]) == 0
    before, header, *_, after = (line for line in readme.read_text().splitlines() if line not in ("", begin, end))
    assert (before, after) == ("before", "after")
    assert header == f"| {' | '.join([HEADER[0], *HEADER[2:]])} |"
    assert "old" not in readme.read_text()
    assert not (tmp_path / "table.py").exists()
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        main([*argv[:-1], "--into", str(readme)])


def test_the_page_on_results_has_the_report_of_these() -> None:
    """`python -m codegen --regret --into configs/README.md` puts it there."""
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    found = regrets(choose.choose(collect.collect(CONFIGS).found))
    assert readme_block.between_markers(text, markdown(found), MARKER) == text
