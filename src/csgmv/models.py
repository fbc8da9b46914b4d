"""Layer shapes of a transformers model: what there is to tune for it.

Nothing is downloaded but the model's config.json; a local folder that holds one needs no network at all, and neither
does a well-known model (`known_models`), for which transformers is not needed either.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csgmv import decoders, known_models, peft_adapter, plain_arguments, target_modules
from csgmv.rules import MAX_SLICES
from csgmv.target_modules import Targets


@dataclass(frozen=True)
class LayerShape:
    """A group of projections with one input, which multi-LoRA serving computes in one call.

    Attributes:
        name: "qkv", "o", "gate_up", "down" and others for a model's layers; any name for one given by hand.
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
    except (AttributeError, ValueError):
        raise ValueError(f"{wanted}; got {text!r}") from None
    if not name or min(layer.input_dim, *layer.slice_widths) < 1 or len(layer.slice_widths) > MAX_SLICES:
        raise ValueError(f"{wanted}; got {text!r}")
    return layer


def layer_shapes(
    model: str | Path | Any, tp: int = 1, trust_remote_code: bool = False, targets: Targets | None = None
) -> list[LayerShape]:
    """The LoRA layers of a decoder, which are qkv, o, gate_up and down for a dense one.

    A module that merges projections (Phi-3's qkv_proj) gives two: with a slice for each projection, for engines that
    repeat A, and a further one of a single slice under the module's name. Of a mixture of experts the dense parts are
    read: attention, layers without experts, shared experts (shared_gate_up, shared_down).

    Args:
        model: a name on the Hugging Face hub, a folder with a config.json, such a file, or a config object. Of a
            multimodal config its text_config is read. A well-known model's owner may be left out.
        tp: tensor-parallel size. Most layers are split by columns (key-value heads are replicated where there are
            fewer than tp), o and down by rows.
        trust_remote_code: let transformers run code that comes with the model.
        targets: PEFT's target_modules: the ends of modules' paths, one regular expression for them, or "all-linear".
            A group of projections counts if any of them is targeted. lm_head and embed_tokens count only if targeted;
            the A of embed_tokens is looked up, so that only its expand is launched, and it is left out where another
            layer has the same one. None is all that decoder layers have.

    Raises:
        TypeError: tp is no whole number, trust_remote_code no flag, or targets are neither names nor an expression.
        ValueError: the model is none that can be read, tp does not divide it, or it has none of the targets; what was
            found is named.
        ImportError: transformers is missing (the extra `tune` has it).
        OSError: transformers finds no config under this name; well-known models with names like it are listed.
    """
    plain_arguments.whole("tp", tp, 1)
    plain_arguments.flag("trust_remote_code", trust_remote_code)
    if targets is not None:
        target_modules.check("targets", targets)
    config = _load(model, trust_remote_code) if isinstance(model, (str, Path)) else model
    config = _text_config(config)
    there = decoders.groups(config, tp)
    if targets is None:
        targets = target_modules.ALL_LINEAR
    modules = [module for group in there for module in group.modules]
    num_layers = decoders.num_layers(config)
    wanted = {module for module in modules if peft_adapter.targeted(module, targets, num_layers)}
    if not wanted:
        found = f"{', '.join(modules)}, got {targets!r}"
        raise ValueError(f"targets: expected any of {found}{decoders.by_hand(config)}")
    if strangers := peft_adapter.unknown(targets, modules):
        warnings.warn(f"targets: left out {', '.join(strangers)}{decoders.by_hand(config)}", stacklevel=2)
    chosen = [LayerShape(*group[:3]) for group in there if wanted & {*group.modules}]
    if chosen[-1].name == "embed_tokens" and any(
        layer.slice_widths == chosen[-1].slice_widths for layer in chosen[:-1]
    ):
        chosen.pop()
    return chosen


def _load(name: str | Path, trust_remote_code: bool) -> Any:
    path = Path(name).expanduser()
    here = path.exists()
    if not here:
        if str(name)[:1] in ("/", ".", "~"):
            raise ValueError(f"model: expected a hub name, a folder with a config.json or a file, got no folder {path}")
        if (known := known_models.config(str(name))) is not None:
            return known
        if "/" not in str(name) and (alike := known_models.misspelt(str(name))):
            raise ValueError(
                f"model: expected a hub name (OWNER/NAME), a folder with a config.json or a file, got {name}; "
                f"did you mean {' or '.join(alike)}?"
            )
    listed = "" if here else f"; known by name are {', '.join(known_models.nearest(str(name)))}"
    try:
        from transformers import AutoConfig
    except ImportError as error:
        wanted = "reading a model's config needs transformers: pip install 'csgmv[tune]'"
        raise ImportError(f"{wanted}, got {name}{listed}") from error
    try:
        return AutoConfig.from_pretrained(str(path if here else name), trust_remote_code=trust_remote_code)
    except OSError as error:
        raise OSError(f"model: transformers finds no config of {name}{listed}: {error}") from error
    except Exception as error:  # its checks of a config's values raise all kinds
        said = " ".join(str(error).split())
        raise ValueError(f"model: expected a config that transformers takes, got that of {name}: {said}") from error


def _text_config(config: Any) -> Any:
    """The part that describes the decoder; the config itself where it is not nested."""
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return getattr(config, "text_config", None) or config
