"""Each parameter of each function that users call, wrong in every way: a clear error, and nothing changed.

The tables are in the modules `wrong_…`. They are complete by construction: functions and parameters are asked of the
package itself, and one without a wrong case fails here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import csgmv
import wrong_batches
import wrong_operations
from csgmv.cli import _ours
from wrong import Case, From, Subject, tensors

SUBJECTS = [*wrong_operations.SUBJECTS, *wrong_batches.SUBJECTS]


def _name(subject: Subject) -> str:
    return getattr(subject.function, "__qualname__", str(subject.function))


def _cases() -> Iterator[Any]:
    for subject in SUBJECTS:
        for parameter, cases in subject.wrong.items():
            for number, case in enumerate(cases):
                yield pytest.param(subject, parameter, case, id=f"{_name(subject)}-{parameter}-{number}")


@pytest.mark.parametrize("subject", SUBJECTS, ids=_name)
def test_every_parameter_has_wrong_cases(subject: Subject) -> None:
    """And what is right is taken, so that the cases fail for their own sake."""
    assert {*subject.wrong} | {*subject.no_wrong} == subject.parameters()
    assert all(subject.wrong.values())
    subject(subject.good())


@pytest.mark.parametrize(("subject", "parameter", "case"), _cases())
def test_what_is_wrong_is_named(subject: Subject, parameter: str, case: Case) -> None:
    """By what was expected and what came, from csgmv's own code; no tensor has changed."""
    value, kind, message = case
    good = subject.good()
    before = tensors(good)
    with pytest.raises(kind) as caught:
        subject({**good, parameter: value.make(good) if isinstance(value, From) else value})
    said = str(caught.value)
    assert re.search(message, said), said
    assert "expected " in said
    assert "got " in said
    assert _ours(caught.value), f"raised by {caught.traceback[-1]}"
    for name, tensor in tensors(good).items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
