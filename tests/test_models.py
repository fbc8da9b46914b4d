"""Layer shapes are those that transformers builds, split over tensor-parallel ranks as serving engines split them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from csgmv.decoders import GATED_DENSE, MIXTURES, groups
from csgmv.models import QWEN3_EMBEDDING_0_6B, LayerShape, layer_shapes, parse_layer
from fabricated import LLAMA

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
}


def folder(path: Path, config: dict[str, object]) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def shapes(layers: list[LayerShape]) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {layer.name: (layer.input_dim, layer.slice_widths) for layer in layers}


def test_qwen3_embedding_reads_as_the_constant_says(tmp_path: Path) -> None:
    """head_dim is the config's own, not hidden_size / heads; o takes heads · head_dim."""
    pytest.importorskip("transformers")
    assert tuple(layer_shapes(folder(tmp_path, QWEN3))) == QWEN3_EMBEDDING_0_6B


def test_llama_derives_head_dim_and_groups_key_value_heads(tmp_path: Path) -> None:
    """Without head_dim it is hidden_size / heads; a name may be a str or a Path."""
    pytest.importorskip("transformers")
    assert shapes(layer_shapes(str(folder(tmp_path, LLAMA)))) == {
        "qkv": (96, (96, 32, 32)),
        "o": (96, (96,)),
        "gate_up": (96, (264, 264)),
        "down": (264, (96,)),
    }


@pytest.mark.parametrize("kind", ["gemma2", "phi3"])
def test_other_dense_decoders_read_alike(tmp_path: Path, kind: str) -> None:
    """Gemma 2 with its own head_dim; Phi-3, whose projections are merged, in the same four groups."""
    pytest.importorskip("transformers")
    config = {**LLAMA, "model_type": kind, "pad_token_id": 0}
    if kind == "gemma2":
        config["head_dim"] = 40
    head_dim = 40 if kind == "gemma2" else 8
    found = shapes(layer_shapes(folder(tmp_path, config)))
    assert found["qkv"] == (96, (12 * head_dim, 4 * head_dim, 4 * head_dim))
    assert found["o"] == (12 * head_dim, (96,))


def test_multimodal_configs_are_read_at_their_text_config(tmp_path: Path) -> None:
    """Of a LLaVA config the decoder's dimensions count, not the vision tower's."""
    pytest.importorskip("transformers")
    config = {
        "model_type": "llava",
        "text_config": LLAMA,
        "vision_config": {"hidden_size": 48, "intermediate_size": 72},
    }
    assert shapes(layer_shapes(folder(tmp_path, config)))["down"] == (264, (96,))
    nested = SimpleNamespace(model_type="wrapper", text_config=SimpleNamespace(**LLAMA))
    assert shapes(layer_shapes(nested))["down"] == (264, (96,))


@pytest.mark.parametrize(
    ("tp", "expected"),
    [
        (2, {"qkv": (96, (48, 16, 16)), "o": (48, (96,)), "gate_up": (96, (132, 132)), "down": (132, (96,))}),
        (12, {"qkv": (96, (8, 8, 8)), "o": (8, (96,)), "gate_up": (96, (22, 22)), "down": (22, (96,))}),
    ],
)
def test_tensor_parallel_splits(tp: int, expected: dict[str, object]) -> None:
    """qkv and gate_up lose columns, o and down rows; over 12 ranks each of 4 key-value heads is there thrice."""
    assert shapes(layer_shapes(SimpleNamespace(**LLAMA), tp=tp)) == expected


@pytest.mark.parametrize(
    ("config", "tp", "message"),
    [
        (LLAMA, 5, "tp: expected a number that divides num_attention_heads = 12, got 5"),
        (LLAMA, 6, "tp: expected a number that divides num_key_value_heads = 4, got 6"),
        ({**LLAMA, "intermediate_size": 262}, 4, "tp: expected a number that divides intermediate_size = 262, got 4"),
    ],
)
def test_uneven_splits_are_refused(config: dict[str, object], tp: int, message: str) -> None:
    """The dimension that does not divide is named."""
    with pytest.raises(ValueError, match=message):
        layer_shapes(SimpleNamespace(**config), tp=tp)


