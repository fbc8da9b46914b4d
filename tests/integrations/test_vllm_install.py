"""install puts csgmv's functions behind vLLM's operators, compiled graphs included, and restores vLLM's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from batches import DEVICE, assert_close
from csgmv.integrations import installation, vllm
from engines import VLLM_SCHEMAS, lay, only, vllm_laid
from vllm_batches import IDS, Meta, expanded, shrunk, some_x, weights

TOKENS = len(IDS)


@pytest.fixture(autouse=True)
def no_vllm() -> Iterator[None]:
    """Whatever vLLM there may be is out of sight; warnings are errors, and none has been given before."""
    installation._warn_untested.cache_clear()
    with only("vllm"), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, in an older Triton's interpreter
        yield
    assert not vllm._replacement._wanted, "a test left its installation behind"


class Layer:
    """One layer by way of vLLM's operators, as its wrapper calls them."""

    def __init__(self) -> None:
        self.x, (self.a, self.b) = some_x(TOKENS), weights((8, 24))
        self.meta = Meta().refill(IDS).arguments(TOKENS)
        self.base = torch.randn(TOKENS, 32, generator=torch.Generator().manual_seed(4)).half().to(DEVICE)

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """The output, added to."""
        h = torch.empty(2, TOKENS, 16, dtype=torch.float32, device=DEVICE)
        torch.ops.vllm.lora_shrink(self.x, self.a, h, *self.meta, 1.0)
        torch.ops.vllm.lora_expand(h, self.b, output, *self.meta, offset_start=0, add_inputs=True)
        return output

    def whose(self) -> str:
        """Whose functions run: the stand-in for vLLM's own sets all to 7."""
        output = self(self.base.clone())
        if (output == 7).all():
            return "vllm"
        want = expanded(shrunk(self.x, self.a, IDS), self.b, IDS, self.base, 0, True)
        assert_close(output, want, torch.float16)
        return "csgmv"


def test_operators_are_replaced_and_restored() -> None:
    """What is called by the operators' names changes, and changes back."""
    with vllm_laid():
        layer = Layer()
        assert layer.whose() == "vllm"
        with vllm.install():
            assert layer.whose() == "csgmv"
        assert layer.whose() == "vllm"


def test_installing_again_counts() -> None:
    """In any order of restoring, twice or not: vLLM's are back when the last installation is restored."""
    with vllm_laid():
        layer, first, second = Layer(), vllm.install(), vllm.install()
        first.restore()
        first.restore()
        assert layer.whose() == "csgmv"
        second.restore()
        assert layer.whose() == "vllm"
        with vllm.install():
            assert layer.whose() == "csgmv"
        assert layer.whose() == "vllm"


def test_graphs_compiled_before_run_them_too() -> None:
    """vLLM compiles its models, and keeps the graphs on disk: these have the operators, not what was behind them."""
    with vllm_laid():
        layer = Layer()
        graph = torch.compile(lambda output: layer(output) + 1, backend="aot_eager", fullgraph=True)
        own = graph(layer.base.clone())
        assert (own == 8).all()
        with vllm.install():
            assert torch.equal(graph(layer.base.clone()), layer(layer.base.clone()) + 1)
        assert torch.equal(graph(layer.base.clone()), own)


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_vllms_switch_for_batch_invariance_is_heeded(batch_invariant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM_BATCH_INVARIANT, as vLLM has read it."""
    seen = []
    for module, name in ((vllm.shrink, "lora_shrink"), (vllm.expand, "lora_expand")):
        monkeypatch.setattr(module, name, lambda *_, **how: seen.append(how["batch_invariant"]))
    with vllm_laid(batch_invariant=batch_invariant), vllm.install():
        layer = Layer()
        layer(layer.base)
    assert seen == [batch_invariant] * 2


def test_without_vllm_it_says_so() -> None:
    """By name, with the version that would do."""
    with pytest.raises(ModuleNotFoundError, match=r"vllm is not installed.*tested with vllm 0\.33\.0"):
        vllm.install()


def test_other_operators_are_refused() -> None:
    """Other arguments, as versions before 0.33 have them, and none at all: nothing is replaced."""
    older = VLLM_SCHEMAS["lora_expand"].replace("{meta}", "Tensor token_lora_mapping, Tensor lora_ids")
    with vllm_laid(lora_expand=older):
        with pytest.raises(
            RuntimeError, match=r"vllm 0\.33\.0: expected vllm::lora_expand\(inputs, .*, found \(inputs"
        ):
            vllm.install()
        layer = Layer()
        h = torch.zeros(2, TOKENS, 16, device=DEVICE)
        torch.ops.vllm.lora_shrink(layer.x, layer.a, h, *layer.meta, 1.0)
        assert (h == 7).all()
    with (
        vllm_laid(lora_shrink=""),
        pytest.raises(RuntimeError, match="expected an operator vllm::lora_shrink, found none"),
    ):
        vllm.install()
    lay("vllm", __version__="0.33.0")
    with pytest.raises(RuntimeError, match=r"expected a module vllm\.lora\.ops\.triton_ops, found none"):
        vllm.install()


@pytest.mark.parametrize(("version", "warns"), [("0.33.0", 0), ("0.33.0+cu130", 0), ("0.34.0", 1)])
def test_versions_that_were_not_tested_are_warned_of_once(version: str, warns: int) -> None:
    """With the version found and the one that was tested."""
    with vllm_laid(version), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            vllm.install().restore()
    assert [str(warning.message)[:84] for warning in caught] == [
        "csgmv.integrations.vllm was tested with vllm 0.33.0; vllm 0.34.0 is installed, whose"
    ] * warns
