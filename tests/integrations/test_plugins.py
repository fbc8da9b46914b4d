"""The plugin that sglang and vLLM load in each of their processes: there, and idle unless it is asked for."""

from __future__ import annotations

import importlib
import pathlib
import subprocess
import sys

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from csgmv.integrations import plugins, sglang, vllm

GROUPS = {"sglang.srt.plugins": "sglang", "vllm.general_plugins": "vllm"}


@pytest.mark.parametrize(("engine", "variable"), [(sglang, "SGLANG_PLUGINS"), (vllm, "VLLM_PLUGINS")])
def test_it_installs_where_the_engines_list_names_it(engine, variable, monkeypatch) -> None:
    """An engine without a list of plugins loads all that there are: then nothing is replaced."""
    installed = []
    monkeypatch.setattr(engine, "install", lambda: installed.append(1))
    load = getattr(plugins, engine.__name__.rpartition(".")[2])
    monkeypatch.delenv(variable, raising=False)
    load()
    for value in ("", "other", "not-csgmv,csgmv2"):
        monkeypatch.setenv(variable, value)
        load()
    assert not installed
    for value in ("csgmv", "other, csgmv"):
        monkeypatch.setenv(variable, value)
        load()
    assert len(installed) == 2


def test_entry_points_lead_to_it() -> None:
    """Under the groups that the engines look into, by the name that their lists are to have."""
    project = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"].keys() == GROUPS.keys()
    for group, engine in GROUPS.items():
        ((name, target),) = project["entry-points"][group].items()
        module, _, function = target.partition(":")
        assert name == "csgmv"
        assert getattr(importlib.import_module(module), function) is getattr(plugins, engine)


def test_an_idle_plugin_imports_next_to_nothing() -> None:
    """Every process of an engine beside which csgmv is installed loads it."""
    code = "from csgmv.integrations import plugins; plugins.vllm(); plugins.sglang(); import sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": "src"}
    )
    assert not {"torch", "triton"} & set(run.stdout.split())