def test_mixtures_of_experts_are_refused_by_name(tmp_path: Path) -> None:
    """The message has the model's type, what gave it away, and the way out."""
    pytest.importorskip("transformers")
    config = {**LLAMA, "model_type": "jamba", "num_local_experts": 4}
    with pytest.raises(ValueError, match=r"'jamba', a mixture of experts \(.*num_local_experts = 4.*--layer"):
        layer_shapes(folder(tmp_path, config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "model_type": "nemotron"}, "got 'nemotron'; pass its layers by hand"),
        (
            {**LLAMA, "intermediate_size": [8, 16]},
            r"intermediate_size of 'llama' to be a positive integer, got \[8, 16\]",
        ),
    ],
)
def test_configs_of_another_make_are_refused(config: dict[str, object], message: str) -> None:
    """Having the attributes is not enough: what has no gate, or layers of unequal sizes, is named and refused."""
    with pytest.raises(ValueError, match=message):
        layer_shapes(SimpleNamespace(**config))


@pytest.mark.parametrize("kind", sorted(GATED_DENSE))
def test_every_listed_type_builds_these_layers(kind: str) -> None:
    """One decoder layer of each type, made by transformers on the meta device, has the computed dimensions."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if kind not in mapping:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 136}
    if "2_vl" not in kind and "2_5_vl" not in kind:  # these have no head_dim of their own
        sizes["head_dim"] = 24
    config = mapping[kind](**sizes, num_hidden_layers=1, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.device("meta"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(config)
        except ValueError:  # the text part of a multimodal model
            model = transformers.AutoModel.from_config(config)
    built = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    }
    found = shapes(layer_shapes(config))
    hidden, (q, k, v) = found["qkv"]
    gate, up = found["gate_up"][1]
    merged = {"qkv_proj": (hidden, q + k + v), "gate_up_proj": (hidden, gate + up)}
    expected = {
        "q_proj": (hidden, q),
        "k_proj": (hidden, k),
        "v_proj": (hidden, v),
        "o_proj": (found["o"][0], found["o"][1][0]),
        "gate_proj": (hidden, gate),
        "up_proj": (hidden, up),
        "down_proj": (found["down"][0], found["down"][1][0]),
        **merged,
    }
    assert built == {name: expected[name] for name in built}
    assert {"o_proj", "down_proj"} < built.keys()


# What each mixture needs beside the usual sizes; layer 0 is one without experts, where the type has such layers.
_DEEPSEEK = {
    "q_lora_rank": 32,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 40,
    "num_key_value_heads": 6,
}
_FIRST_DENSE = {"n_routed_experts": 4, "n_shared_experts": 2, "moe_intermediate_size": 40, "first_k_dense_replace": 1}
_LISTED_DENSE = {"num_experts": 4, "moe_intermediate_size": 40, "mlp_only_layers": [0]}
MIXED: dict[str, dict[str, object]] = {
    "deepseek_v2": _DEEPSEEK | _FIRST_DENSE,
    "deepseek_v3": _DEEPSEEK | _FIRST_DENSE,
    "dots1": {**_FIRST_DENSE, "head_dim": 24},
    "ernie4_5_moe": {"moe_num_shared_experts": 2, "moe_intermediate_size": 40, "moe_layer_start_index": 1},
    "glm4_moe": {**_FIRST_DENSE, "head_dim": 24},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 24},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 200, "moe_layers": [1], "head_dim": 24},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "qwen2_moe": {**_LISTED_DENSE, "shared_expert_intermediate_size": 56},
    "qwen3_moe": {**_LISTED_DENSE, "head_dim": 24},
    "qwen3_vl_moe_text": {**_LISTED_DENSE, "head_dim": 24},
}


@pytest.mark.parametrize("kind", sorted(MIXTURES))
def test_the_dense_parts_of_mixtures_are_those_that_transformers_builds(kind: str) -> None:
    """Every linear layer outside of routers and experts, by its path: nothing is missing, nothing is made up."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if kind not in mapping:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 136}
    ends = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = mapping[kind](**{**sizes, **ends, "num_hidden_layers": 2, **MIXED[kind]})
    with torch.device("meta"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(config)
        except ValueError:  # the text part of a multimodal model
            model = transformers.AutoModel.from_config(config)
    built = {
        name.partition("layers.")[2].partition(".")[2]: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name and ".experts." not in name
    }
    built = {name: size for name, size in built.items() if name.endswith(("_proj", "_proj_with_mqa"))}
    found = {
        module: (group.input_dim, width)
        for group in groups(config, 1)
        for module, width in zip(group.modules, group.slice_widths)
        if "." in module
    }
    assert found == built


def test_mixtures_without_plain_layers_have_no_mlp_but_the_shared_one() -> None:
    """Which layers have experts is the config's to say; a shared MLP has names of its own and is split alike."""
    config = SimpleNamespace(
        **{**LLAMA, "model_type": "qwen2_moe"},
        num_experts=4,
        shared_expert_intermediate_size=56,
        mlp_only_layers=[],
        decoder_sparse_step=1,
    )
    assert shapes(layer_shapes(config, tp=2)) == {
        "qkv": (96, (48, 16, 16)),
        "o": (48, (96,)),
        "shared_gate_up": (96, (28, 28)),
        "shared_down": (28, (96,)),
    }
    config.decoder_sparse_step = 2
    assert shapes(layer_shapes(config))["down"] == (264, (96,))


def test_merged_projections_give_both_calls() -> None:
    """Phi-3's adapters have one A for q, k and v: engines repeat it for each slice, or make one slice of all."""
    found = shapes(layer_shapes(SimpleNamespace(**{**LLAMA, "model_type": "phi3"}), tp=2))
    assert found == {
        "qkv": (96, (48, 16, 16)),
        "qkv_proj": (96, (80,)),
        "o": (48, (96,)),
        "gate_up": (96, (132, 132)),
        "gate_up_proj": (96, (264,)),
        "down": (132, (96,)),
    }


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["q_proj", "v_proj"], ["qkv"]),
        (["self_attn.o_proj", "model.layers.3.mlp.up_proj"], ["o", "gate_up"]),
        ("all-linear", ["qkv", "o", "gate_up", "down"]),
        (r".*\.layers\.[2-3]\..*(down|o)_proj", ["o", "down"]),
        (r"model\.language_model\..*\.k_proj", ["qkv"]),
        (["down_proj", "lm_head", "embed_tokens"], ["down", "lm_head"]),
        (["gate_proj", "embed_tokens"], ["gate_up", "embed_tokens"]),
    ],
)
def test_targets_choose_layers(targets: str | list[str], names: list[str]) -> None:
    """By the ends of paths, or by one expression for whole paths; logits and embeddings only if they are named."""
    config = SimpleNamespace(**LLAMA, vocab_size=1001, num_hidden_layers=4)
    found = shapes(layer_shapes(config, targets=targets))
    assert list(found) == names
    if "lm_head" in names:
        assert found["lm_head"] == (96, (1001,))
        assert shapes(layer_shapes(config, tp=2, targets=targets))["lm_head"] == (96, (501,))
    if "embed_tokens" in names:
        assert found["embed_tokens"][1] == (96,)


