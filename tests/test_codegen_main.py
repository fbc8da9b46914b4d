"""`python -m codegen` from raw results to the table."""

from __future__ import annotations

import ast
import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.__main__ import main
from codegen.source import ROOT, kernel_hash
from fabricated import ADD_LORA, BETTER, document, finalist, put, record, record_of, timing


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder of two files that share a key; at another key the default is as good."""
    folder = tmp_path / "configs"
    put(folder, "h200/a.json", document(record(), record(chunk_size=64, tuned_us=29.9)))
    put(folder, "h200/b.json", document(record(finalists=[finalist(BETTER, 25.0)])))
    return folder


def run(configs: Path, *more: str) -> int:
    return main(["--configs", str(configs), "--out", str(configs.parent / "table.py"), *more])


def literals(text: str) -> dict[str, Any]:
    """The names that a table's source assigns, with their values; fails unless all else is doc and annotation."""
    doc, future, table_format, digest, *tables = ast.parse(text).body
    assert isinstance(doc, ast.Expr)
    assert isinstance(doc.value, ast.Constant)
    assert isinstance(future, ast.ImportFrom)
    assert future.module == "__future__"
    assert isinstance(table_format, ast.Assign)
    assert isinstance(digest, ast.Assign)
    values = {"FORMAT": ast.literal_eval(table_format.value), "DIGEST": ast.literal_eval(digest.value)}
    for table in tables:
        assert isinstance(table, ast.AnnAssign)
        assert isinstance(table.target, ast.Name)
        assert table.value is not None
        values[table.target.id] = ast.literal_eval(table.value)
    assert values.keys() == {"FORMAT", "DIGEST", "TABLE", "CHUNK_SIZES", "GPUS", "DEFAULTS", "LOSSES"}
    return values


