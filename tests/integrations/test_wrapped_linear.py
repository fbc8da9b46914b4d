"""Layers that read the same tensor share one call of add_lora, where it is certain that they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from csgmv.integrations import linear_layers, wrapped_linear
from csgmv.integrations.transformers import MultiLoRA
from serving_toys import DEVICE, WIDTHS, Attention, expected, merged, save, three

NAMES = ["qv", "all", None, "o"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of slices of each call."""
    made: list[int] = []
    real = wrapped_linear.add_lora

    def counted(base: Any, x: torch.Tensor, a: Any, b: Any, segments: object, offsets: Any, **how: bool) -> Any:
        made.append(len(offsets) - 1)
        return real(base, x, a, b, segments, offsets, **how)

    monkeypatch.setattr(wrapped_linear, "add_lora", counted)
    return made


def inputs(rows: int = 4, tokens: int = 3) -> torch.Tensor:
    return torch.randn(rows, tokens, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)


@pytest.mark.parametrize("inference", [False, True])
def test_one_call_for_three(tmp_path: Path, calls: list[int], inference: bool) -> None:
    """The result is that of each row's adapter merged into the weights; nothing is kept afterwards."""
    folders, model, x = three(tmp_path), Attention(), inputs()
    with MultiLoRA(model, folders) as many, many.use(NAMES):
        with torch.inference_mode(inference):
            got = model(x)
        assert calls == [3, 1]
        assert all(shared._ahead is None for shared in many._serving.inputs)
    torch.testing.assert_close(got, expected(folders, NAMES, x), rtol=1e-5, atol=1e-5)


def test_each_layer_computes_its_own_output_once(tmp_path: Path) -> None:
    """Whoever is called first; a module's hooks run when it is called."""
    model, x, seen = Attention(), inputs(), []
    for name in ("q_proj", "k_proj", "v_proj"):
        module = getattr(model, name)
        own = module.forward
        module.forward = lambda x, own=own, name=name: (seen.append(name), own(x))[1]
        module.register_forward_hook(lambda *_, name=name: seen.append(f"{name} called"))
    with MultiLoRA(model, three(tmp_path)) as many, many.use(NAMES):
        model(x)
    assert seen == ["q_proj", "k_proj", "v_proj", "q_proj called", "k_proj called", "v_proj called"]


def test_another_or_a_changed_input_gets_a_call_of_its_own(tmp_path: Path, calls: list[int]) -> None:
    """An equal tensor, one in the same memory, or one that was written to in between: nothing of the first counts."""
    folders, model, x = three(tmp_path), Attention(), inputs(1)
    want = merged(folders["all"])
    with MultiLoRA(model, folders) as many, many.use(["all"]):
        for change in (torch.clone, torch.Tensor.detach, lambda x: x.mul_(2)):
            calls.clear()
            x = x.clone()
            got = model.q_proj(x), model.k_proj(x := change(x)), model.v_proj(x), model.q_proj(x)
            assert calls == [3, 3]
            torch.testing.assert_close(got[1], want.k_proj(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got[2], want.v_proj(x), rtol=1e-5, atol=1e-5)
        model.q_proj(x)
        shared = many._serving.inputs[0]
    assert shared._ahead is None, "what was kept for a layer that did not come is let go of"


def test_layers_that_do_not_share_stop_waiting(tmp_path: Path, calls: list[int]) -> None:
    """A model that calls k and v with something else computes them in vain three times a batch; all results are right.

    The next batch tries again, and a model that shares after all does so from then on.
    """
    folders, model = three(tmp_path), Attention()
    want, x, other = merged(folders["all"]), inputs(1), inputs(1) + 1
    with MultiLoRA(model, folders) as many:
        for _ in range(2):
            calls.clear()
            with many.use(["all"]):
                for _ in range(3):
                    got = model.q_proj(x), model.k_proj(other), model.v_proj(other)
                    for name, one, at in zip(("q_proj", "k_proj", "v_proj"), got, (x, other, other)):
                        torch.testing.assert_close(one, getattr(want, name)(at), rtol=1e-5, atol=1e-5)
            assert calls == [3, 3, 3, 1, 1, 1, 1, 1]
        calls.clear()
        with many.use(["all"]):
            model(x)
        assert calls == [3, 1]


def test_an_aborted_call_spoils_nothing(tmp_path: Path, calls: list[int]) -> None:
    """However often."""
    folders, model, x = three(tmp_path), Attention(), inputs(1)
    with MultiLoRA(model, folders) as many:
        for _ in range(5):
            with many.use(["all"]):
                model.q_proj(x)
        calls.clear()
        with many.use(["all"]):
            got = model(x)
    assert calls == [3, 1]
    torch.testing.assert_close(got, expected(folders, ["all"], x), rtol=1e-5, atol=1e-5)


def test_gradients_are_refused_before_anything_is_added(tmp_path: Path, calls: list[int]) -> None:
    """And nothing with a graph is kept for a layer to come."""
    folders, model, x = three(tmp_path), Attention(), inputs(1)
    model.requires_grad_()
    with MultiLoRA(model, folders) as many, many.use(["all"]):
        with pytest.raises(RuntimeError, match="q_proj: adapters are for inference"):
            model.q_proj(x)
        assert calls == []
        with torch.no_grad():
            assert not model.k_proj(x).requires_grad


def test_keys_and_values_of_cross_attention_share_nothing_with_queries() -> None:
    """As transformers names it; what else models call with one tensor does."""
    model = nn.ModuleDict({name: Attention() for name in ("self_attn", "encoder_attn", "crossattention")})
    linears = linear_layers.of(model, None)
    paths = [path for path, linear in linears.items() if linear is not None]
    together = [group for group in linear_layers.groups(paths, linears) if len(group) > 1]
    assert together == [[f"self_attn.{name}_proj" for name in "qkv"]]


def test_layers_alike_have_the_very_same_offsets(tmp_path: Path) -> None:
    """A launch like one before checks offsets again, unless they are the object that it knows."""
    models = Attention(), Attention()
    with MultiLoRA(models[0], three(tmp_path)) as one, MultiLoRA(models[1], {}, target_modules=[*WIDTHS]) as other:
        for mine, theirs in zip(one._serving.inputs, other._serving.inputs):
            assert mine._offsets is theirs._offsets
            assert all(a[2] is b[2] for a, b in zip(mine._alone, theirs._alone))


def test_what_a_layer_alone_is_told_reaches_it(tmp_path: Path, calls: list[int]) -> None:
    """A linear-like module's further arguments; its output is then its own affair."""

    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor, by: float = 1.0) -> torch.Tensor:  # noqa: A002
            return super().forward(input) * by

    folders, model, x = three(tmp_path), Attention(), inputs(1)
    want = merged(folders["all"])
    scaled = Scaled(32, 24).to(DEVICE)
    scaled.load_state_dict(model.q_proj.state_dict())
    model.q_proj = scaled.requires_grad_(False)
    with MultiLoRA(model, folders) as many, many.use(["all"]):
        got = model.q_proj(x, by=3.0)
    assert calls == [1]
    bare = Attention().q_proj(x)
    torch.testing.assert_close(got, 3 * bare + (want.q_proj(x) - bare), rtol=1e-5, atol=1e-5)


