"""A transformers model of a known shape with random weights, and twins of it that share them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from csgmv import known_models


def make(model: str, layers: int | None, dtype: torch.dtype, device: torch.device) -> Any:
    """The decoder without its head, ready for inference, the same each time.

    Without the head, since making logits is no adapter's work, and of a few layers would take as long as these.

    Args:
        model: a well-known model's name (`known_models`), a folder with a config.json, or a name on the hub.
        layers: decoder layers; None for as many as the config has.
        dtype: of its parameters.
        device: where it is made.

    Raises:
        ImportError: transformers is missing.
        OSError: transformers finds no config of this name.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ImportError(f"--e2e: needs transformers: pip install 'csgmv[transformers]' ({error})") from None
    config = _config(model, {} if layers is None else {"num_hidden_layers": layers})
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModel.from_config(config)
    return made.to(device, dtype).eval().requires_grad_(False)


def twin(model: Any) -> Any:
    """A model of modules of its own with the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _config(model: str, changed: dict[str, int]) -> Any:
    from transformers import AutoConfig

    known = None if Path(model).expanduser().exists() else known_models.config(model)
    if known is None:
        config = AutoConfig.from_pretrained(model, **changed)
        return config.get_text_config(decoder=True)
    fields = vars(known) | changed
    return AutoConfig.for_model(fields.pop("model_type"), **fields)