def test_targets_that_are_no_layers_are_told() -> None:
    """Some of them: a warning that names them; all of them: an error with the dimensions to pass by hand."""
    config = SimpleNamespace(**LLAMA)
    with pytest.warns(UserWarning, match=r"left out fc1, conv; pass its layers by hand.*hidden_size = 96"):
        assert list(shapes(layer_shapes(config, targets=["fc1", "o_proj", "conv"]))) == ["o"]
    with pytest.raises(ValueError, match=r"expected any of self_attn\.q_proj, .*got \['fc1'\]; pass its layers"):
        layer_shapes(config, targets=["fc1"])


def test_what_cannot_be_read_comes_with_the_dimensions_to_pass() -> None:
    """Each layer's form in the config's own terms, and what the config says of these."""
    with pytest.raises(ValueError, match="expected one of") as caught:
        layer_shapes(SimpleNamespace(**{**LLAMA, "model_type": "nemotron"}, head_dim=8))
    message = str(caught.value)
    assert "o:heads*head_dim:hidden_size" in message
    assert "hidden_size = 96, num_attention_heads = 12, num_key_value_heads = 4, head_dim = 8" in message


def test_layers_by_hand() -> None:
    """NAME:INPUT_DIM:W1+W2+W3"""
    assert parse_layer("qkv:1024:2048+1024+1024") == QWEN3_EMBEDDING_0_6B[0]


def test_a_missing_folder_is_not_asked_of_the_hub(tmp_path):
    """What looks like a path is one."""
    with pytest.raises(ValueError, match=r"got no folder .*nowhere"):
        layer_shapes(str(tmp_path / "nowhere"))
