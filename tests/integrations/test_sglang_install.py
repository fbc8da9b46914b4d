"""install puts csgmv's functions in the place of sglang's, in both layouts, and restores exactly those."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from batches import DEVICE
from csgmv.integrations import installation, sglang
from engines import BACKEND, EXPAND, NEW, OLD, SGLANGS_OWN, SHRINK, Backend, lay, lay_sglang, only
from sglang_batches import batch_info

OURS = {SHRINK: sglang.chunked_sgmv_lora_shrink_forward, EXPAND: sglang.chunked_sgmv_lora_expand_forward}


@pytest.fixture(autouse=True)
def no_sglang() -> Iterator[None]:
    """Whatever sglang there may be is out of sight; warnings are errors, and none has been given before."""
    installation._warn_untested.cache_clear()
    with only("sglang"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert not sglang._replacement._wanted, "a test left its installation behind"


def places(layout: str) -> list[tuple[str, str]]:
    """Where the functions' names are: each module and name."""
    homes = [(f"{layout}.chunked_sgmv_shrink", SHRINK), (f"{layout}.chunked_sgmv_expand", EXPAND)]
    importers = [BACKEND, *([OLD] if layout == OLD else [])]
    return homes + [(module, name) for module in importers for name in (SHRINK, EXPAND)]


def found(layout: str) -> set[str]:
    """Whose functions the names are of."""
    whose = dict.fromkeys(OURS.values(), "csgmv") | dict.fromkeys(SGLANGS_OWN.values(), "sglang")
    return {whose[getattr(sys.modules[module], name)] for module, name in places(layout)}


@pytest.mark.parametrize("layout", [OLD, NEW])
def test_every_name_of_the_functions_is_replaced_and_restored(layout: str) -> None:
    """In their homes, in the package and in the backend that imported them; other names and modules stay."""
    lay_sglang(layout)
    elsewhere = lay("not_sglang", theirs=SGLANGS_OWN[SHRINK])
    sys.modules[BACKEND].other = other = lambda: None
    with sglang.install():
        assert found(layout) == {"csgmv"}
        assert elsewhere.theirs is SGLANGS_OWN[SHRINK]
        assert sys.modules[BACKEND].other is other
    assert found(layout) == {"sglang"}
    del sys.modules["not_sglang"]


@pytest.mark.parametrize("layout", [OLD, NEW])
def test_modules_imported_later_have_them_too(layout: str) -> None:
    """They take what the homes have; and get sglang's own back with all others."""
    lay_sglang(layout, backend=layout == OLD)
    installed = sglang.install()
    later = lay("sglang.later", run=getattr(sys.modules[f"{layout}.chunked_sgmv_expand"], EXPAND))
    assert later.run is OURS[EXPAND]
    installed.restore()
    assert later.run is SGLANGS_OWN[EXPAND]


def test_installing_again_counts() -> None:
    """In any order of restoring, twice or not: sglang's are back when the last installation is restored."""
    lay_sglang(NEW)
    first, second, third = sglang.install(), sglang.install(), sglang.install()
    second.restore()
    second.restore()
    first.restore()
    assert found(NEW) == {"csgmv"}
    third.restore()
    assert found(NEW) == {"sglang"}
    first.restore()
    with sglang.install():
        assert found(NEW) == {"csgmv"}
    assert found(NEW) == {"sglang"}


def test_an_error_inside_restores() -> None:
    """The end of a with statement, however it is come by."""
    lay_sglang(NEW)
    with pytest.raises(KeyError), sglang.install():
        raise KeyError
    assert found(NEW) == {"sglang"}


def test_what_others_put_over_csgmvs_stays() -> None:
    """A name that has something else when it is restored is not csgmv's to change."""
    lay_sglang(NEW)
    installed = sglang.install()
    sys.modules[BACKEND].chunked_sgmv_lora_shrink_forward = wrapped = lambda: None
    installed.restore()
    assert sys.modules[BACKEND].chunked_sgmv_lora_shrink_forward is wrapped
    assert sys.modules[BACKEND].chunked_sgmv_lora_expand_forward is SGLANGS_OWN[EXPAND]


def test_without_sglang_it_says_so() -> None:
    """By name, with the versions that would do."""
    with pytest.raises(ModuleNotFoundError, match=r"sglang is not installed.*0\.5\.11 and 0\.5\.23") as raised:
        sglang.install()
    assert raised.value.name == "sglang"


def test_another_layout_is_refused() -> None:
    """The version, and where the functions were looked for."""
    lay("sglang", __version__="0.5.23")
    with pytest.raises(RuntimeError, match=f"sglang 0.5.23: expected chunked_sgmv_shrink and .* in {NEW} or {OLD}"):
        sglang.install()


def test_other_arguments_are_refused() -> None:
    """A function that may be called with what csgmv's does not know is not replaced, nor is the other one."""
    lay_sglang(NEW, **{EXPAND: lambda x, weights, fused: (x, weights, fused)})
    before = getattr(sys.modules[BACKEND], EXPAND)
    with pytest.raises(RuntimeError, match=f"{EXPAND}: takes fused, which csgmv's does not"):
        sglang.install()
    assert getattr(sys.modules[BACKEND], EXPAND) is before
    assert getattr(sys.modules[BACKEND], SHRINK) is SGLANGS_OWN[SHRINK]


def test_an_sglang_that_cannot_be_imported_is_no_absent_one(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """What it misses is said, not that sglang is missing."""
    (tmp_path / "sglang.py").write_text("import a_module_that_sglang_needs")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_module_that_sglang_needs'"):
        sglang.install()


@pytest.mark.parametrize(("version", "warns"), [("0.5.11", 0), ("0.5.23+cu130", 0), ("0.6.0", 1), (None, 1)])
def test_versions_that_were_not_tested_are_warned_of_once(version: str | None, warns: int) -> None:
    """With the version found and those that were tested."""
    lay_sglang(NEW)
    if version is None:
        del sys.modules["sglang"].__version__
    else:
        sys.modules["sglang"].__version__ = version
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            sglang.install().restore()
    assert len(caught) == warns
    for warning in caught:
        assert warning.filename == __file__
        assert f"tested with sglang 0.5.11 and 0.5.23; sglang {version or 'of unknown version'}" in str(warning.message)


@pytest.mark.parametrize("layout", [OLD, NEW])
def test_graphs_batches_end_with_empty_segments(layout: str) -> None:
    """0.5.11 leaves an earlier batch's segments behind a smaller one's, which csgmv's kernels would run; 0.5.23 is its
    own affair. Batches for no graph are not touched.
    """
    lay_sglang(layout)
    backend = sys.modules[BACKEND].ChunkedSgmvLoRABackend
    with sglang.install():
        serving, info = backend(), batch_info(static=True)
        info.seg_indptr = torch.arange(9, dtype=torch.int32, device=DEVICE)
        eager = batch_info()
        eager.seg_indptr = torch.arange(9, dtype=torch.int32, device=DEVICE)
        before = eager.seg_indptr.clone()
        assert serving.prepare_lora_batch(info, indptr=[0, 3, 7]) == "prepared"
        tail = [7] * 6 if layout == OLD else [3, 4, 5, 6, 7, 8]
        assert info.seg_indptr.tolist() == [0, 3, 7, *tail]
        serving.prepare_lora_batch(eager, indptr=[0, 1])
        assert torch.equal(eager.seg_indptr, before)
    assert backend.prepare_lora_batch is Backend.prepare_lora_batch
