"""Each parameter of each function that users call, wrong in every way: a clear error, and nothing changed.

The tables are in the modules `wrong_…`. They are complete by construction: functions and parameters are asked of the
package itself, and one without a wrong case fails here.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import csgmv
import wrong_batches
import wrong_operations
import wrong_serving
import wrong_vllm
from csgmv import models
from csgmv.cli import _ours
from csgmv.integrations import lora_batch_info, sglang, vllm
from csgmv.integrations.row_batches import StaticBatch
from csgmv.integrations.transformers import MultiLoRA
from wrong import Case, From, Subject, tensors

CLASSES = csgmv.Segments, MultiLoRA
MODULES = sglang, vllm, lora_batch_info, models
SUBJECTS = [*wrong_operations.SUBJECTS, *wrong_batches.SUBJECTS, *wrong_serving.SUBJECTS, *wrong_vllm.SUBJECTS]


def _name(subject: Subject) -> str:
    return getattr(subject.function, "__qualname__", str(subject.function))


def _public() -> Iterator[Any]:
    """All that the package offers to be called."""
    yield from filter(callable, (getattr(csgmv, name) for name in csgmv.__all__))
    for owner in CLASSES:
        yield owner
        own = (getattr(owner, name) for name in vars(owner) if not name.startswith("_"))
        yield from filter(callable, own)
    for module in MODULES:
        functions = (value for name, value in vars(module).items() if not name.startswith("_"))
        own = (each for each in functions if inspect.isfunction(each) and each.__module__ == module.__name__)
        yield from (each for each in own if inspect.signature(each).parameters)
    yield StaticBatch.update


def test_every_function_has_a_table() -> None:
    """Also one that is still to be written."""
    asked = [subject.function for subject in SUBJECTS]
    assert [each for each in _public() if each not in asked] == []


@pytest.mark.parametrize("subject", SUBJECTS, ids=_name)
def test_every_parameter_has_wrong_cases(subject: Subject) -> None:
    """And what is right is taken, so that the cases fail for their own sake."""
    assert {*subject.wrong} | {*subject.no_wrong} == subject.parameters()
    assert all(subject.wrong.values())
    subject(subject.good())


PARAMETERS = [(subject, parameter) for subject in SUBJECTS for parameter in subject.wrong]


@pytest.mark.parametrize(
    ("subject", "parameter"), PARAMETERS, ids=lambda one: one if isinstance(one, str) else _name(one)
)
def test_what_is_wrong_is_named(subject: Subject, parameter: str) -> None:
    """By what was expected and what came, from csgmv's own code; no tensor has changed."""
    for case in subject.wrong[parameter]:
        good = subject.good()
        before = tensors(good)
        fault = _fault(subject, good, parameter, case)
        assert fault is None, f"{parameter} = {case[0]!r}: {fault}"
        for name, tensor in tensors(good).items():
            assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), f"{parameter} = {case[0]!r}: {name}"


def _fault(subject: Subject, good: dict[str, Any], parameter: str, case: Case) -> str | None:
    """How the error differs from what it should be."""
    value, kind, message = case
    value = value.make(good) if isinstance(value, From) else value
    try:
        subject({**good, parameter: value})
    except kind as error:
        said = str(error)
        if re.search(message, said) and "expected " in said and "got " in said and _ours(error):
            return None
        return f"{message!r} is wanted, {said!r} was said, by {traceback.extract_tb(error.__traceback__)[-1]}"
    return "nothing was raised"
