"""Tiny random transformers models, adapters that PEFT itself saves for them, and PEFT's own answer for each row."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_SIZES = dict(
    hidden_size=64,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=96,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
CONFIGS = {
    "qwen3": transformers.Qwen3Config,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "gemma2": transformers.Gemma2Config,
    "phi3": transformers.Phi3Config,
}


def tiny(kind: str = "qwen3", layers: int = 1, attention: str = "eager") -> Any:
    """A causal language model of this kind in float32, the same each time."""
    torch.manual_seed(7)
    config = CONFIGS[kind](**_SIZES, num_hidden_layers=layers)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval().to(DEVICE)


def save_adapter(model: Any, folder: Path, *, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A folder as PEFT saves it, with B that is not zero and numbers that dtype can hold; the model stays as it was."""
    torch.manual_seed(len(folder.name) + sum(folder.name.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
            if "lora_" in name:
                parameter.data.copy_(parameter.data.to(dtype))
        adapted.save_pretrained(folder)
        adapted.unload()
    return folder


@contextlib.contextmanager
def _loaded(model: Any, folders: Mapping[str, Path]) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (first, folder), *others = folders.items()
        adapted = peft.PeftModel.from_pretrained(model, folder, adapter_name=first)
        for name, folder in others:
            adapted.load_adapter(folder, adapter_name=name)
    try:
        yield adapted.eval()
    finally:
        adapted.unload()


@torch.no_grad()
def by_peft(
    model: Any, folders: Mapping[str, Path], names: Sequence[str | None], run: Callable[[Any, int], torch.Tensor]
) -> list[torch.Tensor]:
    """What `run(model, row)` gives for each row under that row's adapter, one row after the other."""
    results = []
    with _loaded(model, folders) as adapted:
        for row, name in enumerate(names):
            if name is None:
                with adapted.disable_adapter():
                    results.append(run(adapted, row))
            else:
                adapted.set_adapter(name)
                results.append(run(adapted, row))
    return results