def test_raw_results_become_a_table(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a report: rows baked, keys that keep the default, and which file won where two have a key."""
    assert run(configs) == 0
    tables = literals((configs.parent / "table.py").read_text())
    assert tables["TABLE"] == {
        ("NVIDIA H200", "3.6.0"): {
            ("shrink", 1024, (), 64, 3, "bfloat16"): {(16, 8): tuple(BETTER), (64, 8): None},
        }
    }
    assert tables["CHUNK_SIZES"] == {("NVIDIA H200", "3.6.0"): {(8, 8): 16}}  # a token each: all sizes cut the same
    assert tables["GPUS"] == {"NVIDIA H200": ("9.0", 132)}
    assert tables["DEFAULTS"] == {"9.0": {"shrink": {128: tuple(BETTER), 512: tuple(BETTER)}}}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "NVIDIA H200, Triton 3.6.0: 1 rows baked, 1 keys keep the default, which nothing beat by more than the noise "
        "(--all lists them); chunk sizes for 1 cells of batches"
    )
    assert "chunk_size 16" in lines[1]
    assert lines[1].endswith(": h200/a.json wins over h200/b.json")
    assert lines[2].endswith("table.py: written")
    assert run(configs, "--all", "--check") == 0
    _, kept, _, told = capsys.readouterr().out.splitlines()
    assert kept.startswith("default kept: NVIDIA H200, Triton 3.6.0, op shrink, ")
    assert "chunk_size 64" in kept
    assert told.endswith("table.py: up to date")


def test_raw_results_become_chunk_sizes(tmp_path: Path) -> None:
    """Of several files that have a key only the one that is baked counts; other results change nothing."""
    slow, quick = (
        document(*(record_of("add_lora", us * n, size, 2048, 8) for n, size in enumerate((128, 64, 32, 16), start=1)),
                 **ADD_LORA, triton=triton)
        for us, triton in ((20.0, "3.10.0"), (10.0, "3.6.0"))
    )  # fmt: skip
    for name, content in (("b.json", slow), ("a.json", quick), ("c.json", document(record(others=[])))):
        put(tmp_path, f"configs/{name}", content)
    rival = copy.deepcopy(quick)
    rival["records"] = [record_of("add_lora", 1.0, 16, 2048, 8, default=timing(rival_row(quick), 1.1))]
    put(tmp_path, "configs/d.json", rival)
    assert run(tmp_path / "configs") == 0
    assert literals((tmp_path / "table.py").read_text())["CHUNK_SIZES"] == {
        ("NVIDIA H200", "3.6.0"): {(2048, 8): 128},
        ("NVIDIA H200", "3.10.0"): {(2048, 8): 128},
    }


def rival_row(content: dict[str, Any]) -> list[Any]:
    return [*content["records"][0]["finalists"][0]["row"][:-1], True]


def test_the_same_results_give_the_same_bytes(configs: Path, tmp_path: Path) -> None:
    """From another folder, with files written in another order and at another time, by another process."""
    assert run(configs) == 0
    elsewhere = tmp_path / "some/where/else"
    for file in sorted(configs.rglob("*.json"), reverse=True):
        put(elsewhere, str(file.relative_to(configs)), json.loads(file.read_text()))
    out = tmp_path / "other.py"
    command = [sys.executable, "-m", "codegen", "--configs", str(elsewhere), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={"PYTHONHASHSEED": "17"})
    assert out.read_bytes() == (tmp_path / "table.py").read_bytes()


def test_neither_torch_nor_csgmv_is_imported(configs: Path) -> None:
    """A build environment has neither."""
    arguments = ["--configs", str(configs), "--out", str(configs.parent / "table.py")]
    program = (
        "import sys; from codegen.__main__ import main; "
        f"status = main({arguments!r}); "
        "sys.exit(status or sorted({'csgmv', 'torch', 'triton'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_faults_are_told_and_nothing_is_written(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each on a line of its own, with file and JSON path; the exit status is 1."""
    put(configs, "h200/b.json", document(record(noise_us="low"), colour="blue"))
    (configs / "c.json").write_text("{")
    assert run(configs) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert [line.removeprefix(f"{configs}/").partition(": ")[0] for line in output.err.splitlines()] == [
        "c.json",
        "h200/b.json",
        "h200/b.json",
    ]
    assert "h200/b.json: $.colour: unknown field" in output.err
    assert "h200/b.json: $.records[0].noise_us: expected a number" in output.err
    assert not (configs.parent / "table.py").exists()


def test_check_compares_and_writes_nothing(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, as it should be, and out of date; what to do about it is said."""
    out = configs.parent / "table.py"
    assert run(configs, "--check") == 1
    assert not out.exists()
    assert "run `python -m codegen`" in capsys.readouterr().err

    assert run(configs) == 0
    assert run(configs, "--check") == 0
    assert "not what the raw results give" not in capsys.readouterr().err

    put(configs, "h200/a.json", document(record(finalists=[finalist([16, *BETTER[1:]], 20.0)])))
    before = out.read_bytes()
    assert run(configs, "--check") == 1
    assert out.read_bytes() == before
    message = capsys.readouterr().err
    assert f"{out}: " in message
    assert "+            (16, 8): (16, 32," in message


def test_check_sees_a_changed_line_end(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It compares bytes, and says so where the lines are the same."""
    run(configs)
    out = configs.parent / "table.py"
    out.write_bytes(out.read_bytes().replace(b"\n", b"\r\n"))
    assert run(configs, "--check") == 1
    assert "line ends" in capsys.readouterr().err


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([0, 1, 8, 16, 64, "3.6.0", "shrink", "expand", "'); import os; ('", "{{ x }}", "\n", "\u2028"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def bend(content: Any, value: Any, chance: random.Random) -> Any:
    """Replaces, drops, doubles or adds something somewhere in a JSON value."""
    content = copy.deepcopy(content)
    holder = content
    while True:
        place = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[place]
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.8:
            holder = inner
            continue
        kind = chance.choice(["replace", "replace", "drop", "add"])
        if kind == "replace":
            holder[place] = value
        elif kind == "drop":
            del holder[place]
        elif isinstance(holder, list):
            holder.insert(place, value)
        else:
            holder[str(value)] = inner
        return content


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, seed=st.integers(0, 2**32), cut=st.none() | st.integers(0, 1500))
def test_any_file_gives_faults_or_a_table_of_literals(tmp_path: Path, value: Any, seed: int, cut: int | None) -> None:
    """Whatever is changed in a file or cut off its end: never a traceback, never code in the table."""
    content = bend(document(record(), record(chunk_size=32)), value, random.Random(seed))
    file = put(tmp_path, "configs/a.json", content)
    if cut is not None:
        file.write_text(file.read_text()[: -cut or None])
    out = tmp_path / "table.py"
    out.unlink(missing_ok=True)
    status = run(tmp_path / "configs")
    assert status in (0, 1)
    assert out.exists() == (status == 0)
    if status == 0:
        assert literals(out.read_text())["DIGEST"].startswith("sha256:")


def test_rows_of_other_kernels_are_told_and_refused_on_request(
    configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table may be up to date and its rows not: a release asks for both."""
    assert run(configs) == 0
    assert run(configs, "--check") == 0
    assert "2 of 2 rows were measured with other kernels than these; `csgmv tune --stale`" in capsys.readouterr().err
    assert run(configs, "--check", "--fresh") == 1
    for name in ("a.json", "b.json"):
        path = configs / "h200" / name
        content = json.loads(path.read_text())
        content["runs"][0]["kernel_hash"] = kernel_hash.kernel_hash()
        path.write_text(json.dumps(content))
    assert run(configs) == 0
    capsys.readouterr()
    assert run(configs, "--check", "--fresh") == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        run(configs, "--fresh")
