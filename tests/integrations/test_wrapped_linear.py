"""Layers that read the same tensor share one shrink, where it is certain that they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csgmv.integrations import wrapped_linear
from csgmv.integrations.transformers import MultiLoRA
from serving_toys import DEVICE, Attention, expected, merged, three

NAMES = ["qv", "all", None, "o"]


@pytest.fixture
def shrinks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of slices of each shrink that is shared."""
    calls: list[int] = []
    real = wrapped_linear.lora_shrink

    def counted(x: torch.Tensor, lora_a: torch.Tensor, segments: object, slices: int, **how: bool) -> torch.Tensor:
        calls.append(slices)
        return real(x, lora_a, segments, slices, **how)

    monkeypatch.setattr(wrapped_linear, "lora_shrink", counted)
    return calls


def inputs(rows: int = 4, tokens: int = 3) -> torch.Tensor:
    return torch.randn(rows, tokens, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)


@pytest.mark.parametrize("inference", [False, True])
def test_one_shrink_for_three(tmp_path: Path, shrinks: list[int], inference: bool) -> None:
    """The result is that of each row's adapter merged into the weights; nothing is kept afterwards."""
    folders, model, x = three(tmp_path), Attention(), inputs()
    with MultiLoRA(model, folders) as many, many.use(NAMES):
        with torch.inference_mode(inference):
            got = model(x)
        assert shrinks == [3]
        assert all(shared._shrunk is None for shared in many._serving.inputs)
    torch.testing.assert_close(got, expected(folders, NAMES, x), rtol=1e-5, atol=1e-5)


def test_another_or_a_changed_input_gets_a_shrink_of_its_own(tmp_path: Path, shrinks: list[int]) -> None:
    """An equal tensor, one in the same memory, or one that was written to in between."""
    folders, model, x = three(tmp_path), Attention(), inputs(1)
    want = merged(folders["all"])
    with MultiLoRA(model, folders) as many, many.use(["all"]):
        for count, change in enumerate((torch.clone, torch.Tensor.detach, lambda x: x.mul_(2)), 1):
            shrinks.clear()
            x = x.clone()
            got = model.q_proj(x), model.k_proj(x := change(x)), model.v_proj(x)
            assert shrinks == [3, 3], count
            assert [shared._shrunk for shared in many._serving.inputs] != [None] * 2  # v's turn was the first k's
            torch.testing.assert_close(got[1], want.k_proj(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got[2], want.v_proj(x), rtol=1e-5, atol=1e-5)
        shared = many._serving.inputs[0]
    assert shared._shrunk is None, "what was kept for a layer that did not come is let go of"


def test_a_later_layer_joins_no_group(tmp_path: Path, shrinks: list[int]) -> None:
    """Slices of A are where they are: k, which the second adapter brings, has its own A; all three stay right."""
    folders, model, x = three(tmp_path), Attention(), inputs(2)
    with MultiLoRA(model, {"qv": folders["qv"]}, max_loras=2) as many:
        many.add("all", folders["all"])
        with many.use(["all", "qv"]):
            got = model(x)
    assert shrinks == [2]
    torch.testing.assert_close(got, expected(folders, ["all", "qv"], x), rtol=1e-5, atol=1e-5)


def test_layers_alike_have_the_very_same_offsets(tmp_path: Path) -> None:
    """A launch like one before checks offsets again, unless they are the object that it knows."""
    models = Attention(), Attention()
    with MultiLoRA(models[0], three(tmp_path)) as one, MultiLoRA(models[1], {}, target_modules=["v_proj"]) as other:
        q, k, v, o = (one._model.layers[name]._offsets for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        alone = other._model.layers["v_proj"]._offsets
    assert (q, k, v, o, alone) == ((0, 24, 24, 24), (0, 0, 8, 8), (0, 0, 0, 16), (0, 32), (0, 16))
    with MultiLoRA(models[0], {}, target_modules=["q_proj", "k_proj", "v_proj"]) as again:
        assert again._model.layers["k_proj"]._offsets is k
