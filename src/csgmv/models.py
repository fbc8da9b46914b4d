"""Layer shapes of a transformers model: what there is to tune for it.

Nothing is downloaded but the model's config.json, and a local folder that holds one needs no network at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csgmv.rules import MAX_SLICES

# Decoders whose every layer is q/k/v + o attention and a gated gate/up + down MLP, merged or not. What transformers
# builds for each was compared with what is computed here (tests/test_models.py does it again). Others with the same
# attributes need not have these layers: nemotron's MLP has no gate, qwen3_next's q projection is twice as wide.
GATED_DENSE = frozenset(
    [
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "granite",
        "hunyuan_v1_dense",
        "llama",
        "ministral",
        "mistral",
        "olmo",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen2_5_vl_text",
        "qwen2_vl_text",
        "qwen3",
        "qwen3_vl_text",
        "seed_oss",
        "smollm3",
    ]
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
_BY_HAND = "; pass its layers by hand, as --layer NAME:INPUT_DIM:W1+W2+W3"


@dataclass(frozen=True)
class LayerShape:
    """A group of projections with one input, which multi-LoRA serving computes in one call.

    Attributes:
        name: "qkv", "o", "gate_up" or "down" for a model's layers; any name for one given by hand.
        input_dim: columns of the layer's input, on one tensor-parallel rank.
        slice_widths: output columns of each projection, on one tensor-parallel rank.
    """

    name: str
    input_dim: int
    slice_widths: tuple[int, ...]


QWEN3_EMBEDDING_0_6B = (
    LayerShape("qkv", 1024, (2048, 1024, 1024)),
    LayerShape("o", 2048, (1024,)),
    LayerShape("gate_up", 1024, (3072, 3072)),
    LayerShape("down", 3072, (1024,)),
)


def parse_layer(text: str) -> LayerShape:
    """A layer given by hand, NAME:INPUT_DIM:W1+W2+W3, e.g. 'qkv:1024:2048+1024+1024'.

    Raises:
        ValueError: the text has another form, a dimension is not positive, or there are more than four widths.
    """
    wanted = f"layer: expected NAME:INPUT_DIM:W1+W2+W3 with 1 to {MAX_SLICES} widths, such as qkv:1024:2048+1024+1024"
    try:
        name, input_dim, widths = text.split(":")
        layer = LayerShape(name, int(input_dim), tuple(int(width) for width in widths.split("+")))
    except ValueError:
        raise ValueError(f"{wanted}; got {text!r}") from None
    if not name or min(layer.input_dim, *layer.slice_widths) < 1 or len(layer.slice_widths) > MAX_SLICES:
        raise ValueError(f"{wanted}; got {text!r}")
    return layer


def layer_shapes(model: str | Path | Any, tp: int = 1, trust_remote_code: bool = False) -> list[LayerShape]:
    """The four LoRA layers of a dense decoder: qkv, o, gate_up and down.

    Args:
        model: a name on the Hugging Face hub, a folder with a config.json, or a config object. Of a multimodal
            config its text_config is read.
        tp: tensor-parallel size. qkv and gate_up are split by columns (key-value heads are replicated where there
            are fewer than tp), o and down by rows.
        trust_remote_code: let transformers run code that comes with the model.

    Raises:
        ValueError: the model is no dense decoder with a gated MLP, or tp does not divide it; what was found is named.
        ImportError: transformers is missing (the extra `tune` has it).
        OSError: transformers finds no config under this name.
    """
    if tp < 1:
        raise ValueError(f"tp: expected a positive number, got {tp}")
    config = _load(model, trust_remote_code) if isinstance(model, (str, Path)) else model
    config = _text_config(config)
    kind = getattr(config, "model_type", None) or type(config).__name__
    if experts := {name: value for name in _EXPERTS if (value := getattr(config, name, None))}:
        found = ", ".join(f"{name} = {value}" for name, value in experts.items())
        raise ValueError(f"model: expected a dense decoder, got {kind!r}, a mixture of experts ({found}){_BY_HAND}")
    if kind not in GATED_DENSE:
        raise ValueError(f"model: expected one of {', '.join(sorted(GATED_DENSE))}, got {kind!r}{_BY_HAND}")

    hidden = _size(config, kind, "hidden_size")
    heads = _size(config, kind, "num_attention_heads")
    kv_heads = _size(config, kind, "num_key_value_heads", default=heads)
    head_dim = _size(config, kind, "head_dim", default=hidden // heads)
    intermediate = _size(config, kind, "intermediate_size")
    heads = _split(heads, tp, "num_attention_heads")
    kv_heads = _split(kv_heads, tp, "num_key_value_heads", replicate=True)
    intermediate = _split(intermediate, tp, "intermediate_size")
    query, key_value = heads * head_dim, kv_heads * head_dim
    return [
        LayerShape("qkv", hidden, (query, key_value, key_value)),
        LayerShape("o", query, (hidden,)),
        LayerShape("gate_up", hidden, (intermediate, intermediate)),
        LayerShape("down", intermediate, (hidden,)),
    ]


def _load(name: str | Path, trust_remote_code: bool) -> Any:
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ImportError("reading a model's config needs transformers: pip install 'csgmv[tune]'") from error
    if str(name)[:1] in ("/", ".", "~"):
        name = Path(name).expanduser()
        if not name.is_dir():
            raise ValueError(f"model: expected a hub name or a folder with a config.json, got no folder {name}")
    return AutoConfig.from_pretrained(str(name), trust_remote_code=trust_remote_code)


def _text_config(config: Any) -> Any:
    """The part that describes the decoder; the config itself where it is not nested."""
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return getattr(config, "text_config", None) or config


def _size(config: Any, kind: str, name: str, default: int | None = None) -> int:
    """A positive integer of the config. Some configs leave head_dim or num_key_value_heads None, for the default."""
    value = getattr(config, name, None)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"model: expected {name} of {kind!r} to be a positive integer, got {value!r}{_BY_HAND}")
    return value


def _split(size: int, tp: int, name: str, replicate: bool = False) -> int:
    """One rank's share of a dimension."""
    if replicate and size < tp and tp % size == 0:
        return 1
    if size % tp:
        raise ValueError(f"tp: expected a number that divides {name} = {size}, got {tp}")
    return size // tp
