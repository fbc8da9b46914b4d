"""Which row serves a key that has none of its own: each step of the fallback."""

from __future__ import annotations

from typing import Any

import pytest

from csgmv import fallback, footprint
from csgmv.rules import Key, Row
from lent import EXPAND, EXPAND_ROW, ROWS, SHRINK, SHRINK_ROW

H200 = fallback.Target("NVIDIA H200", "3.6.0", footprint.LIMITS["9.0"], "9.0", 132)


def tables(*heads: tuple[str, str, list[Key]], **more: Any) -> fallback.Tables:
    """Rows for the keys of each GPU and Triton version."""
    rows = {(gpu, version): fallback.by_layer({key: ROWS[key.op] for key in keys}) for gpu, version, keys in heads}
    return fallback.Tables(rows, **more)


def served(key: Key, *keys: Key, where: fallback.Target = H200) -> tuple[Key | None, str]:
    """The key whose row serves, and the step, where the GPU has rows for these keys."""
    found = fallback.serve(key, where, tables(("NVIDIA H200", "3.6.0", list(keys))))
    return found.source, found.step


def test_steps_in_their_order() -> None:
    """Taking away what served leaves the next step to serve; whatever order the keys are listed in."""
    ladder = [
        (SHRINK, "exact"),
        (SHRINK._replace(dtype="float16"), "other 16-bit dtype (float16)"),
        (SHRINK._replace(input_dim=1536), "nearest dimensions (1536 → 3·64)"),
        (SHRINK._replace(chunk_size=32, segment_bucket=64), "nearest chunk size (32)"),
        (SHRINK._replace(segment_bucket=64), "nearest segment bucket (64)"),
        (SHRINK._replace(max_rank=16), "nearest rank (16)"),
        (SHRINK._replace(segment_bucket=8), "nearest segment bucket (8)"),
    ]
    for gone in range(len(ladder)):
        left = [key for key, _ in ladder[gone:]]
        assert served(SHRINK, *left) == served(SHRINK, *left[::-1]) == ladder[gone]
    assert served(SHRINK) == (None, "default")


@pytest.mark.parametrize(
    ("near", "far"),
    [
        # the same rows in other segments, against half the rows in as many
        ({"chunk_size": 128, "segment_bucket": 16}, {"chunk_size": 32}),
        # more rows, against as much fewer
        ({"segment_bucket": 64}, {"segment_bucket": 16}),
        # another layer at the very batch, against the same layer at one an eighth as large
        ({"num_slices": 1}, {"segment_bucket": 4}),
        # as many slices, against about as many columns
        ({"input_dim": 1536}, {"num_slices": 4}),
        # as far in both, the smaller
        ({"input_dim": 512}, {"input_dim": 2048}),
    ],
)
def test_what_is_nearer(near: dict[str, int], far: dict[str, int]) -> None:
    """Rows and segments decide before dimensions do."""
    present = fallback.by_layer(dict.fromkeys([SHRINK._replace(**far), SHRINK._replace(**near)]))
    assert [*fallback.lenders(SHRINK, present)] == [SHRINK._replace(**near), SHRINK._replace(**far)]


@pytest.mark.parametrize(
    "other",
    [
        EXPAND,
        SHRINK._replace(dtype="float32"),
        SHRINK._replace(input_dim=1024 << 5),
        SHRINK._replace(max_rank=2),
    ],
)
def test_what_is_never_borrowed(other: Key) -> None:
    """Rows of other operations, of float32 for 16 bits, and from beyond the bounds."""
    assert served(SHRINK, other) == (None, "default")
    assert served(other, SHRINK) == (None, "default")


def test_a_default_that_was_best_is_not_borrowed() -> None:
    """It is an answer for its own key, under any dtype and version; others pass it over."""
    other = SHRINK._replace(segment_bucket=16)
    near = SHRINK._replace(segment_bucket=64)
    known = fallback.Tables({("NVIDIA H200", "3.6.0"): fallback.by_layer({near: None, other: SHRINK_ROW})})
    assert fallback.serve(SHRINK, H200, known).source == other
    twin = fallback.serve(near._replace(dtype="float16"), H200._replace(triton="3.7.0"), known)
    assert (twin.row, twin.step) == (None, "Triton 3.6.0, other 16-bit dtype (bfloat16)")


