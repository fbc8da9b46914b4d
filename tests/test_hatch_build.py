"""Wheels and sdists built from copies of this project, and what is in them."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import codegen
from codegen.source import ROOT
from fabricated import document, put, record

TABLE = "csgmv/_tuned_table.py"
RESULT = "configs/nvidia-h200/triton-3.6.0/shrink.json"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a build reads, with one made-up file of raw results and no table yet."""
    folder = tmp_path / "project"
    for name in ("src", "codegen"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_tuned_table.py"))
    for name in ("pyproject.toml", "hatch_build.py", "LICENSE", "CHANGELOG.md", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "README.md").write_text("# csgmv")
    put(folder, RESULT, document())
    return folder


def build(project: Path, target: str, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    return subprocess.run(command, cwd=project, check=False, capture_output=True, text=True, env=environment or None)


def built(project: Path, target: str, out: Path, **environment: str) -> Path:
    """The file that a build made."""
    done = build(project, target, out, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.iterdir()
    return file


def table(wheel: Path) -> str:
    return zipfile.ZipFile(wheel).read(TABLE).decode()


def test_a_table_that_lends_badly_stops_the_build(project: Path, tmp_path: Path) -> None:
    """By the limits of the tree that is built."""
    put(project, RESULT, document(record(), record(chunk_size=64)))
    settings = project / "pyproject.toml"
    text = settings.read_text().replace("least = 100", "least = 1")
    settings.write_text(text)
    built(project, "wheel", tmp_path / "well")
    settings.write_text(text.replace("median = 0.05", "median = -0.01"))
    done = build(project, "wheel", tmp_path / "badly")
    assert done.returncode != 0
    assert "borrowed rows lose too much: median expected at most -1 %" in done.stdout + done.stderr
    assert not list((tmp_path / "badly").glob("*"))


def test_a_wheel_has_the_package_and_its_table(project: Path, tmp_path: Path) -> None:
    """And nothing else: no codegen, raw results or tests."""
    wheel = built(project, "wheel", tmp_path / "out")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"csgmv/py.typed", "csgmv/rules.py", TABLE} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"csgmv", wheel.name.partition("-py3")[0] + ".dist-info"}
    layer = table(wheel).split("('shrink', 1024, (), 64, 3, 'bfloat16'): {")[1]
    assert layer.split("}")[0].strip().startswith("(16, 8): (32, 32, 128,")


def test_the_wheel_from_the_sdist_is_that_from_the_tree(project: Path, tmp_path: Path) -> None:
    """Byte for byte; so the sdist holds all that the hook needs."""
    wheel = built(project, "wheel", tmp_path / "tree")
    sdist = built(project, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = built(unpacked, "wheel", tmp_path / "again")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_one_number_changes_the_wheel(project: Path, tmp_path: Path) -> None:
    """Another block in a raw result is another block in the table, though an older table stands in the tree."""
    before = table(built(project, "wheel", tmp_path / "before"))
    file = project / RESULT
    file.write_text(file.read_text().replace("32,\n", "64,\n"))
    after = table(built(project, "wheel", tmp_path / "after"))
    assert "(32, 32, 128, " in before
    assert "(64, 64, 128, " in after


def test_a_missing_brace_stops_the_build(project: Path, tmp_path: Path) -> None:
    """With the file's name and place, and no traceback."""
    file = project / RESULT
    file.write_text(file.read_text().rstrip().removesuffix("}"))
    for target in ("wheel", "sdist"):
        done = build(project, target, tmp_path / target)
        assert done.returncode == 1
        assert f"{RESULT}: $: Expecting ',' delimiter: line " in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


def test_a_fault_stops_the_build(project: Path, tmp_path: Path) -> None:
    """With the file's name and the JSON path."""
    put(project, RESULT, document(record(noise_us=None)))
    done = build(project, "wheel", tmp_path / "out")
    assert done.returncode == 1
    assert f"{RESULT}: $.records[0].noise_us: expected a number" in done.stdout + done.stderr


def test_no_results_stop_the_build(project: Path, tmp_path: Path) -> None:
    """Else a wheel without tuned configs would pass for a good one."""
    (project / RESULT).unlink()
    done = build(project, "wheel", tmp_path / "out")
    assert done.returncode == 1
    assert "configs: expected raw results, got none" in done.stdout + done.stderr


def test_an_ignored_table_is_shipped(project: Path, tmp_path: Path) -> None:
    """Even where git ignores the generated file, both in the wheel and in the sdist."""
    with (project / ".gitignore").open("a") as file:
        file.write("_tuned_table.py\n")
    assert "TABLE" in table(built(project, "wheel", tmp_path / "wheel"))
    with tarfile.open(built(project, "sdist", tmp_path / "sdist")) as archive:
        assert any(name.endswith(f"/src/{TABLE}") for name in archive.getnames())


def test_without_hooks_no_table_is_needed(project: Path, tmp_path: Path) -> None:
    """A build with hooks off gives a wheel without a table, which dispatch survives."""
    wheel = built(project, "wheel", tmp_path / "out", HATCH_BUILD_NO_HOOKS="1")
    assert TABLE not in zipfile.ZipFile(wheel).namelist()


def _hook(folder: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hook of this tree, with made-up results and a table that cannot be written."""

    def refuse(*_: object) -> bool:
        raise PermissionError("read-only file system")

    put(folder, "result.json", document())
    monkeypatch.setattr(codegen, "CONFIGS", folder)
    monkeypatch.setattr(codegen, "write", refuse)
    monkeypatch.syspath_prepend(ROOT)
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["TunedTableHook"]
    return hook(str(ROOT), {}, None, SimpleNamespace(), "", target, None)


@pytest.mark.parametrize(("target", "place"), [("wheel", TABLE), ("sdist", f"src/{TABLE}")])
def test_a_read_only_tree_ships_a_fresh_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, place: str
) -> None:
    """From a file elsewhere that takes the place of the one in the tree."""
    hook = _hook(tmp_path, target, monkeypatch)
    data: dict[str, Any] = {"artifacts": [], "force_include": {}}
    hook.initialize("standard", data)
    ((fresh, where),) = data["force_include"].items()
    assert where == place
    assert "(32, 32, 128, " in Path(fresh).read_text()
    assert data["artifacts"] == []


def test_a_read_only_tree_cannot_be_installed_as_editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run with the table of yesterday."""
    hook = _hook(tmp_path, "wheel", monkeypatch)
    with pytest.raises(PermissionError):
        hook.initialize("editable", {"artifacts": [], "force_include": {}})
