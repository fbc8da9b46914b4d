"""adapter_config.json is read as PEFT reads it, or refused by the name of what cannot be honoured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key

from csgmv.integrations.peft_config import AdapterConfig, Size

PATHS = [
    "lm_head",
    "q_proj",
    "model.embed_tokens",
    *(
        f"model.layers.{layer}.{module}"
        for layer in (0, 1, 2, 11)
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.experts.1.up_proj", "mlp.not_q_proj")
    ),
    "vision.blocks.1.q_proj",
]


def written(folder: Path, **config: Any) -> Path:
    known = {"peft_type": "LORA", "r": 8, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(known))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["self_attn.q_proj", "lm_head"]},
        {"target_modules": ["model.layers.11.mlp.up_proj", "o_proj"], "layers_to_transform": [0, 11]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 2], "layers_pattern": "layers"},
        {
            "target_modules": ["q_proj", "up_proj"],
            "layers_to_transform": [1],
            "layers_pattern": ["nothing", "blo(c)ks"],
        },
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": r".*\.(0|11)\..*_proj"},
        {"target_modules": r"layers\.0\..*"},
        {
            "target_modules": ["q_proj", "up_proj"],
            "exclude_modules": ["model.layers.0.self_attn.q_proj", "experts.1.up_proj"],
        },
        {"target_modules": r".*_proj", "exclude_modules": r".*\.experts\..*"},
    ],
)
def test_targets_what_peft_targets(tmp_path: Path, config: dict[str, Any]) -> None:
    """Names, regular expressions, exclusions and chosen layers, path by path."""
    theirs = peft.LoraConfig(**config)
    theirs.save_pretrained(tmp_path)
    found = (check_target_module_exists(theirs, path) for path in PATHS)
    wanted = {path for path, hit in zip(PATHS, found) if hit and not isinstance(hit, _ExcludedModule)}
    assert set(AdapterConfig.read(tmp_path).sizes(PATHS, ())) == wanted


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_scalings_are_peft_s(tmp_path: Path, rslora: bool) -> None:
    """The first pattern that matches the end of a path counts, for rank and alpha apart."""
    ranks = {"q_proj": 2, r"layers\.1\..*": 16, "up_proj": 4}
    alphas = {"experts.1.up_proj": 32, r"\d+\.mlp\.up_proj": 6}
    written(tmp_path, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=rslora, target_modules=r".*_proj")
    sizes = AdapterConfig.read(tmp_path).sizes(PATHS, ())
    assert len(sizes) == len(PATHS) - 2
    assert len(set(sizes.values())) > 4
    for path, size in sizes.items():
        rank = ranks.get(get_pattern_key(ranks.keys(), path), 8)
        alpha = alphas.get(get_pattern_key(alphas.keys(), path), 4)
        assert size == Size(rank, alpha / (math.sqrt(rank) if rslora else rank))


def test_all_linear_is_what_the_model_says(tmp_path: Path) -> None:
    """In any case of letters, less what is excluded."""
    written(tmp_path, target_modules="All-Linear", exclude_modules=["lm_head"])
    assert set(AdapterConfig.read(tmp_path).sizes(PATHS, {"q_proj", "lm_head"})) == {"q_proj"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA, got 'IA3'"),
        ({"use_dora": True}, "got use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, r"got modules_to_save = \['lm_head'\]"),
        ({"lora_bias": True}, "got lora_bias = True"),
        ({"bias": "all"}, "got bias = 'all'"),
        ({"fan_in_fan_out": True}, "got fan_in_fan_out = True"),
        ({"alora_invocation_tokens": [1, 2]}, r"got alora_invocation_tokens = \[1, 2\]"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "got layer_replication = "),
        ({"target_parameters": ["experts.gate_up_proj"]}, "got target_parameters = "),
        ({"trainable_token_indices": [3]}, "got trainable_token_indices = "),
        ({"megatron_config": {"a": 1}}, "got megatron_config = "),
        ({"use_qalora": True}, "got use_qalora = True"),
        ({"a_field_of_tomorrow": "on"}, "got a_field_of_tomorrow = 'on'"),
        ({"init_lora_weights": "pissa"}, "expected an adapter to the base weights as they are, got .* = 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "got init_lora_weights = 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "got init_lora_weights = 'olora'"),
        ({"init_lora_weights": "loftq"}, "got init_lora_weights = 'loftq'"),
        ({"init_lora_weights": "eva"}, "got init_lora_weights = 'eva'"),
        ({"init_lora_weights": "corda"}, "got init_lora_weights = 'corda'"),
        ({"init_lora_weights": "lora_ga"}, "got init_lora_weights = 'lora_ga'"),
        ({"r": 0}, "expected r and rank_pattern to hold whole numbers from 1 to 256, got 0"),
        ({"r": True}, "expected r and rank_pattern to hold whole numbers from 1 to 256, got True"),
        ({"rank_pattern": {"q_proj": 257}}, "expected r and rank_pattern to hold .*, got 257"),
        ({"rank_pattern": [4]}, r"expected rank_pattern to be an object, got \[4\]"),
        ({"rank_pattern": {"(": 4}}, r"expected rank_pattern to have regular expressions, got '\('"),
        ({"lora_alpha": 10**400}, "expected lora_alpha and alpha_pattern to hold finite numbers, got 1000"),
        ({"lora_alpha": math.nan}, "expected JSON, got NaN, which is not a JSON number"),
        ({"lora_alpha": None}, "expected lora_alpha and alpha_pattern to hold finite numbers, got None"),
        ({"alpha_pattern": {"q_proj": math.inf}}, "expected JSON, got Infinity, which is not a JSON number"),
        ({"target_modules": None}, "expected target_modules to be names or a regular expression, got None"),
        ({"target_modules": [1]}, r"expected target_modules to be names or a regular expression, got \[1\]"),
        ({"target_modules": "(q"}, r"expected target_modules to be names or a regular expression, got '\(q'"),
        ({"exclude_modules": {"q": 1}}, "expected exclude_modules to be names or a regular expression"),
        ({"target_modules": ".*", "layers_to_transform": [1]}, "expected target_modules to be names, since"),
        ({"layers_to_transform": ["1"]}, r"expected layers_to_transform to be integers, got \['1'\]"),
        ({"layers_to_transform": [1], "layers_pattern": "("}, "expected layers_pattern to be regular expressions"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    """File, field and value."""
    with pytest.raises(ValueError, match=rf"adapter_config\.json: .*{message}"):
        AdapterConfig.read(written(tmp_path, **config))


def test_every_fault_is_named(tmp_path: Path) -> None:
    """Not only the first."""
    with pytest.raises(ValueError, match=r"use_dora = True; .*bias = 'all'; .* got 0"):
        AdapterConfig.read(written(tmp_path, use_dora=True, bias="all", r=0))


def test_fields_of_every_peft_config_are_known(tmp_path: Path) -> None:
    """What the installed PEFT saves when nothing special is asked for is honoured, for each way to initialise apart."""
    for start in (True, False, "gaussian", "orthogonal"):
        peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=start).save_pretrained(tmp_path)
        assert AdapterConfig.read(tmp_path).sizes(["a.q_proj"], ()) == {"a.q_proj": Size(8, 1.0)}