def test_a_row_that_does_not_fit_serves_nobody() -> None:
    """Neither exactly nor borrowed by its own layer: the next one does."""
    other = SHRINK._replace(segment_bucket=64)
    large: Row = (64, 64, 256, 1, 1, 4, 3, None, False)
    known = fallback.Tables({("NVIDIA H200", "3.6.0"): fallback.by_layer({SHRINK: large, other: SHRINK_ROW})})
    assert fallback.serve(SHRINK, H200, known).row == large
    small = H200._replace(limits=footprint.LIMITS["8.6"])
    assert fallback.serve(SHRINK, small, known)[:2] == (SHRINK_ROW, "nearest segment bucket (64)")


@pytest.mark.parametrize(
    ("wanted", "present", "order"),
    [
        ("3.9.0", ["3.5.1", "4.0.0", "3.10.0", "3.9.0", "3.9.0+git1"], "3.9.0 3.9.0+git1 3.10.0 3.5.1 4.0.0"),
        ("4.0.0", ["3.1.0", "3.9.0", "3.5.1"], "3.9.0 3.5.1 3.1.0"),
        ("3.6.0", ["3.5.0", "3.7.0", "3.5.1", "3.5.9"], "3.5.9 3.5.1 3.7.0 3.5.0"),
        ("3.9.1+cu130", ["3.10.0", "3.9.1", "3.5.1"], "3.9.1 3.10.0 3.5.1"),
        ("3.6.0", ["3.5.0", "3.7.0"], "3.7.0 3.5.0"),
    ],
)
def test_the_nearest_version_is_the_nearest_number(wanted: str, present: list[str], order: str) -> None:
    """Not as text (3.10 is newer than 3.9), nor part by part; of two equally far the newer."""
    assert fallback.nearest_versions(wanted, present) == order.split()


def test_another_version_comes_after_what_the_own_one_knows() -> None:
    """Of the layer at about this batch; a version that does not know the layer is asked after one that does."""
    about, far = SHRINK._replace(chunk_size=32), SHRINK._replace(segment_bucket=1)
    for own, step in (
        (about, "nearest chunk size (32)"),
        (far, "Triton 3.5.1, exact"),
        (SHRINK._replace(input_dim=1536), "Triton 3.5.1, exact"),
    ):
        known = tables(("NVIDIA H200", "3.5.1", [SHRINK]), ("NVIDIA H200", "3.6.0", [own]))
        assert fallback.serve(SHRINK, H200, known).step == step
    known = tables(("NVIDIA H200", "3.5.1", [far]), ("NVIDIA H200", "3.6.0", [SHRINK._replace(input_dim=1536)]))
    assert fallback.serve(SHRINK, H200, known).step == "nearest dimensions (1536 → 3·64)"


def test_gpus_of_one_architecture_lend() -> None:
    """The one with the nearest number of SMs first; after all rows of the own one, if their numbers of SMs differ; and
    never across architectures.
    """
    gpus = {"NVIDIA H200": ("9.0", 132), "NVIDIA H20": ("9.0", 78), "NVIDIA A100": ("8.0", 108)}
    h100 = H200._replace(gpu="NVIDIA H100 PCIe", sm_count=114)
    known = tables(*((gpu, "3.6.0", [SHRINK]) for gpu in gpus), gpus=gpus)
    found = fallback.serve(SHRINK, h100, known)
    assert (found.step, found.gpu, found.triton) == ("GPU NVIDIA H200, exact", "NVIDIA H200", "3.6.0")
    assert fallback.serve(SHRINK, h100._replace(sm_count=90), known).gpu == "NVIDIA H20"
    assert fallback.serve(SHRINK, h100._replace(sm_count=105), known).gpu == "NVIDIA H200"  # as far, and the larger
    older = fallback.serve(SHRINK._replace(segment_bucket=64), h100._replace(triton="3.7.0"), known)
    assert older.step == "GPU NVIDIA H200, Triton 3.6.0, nearest segment bucket (32)"
    for architecture in ("12.0", ""):
        assert fallback.serve(SHRINK, h100._replace(architecture=architecture), known).step == "default"
    known = tables(("NVIDIA H200", "3.6.0", [SHRINK._replace(segment_bucket=1)]), ("NVIDIA H20", "3.6.0", [SHRINK]))
    assert fallback.serve(SHRINK, H200, known._replace(gpus=gpus)).gpu == "NVIDIA H200"


