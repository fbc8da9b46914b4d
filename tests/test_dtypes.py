"""Dtypes by name, and names by dtype, once for all."""

from __future__ import annotations

import pytest
import torch

from csgmv import dtypes, rules


def test_each_dtype_has_the_name_that_keys_have() -> None:
    """And torch has; the way back is the same."""
    assert list(dtypes.BY_NAME) == list(rules.DTYPE_BYTES)
    for name, dtype in dtypes.BY_NAME.items():
        assert dtype.itemsize == rules.DTYPE_BYTES[name]
        assert dtypes.name_of("dtype", dtype) == dtypes.NAMES[dtype] == name


@pytest.mark.parametrize(("given", "kind"), [(torch.int8, ValueError), ("float16", TypeError), (None, TypeError)])
def test_others_are_refused_by_the_argument_s_name(given: object, kind: type[Exception]) -> None:
    """With what may come; a dtype of another kind is a wrong value, anything else of the wrong class."""
    with pytest.raises(kind, match=r"^x: expected torch\.float16, torch\.bfloat16 or torch\.float32, got "):
        dtypes.name_of("x", given)
    with pytest.raises(kind, match=r"^x: expected torch\.float16, torch\.bfloat16, torch\.float32 or None, got "):
        dtypes.name_of("x", given, None)
