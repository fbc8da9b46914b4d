"""The API reference: every public name says what it takes, returns and raises, and the pages are made without a fault.

What is public `docs.pages` says; what the tests ask of it holds for names that are added there, too.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import csgmv
from csgmv import rules
from docs import pages

PUBLIC = dict(pages.objects())
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
README = Path(__file__).parents[1] / "README.md"
_SHAPE = re.compile(r"\[[a-z1*]|shape")
_DTYPE = re.compile(r"dtype|bool|fp16|bf16|fp32|(u?int|float)\d*|integers|floats|as for `")


def told(value: object, section: str) -> dict[str, str]:
    """What a docstring says of each name in one of its sections; names that share an entry have the same text."""
    text = (inspect.getdoc(value) or "").partition(f"\n{section}:\n")[2]
    block = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", block, re.MULTILINE)
    return {name: words for names, words in entries for name in names.split(", ")}


def parameters(function: object) -> dict[str, str]:
    """Annotations by name, as they are written."""
    given = inspect.signature(function).parameters.values()
    return {one.name: str(one.annotation) for one in given if one.name not in ("self", "cls")}


def fields(owner: type) -> Iterator[tuple[str, str]]:
    """Public fields of a dataclass, NamedTuple or protocol that hold something of each instance, with annotations."""
    own = {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else None
    for name, annotation in inspect.get_annotations(owner).items():
        if not name.startswith("_") and (own is None or name in own):
            yield name, str(annotation)


def tensors(annotations: Iterator[tuple[str, str]]) -> list[str]:
    return [name for name, annotation in annotations if re.search(r"\bTensor\b|Integers|Floats", annotation)]


def test_what_csgmv_exports_is_in_the_reference():
    """With the methods of its classes."""
    assert {f"csgmv.{name}" for name in csgmv.__all__ if not name.startswith("__")} <= set(PUBLIC)
    assert "csgmv.Segments.from_tokens" in PUBLIC
    assert "csgmv.integrations.transformers.MultiLoRA.use" in PUBLIC


def test_what_the_readme_imports_is_in_the_reference():
    """A module that users are told of has a page."""
    named = set(re.findall(r"\bcsgmv\.(?:integrations|tuning)\.\w+", README.read_text(encoding="utf-8")))
    assert [name for name in named if name not in pages.PAGES and name not in PUBLIC] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring(name):
    """Its own: a NamedTuple's and a dataclass's generated ones say nothing."""
    first = (inspect.getdoc(PUBLIC[name]) or "").partition("\n")[0]
    assert len(first) > 10
    assert not first.startswith(f"{name.rpartition('.')[2]}(")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_told(name):
    """Each of them, under its name, and none that there is not; tensors with shape and dtype."""
    function = FUNCTIONS[name]
    args = told(function, "Args")
    assert list(args) == list(parameters(function))
    for tensor in tensors(parameters(function).items()):
        words = args[tensor]
        assert _SHAPE.search(words) or "as for `" in words, tensor
        assert _DTYPE.search(words) or "likewise" in words or "looking" in words, tensor


@pytest.mark.parametrize("name", [name for name, value in FUNCTIONS.items() if parameters(value)])
def test_errors_are_told(name):
    """By what takes arguments: all of these can be wrong. Names are those of exceptions."""
    raised = told(FUNCTIONS[name], "Raises")
    assert raised
    assert [kind for kind in raised if not issubclass(getattr(builtins, kind, object), Exception)] == []


@pytest.mark.parametrize("name", CLASSES)
def test_fields_are_told(name):
    """Each of them; tensors with shape and dtype."""
    attributes = told(CLASSES[name], "Attributes")
    own = dict(fields(CLASSES[name]))
    assert [field for field in own if field not in attributes] == []
    for tensor in tensors(own.items()):
        assert _SHAPE.search(attributes[tensor]), tensor
        assert _DTYPE.search(attributes[tensor]), tensor


@pytest.mark.parametrize("op", rules.OPS)
def test_an_algorithm_names_its_source(op):
    """A paper, by its address."""
    function = csgmv.add_lora if op == "add_lora" else getattr(csgmv, f"lora_{op}")
    assert re.search(r"^Source: .*https://\S+", inspect.getdoc(function), re.MULTILINE)


@pytest.mark.parametrize("name", PUBLIC)
def test_names_in_docstrings_exist(name):
    """What a docstring refers to as `csgmv.…` is there."""
    for reference in re.findall(r"`(csgmv(?:\.\w+)+)`", inspect.getdoc(PUBLIC[name]) or ""):
        owner, _, attribute = reference.rpartition(".")
        try:
            found = getattr(importlib.import_module(owner), attribute)
        except (ModuleNotFoundError, AttributeError):
            found = importlib.import_module(reference)
        assert found is not None


def test_a_fault_in_a_page_fails_the_command(tmp_path, monkeypatch, capsys):
    """pdoc's warnings come out, and exit status 1; a sound page alone is written and gives 0."""
    pytest.importorskip("pdoc")
    from docs import __main__ as command

    folder = tmp_path / "code"
    folder.mkdir()
    sound = '__all__ = ["f"]\ndef f(x: int) -> int:\n    """Doubles.\n\n    Args:\n        x: a number.\n    """\n'
    (folder / "sound.py").write_text(sound)
    (folder / "unsound.py").write_text(f"from __future__ import annotations\n{sound.replace('x: int', 'x: Nothing')}")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(command, "PAGES", {"sound": ()})
    monkeypatch.setattr(command, "names", lambda _: ("f",))
    assert command.main([str(tmp_path / "out")]) == 0
    assert re.search(r"<strong>x:</strong>\s+a number\.", (tmp_path / "out" / "sound.html").read_text())
    capsys.readouterr()
    monkeypatch.setattr(command, "PAGES", {"sound": (), "unsound": ()})
    assert command.main([str(tmp_path / "out")]) == 1
    assert "Nothing" in capsys.readouterr().err
    for module in ("sound", "unsound"):
        sys.modules.pop(module)