def test_a_gpu_of_as_many_sms_is_nearly_as_good() -> None:
    """Its row for the very key is before the own GPU's for another batch, its others before those for other layers."""
    gpus = {"NVIDIA H100 80GB HBM3": ("9.0", 132), "NVIDIA H200": ("9.0", 132), "NVIDIA H20": ("9.0", 78)}
    about, far = SHRINK._replace(segment_bucket=16), SHRINK._replace(segment_bucket=1)
    other = SHRINK._replace(input_dim=1536)
    for own, twin, step in (
        (SHRINK, SHRINK, "exact"),
        (about, SHRINK, "GPU NVIDIA H100 80GB HBM3, exact"),
        (about, SHRINK._replace(dtype="float16"), "GPU NVIDIA H100 80GB HBM3, other 16-bit dtype (float16)"),
        (about, about, "nearest segment bucket (16)"),
        (far, about, "GPU NVIDIA H100 80GB HBM3, nearest segment bucket (16)"),
        (other, about, "GPU NVIDIA H100 80GB HBM3, nearest segment bucket (16)"),
        (other, far, "nearest dimensions (1536 → 3·64)"),
    ):
        present = ("NVIDIA H100 80GB HBM3", "3.6.0", [twin]), ("NVIDIA H200", "3.6.0", [own])
        assert fallback.serve(SHRINK, H200, tables(*present, gpus=gpus)).step == step
    newer = tables(("NVIDIA H100 80GB HBM3", "3.6.0", [SHRINK]), ("NVIDIA H200", "3.6.0", [about]), gpus=gpus)
    lent = fallback.serve(SHRINK, H200._replace(triton="3.6.1"), newer)
    assert lent.step == "GPU NVIDIA H100 80GB HBM3, Triton 3.6.0, exact"
    for lender, version in (("NVIDIA H20", "3.6.0"), ("NVIDIA H100 80GB HBM3", "3.7.0")):
        known = tables((lender, version, [SHRINK]), ("NVIDIA H200", "3.6.0", [about]), gpus=gpus)
        assert fallback.serve(SHRINK, H200, known).step == "nearest segment bucket (16)"


def test_the_architecture_s_default_comes_last() -> None:
    """That for the nearest number of rows, cut to the key; to float32 and other operations it says nothing."""
    defaults = {"9.0": {"expand": {512: (16, 64, 256, 1, 4, 1, None, False), 4096: EXPAND_ROW}}}
    unknown = H200._replace(gpu="NVIDIA H100 PCIe")
    known = fallback.Tables({}, defaults=defaults)
    found = fallback.serve(EXPAND, unknown, known)
    assert found == (EXPAND_ROW, "default of architecture 9.0", None, None, None)
    few = fallback.serve(EXPAND._replace(segment_bucket=8, max_rank=32), unknown, known)
    assert few.row == (16, 64, 32, 1, 4, 1, None, False)
    wide = fallback.serve(EXPAND._replace(segment_bucket=8, max_rank=256), unknown, known)
    assert wide.row == (16, 64, 128, 1, 4, 2, None, False)
    for key, where in (
        (EXPAND._replace(dtype="float32"), unknown),
        (SHRINK, unknown),
        (EXPAND, unknown._replace(architecture="8.0")),
    ):
        assert fallback.serve(key, where, known).step == "default"