def test_ranks_and_scalings_may_differ_among_the_three(tmp_path: Path) -> None:
    """By PEFT's patterns; a slot's earlier adapter, of higher ranks and other targets, leaves nothing behind."""
    import json

    from safetensors.torch import save_file

    x = inputs(2)
    folder = tmp_path / "patterned"
    folder.mkdir()
    ranks, alphas = {"q_proj": 3, "k_proj": 9, "v_proj": 5}, {"q_proj": 6, "k_proj": 3, "v_proj": 0}
    tensors = {}
    for name, rank in ranks.items():
        width = getattr(Attention(), name).out_features
        for matrix, shape in (("A", (rank, 32)), ("B", (width, rank))):
            tensors[f"base_model.model.{name}.lora_{matrix}.weight"] = torch.randn(shape) / shape[1] ** 0.5
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [*ranks]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": ranks, "alpha_pattern": alphas}))
    model, before = Attention(), save(tmp_path / "before", 16, 2.0, ["q_proj", "k_proj", "v_proj", "o_proj"])
    with MultiLoRA(model, {"before": before}) as many:
        many.remove("before")
        many.add("patterned", folder)
        with many.use(["patterned", None]), torch.no_grad():
            got = {name: getattr(model, name)(y) for y in (x,) for name in ranks}
    for name, rank in ranks.items():
        a, b = (tensors[f"base_model.model.{name}.lora_{matrix}.weight"].to(DEVICE) for matrix in "AB")
        bare = getattr(Attention(), name)(x)
        torch.testing.assert_close(got[name][1], bare[1])
        delta = alphas[name] / rank * x[0] @ a.T @ b.T
        torch.testing.assert_close(got[name][0], bare[0] + delta, rtol=1e-5, atol=1e-5)


def test_a_later_layer_joins_no_group(tmp_path: Path, calls: list[int]) -> None:
    """Slices are where they are: k, which the second adapter brings, is called by itself; all three stay right."""
    folders, model, x = three(tmp_path), Attention(), inputs(2)
    with MultiLoRA(model, {"qv": folders["qv"]}, max_loras=2) as many:
        many.add("all", folders["all"])
        with many.use(["all", "qv"]):
            got = model(x)
    assert calls == [2, 1, 1]
    torch.testing.assert_close(got, expected(folders, ["all", "qv"], x), rtol=1e-5, atol=1e-5)
