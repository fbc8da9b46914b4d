"""What a transformers config says of its decoder: the projections that multi-LoRA serving computes in one call.

What transformers builds for each type listed here was compared with what is computed (tests/test_models.py does it
again). Others with the same attributes need not have these layers: nemotron's MLP has no gate, qwen3_next's q
projection is twice as wide.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

# Decoders whose every layer is q/k/v + o attention and a gated gate/up + down MLP, merged or not.
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
# Types of GATED_DENSE in which a group of projections is one module, with one A.
MERGED = {"phi3": ("qkv", "gate_up"), "glm": ("gate_up",), "glm4": ("gate_up",)}
# What a size may be: a config that is not to be trusted must not make a search of its layers endless.
_LARGEST, _MOST_LAYERS = 2**31 - 1, 10_000


class Mixture(NamedTuple):
    """What of a mixture of experts is dense, beside q/k/v + o attention.

    Attributes:
        shared: the config's fields whose product is the width of the shared experts; none where there are none.
        plain: whether some layers have an MLP instead of experts.
        plain_width: the field with that MLP's width.
        mlp, shared_mlp: the modules' paths in a decoder layer.
        latent: attention is multi-head latent attention (DeepSeek-V2, arXiv:2405.04434).
    """

    shared: Sequence[str] = ()
    plain: Callable[[Any], bool] = lambda _: False
    plain_width: str = "intermediate_size"
    mlp: str = "mlp"
    shared_mlp: str = "mlp.shared_experts"
    latent: bool = False


def _some_layers_listed(config: Any) -> bool:
    return bool(config.mlp_only_layers or config.decoder_sparse_step > 1)


def _first_layers(config: Any) -> bool:
    return bool(config.first_k_dense_replace)


def _from_some_layer_on(config: Any) -> bool:
    return bool(config.moe_layer_start_index > 0 or config.moe_layer_interval > 1)


def _not_all_layers(config: Any) -> bool:
    return bool(len(config.moe_layers) < config.num_hidden_layers)


_SHARED = ("n_shared_experts", "moe_intermediate_size")
MIXTURES = {
    "deepseek_v2": Mixture(_SHARED, _first_layers, latent=True),
    "deepseek_v3": Mixture(_SHARED, _first_layers, latent=True),
    "dots1": Mixture(_SHARED, _first_layers),
    "ernie4_5_moe": Mixture(("moe_num_shared_experts", "moe_intermediate_size"), _from_some_layer_on),
    "glm4_moe": Mixture(_SHARED, _first_layers),
    "gpt_oss": Mixture(),
    "llama4_text": Mixture(
        ("intermediate_size",), _not_all_layers, "intermediate_size_mlp", "feed_forward", "feed_forward.shared_expert"
    ),
    "mixtral": Mixture(),
    "olmoe": Mixture(),
    "phimoe": Mixture(),
    "qwen2_moe": Mixture(("shared_expert_intermediate_size",), _some_layers_listed, shared_mlp="mlp.shared_expert"),
    "qwen3_moe": Mixture((), _some_layers_listed),
    "qwen3_vl_moe_text": Mixture((), _some_layers_listed),
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
_DIMENSIONS = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "vocab_size",
)


class Group(NamedTuple):
    """Projections with one input. Sizes are those of one tensor-parallel rank.

    `modules` are the paths of what an adapter may target: in a decoder layer, or (without a dot) in the model.
    """

    name: str
    input_dim: int
    slice_widths: tuple[int, ...]
    modules: tuple[str, ...]


def groups(config: Any, tp: int) -> list[Group]:
    """The groups of a decoder: of its layers' dense parts, lm_head and embed_tokens.

    Raises:
        ValueError: the type is none that can be read, a field is no size, or `tp` does not divide it.
    """
    reader = _Reader(config, tp)
    if reader.kind not in GATED_DENSE and reader.kind not in MIXTURES:
        raise ValueError(reader.unknown())
    return list(reader.groups())


def num_layers(config: Any) -> int:
    """The number of a decoder's layers, 1 if it does not say.

    Raises:
        ValueError: it says something else.
    """
    return _Reader(config, 1).num_layers()


def by_hand(config: Any) -> str:
    """How to pass layers by hand, with the dimensions that a config has."""
    given = ((name, getattr(config, name, None)) for name in _DIMENSIONS)
    found = [f"{name} = {reprlib.repr(value)}" for name, value in given if value is not None]
    return (
        "; pass its layers by hand, each as --layer NAME:INPUT_DIM:W1+W2+W3, with the sizes of one tensor-parallel "
        "rank: qkv:hidden_size:heads*head_dim+kv_heads*head_dim+kv_heads*head_dim, o:heads*head_dim:hidden_size, "
        "gate_up:hidden_size:intermediate_size+intermediate_size, down:intermediate_size:hidden_size, "
        f"lm_head:hidden_size:vocab_size (the config has {', '.join(found) or 'none of these dimensions'})"
    )


class _Reader:
    def __init__(self, config: Any, tp: int) -> None:
        self._config, self._tp = config, tp
        kind = getattr(config, "model_type", None) or type(config).__name__
        self.kind: str = kind if isinstance(kind, str) else repr(kind)

    def unknown(self) -> str:
        """Why a config cannot be read."""
        if experts := {name: value for name in _EXPERTS if (value := getattr(self._config, name, None))}:
            found = ", ".join(f"{name} = {reprlib.repr(value)}" for name, value in experts.items())
            wanted, what = f"a dense decoder or one of {', '.join(MIXTURES)}", f"a mixture of experts ({found})"
            return f"model: expected {wanted}, got {self.kind!r}, {what}{by_hand(self._config)}"
        known = ", ".join(sorted([*GATED_DENSE, *MIXTURES]))
        return f"model: expected one of {known}, got {self.kind!r}{by_hand(self._config)}"

    def num_layers(self) -> int:
        return self._size("num_hidden_layers", default=1, most=_MOST_LAYERS)

    def groups(self) -> Iterator[Group]:
        hidden, mixture = self._size("hidden_size"), MIXTURES.get(self.kind)
        yield from self._latent(hidden) if mixture is not None and mixture.latent else self._attention(hidden)
        if mixture is None:
            yield from self._mlp(hidden, "", "mlp", self._size("intermediate_size"), "intermediate_size")
        else:
            if self._has_plain_layers(mixture):
                yield from self._mlp(hidden, "", mixture.mlp, self._size(mixture.plain_width), mixture.plain_width)
            if mixture.shared and all(getattr(self._config, name, None) for name in mixture.shared):
                width = 1
                for name in mixture.shared:
                    width *= self._size(name)
                yield from self._mlp(hidden, "shared_", mixture.shared_mlp, width, " * ".join(mixture.shared))
        if getattr(self._config, "vocab_size", None) is not None:
            columns = -(-self._size("vocab_size") // self._tp)  # engines pad the last rank's part
            yield Group("lm_head", hidden, (columns,), ("lm_head",))
        yield Group("embed_tokens", hidden, (hidden,), ("embed_tokens",))

    def _has_plain_layers(self, mixture: Mixture) -> bool:
        try:
            return mixture.plain(self._config)
        except (AttributeError, TypeError) as error:
            wanted = f"fields of {self.kind!r} that say which layers have experts"
            raise ValueError(f"model: expected {wanted}, got none: {error}{by_hand(self._config)}") from None

    def _attention(self, hidden: int) -> Iterator[Group]:
        heads = self._size("num_attention_heads")
        kv_heads = self._size("num_key_value_heads", default=heads)
        head_dim = self._size("head_dim", default=hidden // heads)
        query = self._split(heads, "num_attention_heads") * head_dim
        key_value = self._split(kv_heads, "num_key_value_heads", replicate=True) * head_dim
        yield from self._maybe_merged("qkv", hidden, (query, key_value, key_value), "self_attn", ("q", "k", "v"))
        yield Group("o", query, (hidden,), ("self_attn.o_proj",))

    def _latent(self, hidden: int) -> Iterator[Group]:
        heads, latent = (
            self._split(self._size("num_attention_heads"), "num_attention_heads"),
            self._size("kv_lora_rank"),
        )
        nope, rope, value = (self._size(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        queries = heads * (nope + rope)
        if getattr(self._config, "q_lora_rank", None) is None:
            yield Group("q", hidden, (queries,), ("self_attn.q_proj",))
        else:
            rank = self._size("q_lora_rank")
            yield Group("q_a", hidden, (rank,), ("self_attn.q_a_proj",))
            yield Group("q_b", rank, (queries,), ("self_attn.q_b_proj",))
        yield Group("kv_a", hidden, (latent + rope,), ("self_attn.kv_a_proj_with_mqa",))
        yield Group("kv_b", latent, (heads * (nope + value),), ("self_attn.kv_b_proj",))
        yield Group("o", heads * value, (hidden,), ("self_attn.o_proj",))

    def _mlp(self, hidden: int, prefix: str, path: str, width: int, name: str) -> Iterator[Group]:
        width = self._split(width, name)
        yield from self._maybe_merged(f"{prefix}gate_up", hidden, (width, width), path, ("gate", "up"))
        yield Group(f"{prefix}down", width, (hidden,), (f"{path}.down_proj",))

    def _maybe_merged(
        self, name: str, hidden: int, widths: tuple[int, ...], path: str, projections: Sequence[str]
    ) -> Iterator[Group]:
        """Of a merged module both calls that engines make: A repeated for each slice (sglang), and one slice (vLLM)."""
        if name not in MERGED.get(self.kind, ()):
            yield Group(name, hidden, widths, tuple(f"{path}.{projection}_proj" for projection in projections))
            return
        yield Group(name, hidden, widths, (f"{path}.{name}_proj",))
        yield Group(f"{name}_proj", hidden, (sum(widths),), (f"{path}.{name}_proj",))

    def _size(self, name: str, default: int | None = None, most: int = _LARGEST) -> int:
        """A positive integer of the config. Some leave head_dim or num_key_value_heads None, for the default."""
        value = getattr(self._config, name, None)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            large = type(value) is int and value > most
            wanted = f"{name} of {self.kind!r} to be {f'at most {most}' if large else 'a positive integer'}"
            raise ValueError(f"model: expected {wanted}, got {reprlib.repr(value)}{by_hand(self._config)}")
        return value

    def _split(self, size: int, name: str, replicate: bool = False) -> int:
        """One rank's share of a dimension."""
        if replicate and size < self._tp and self._tp % size == 0:
            return 1
        if size % self._tp:
            raise ValueError(f"tp: expected a number that divides {name} = {size}, got {self._tp}")
        return size // self._tp
