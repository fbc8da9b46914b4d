"""An adapter's folder, as PEFT saves it: what it targets, and its rank."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from csgmv.target_modules import ALL_LINEAR, Targets, is_all_linear, regex_fault

MOST_BYTES = 2**20  # of an adapter_config.json, which has about 1 kB
_MODELS = ("model.", "model.language_model.", "language_model.model.")  # where models keep their decoder's layers


class Adapter(NamedTuple):
    """A LoRA adapter: the model that it was made for ("" if nobody says), its largest rank, its target modules."""

    base: str
    rank: int
    targets: Targets


def load(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The adapter_config.json in a folder, and what it says.

    Raises:
        ValueError: there is none, it is broken, or it is no LoRA; what was expected and what came is named.
    """
    path = folder / "adapter_config.json"
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError(f"adapter: expected a folder with an adapter_config.json, got {str(folder)!r}")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{path}: expected at most {MOST_BYTES} bytes, got {size}")
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"adapter: expected {path} to be text that can be read, got {error}") from None
    try:
        config = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object, got {reprlib.repr(config)}")
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise ValueError(f"{path}: expected peft_type LORA, got {reprlib.repr(kind)}")
    return path, config


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that is given more than once")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant}, which is not a JSON number")


def read(folder: Path) -> Adapter:
    """The adapter in a folder with an adapter_config.json.

    Raises:
        ValueError: as `load`, or it is no plain LoRA.
    """
    path, config = load(folder)
    if config.get("use_dora"):
        raise ValueError(f"{path}: expected plain LoRA, got use_dora = {reprlib.repr(config['use_dora'])}")
    patterns = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"{path}: expected r and rank_pattern to be positive integers, got {reprlib.repr(rank)}")
    base = config.get("base_model_name_or_path") or ""
    if not isinstance(base, str):
        raise ValueError(f"{path}: expected base_model_name_or_path to be a name, got {reprlib.repr(base)}")
    return Adapter(base, max(ranks), _targets(config, path))


def _targets(config: dict[str, Any], path: Path) -> Targets:
    found = config.get("target_modules")
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        wanted = "target_modules to be names or a regular expression"
        raise ValueError(f"{path}: expected {wanted}, got {reprlib.repr(found)}")
    if not isinstance(found, str):
        return names
    if is_all_linear(found):
        return ALL_LINEAR
    if fault := regex_fault(found):
        wanted = "target_modules to be names or a regular expression"
        raise ValueError(f"{path}: expected {wanted}, got {found!r}: {fault}")
    return found


def targeted(module: str, targets: Targets, num_layers: int) -> bool:
    """Whether an adapter targets a module, in any of so many decoder layers. PEFT's rules.

    Args:
        module: its path in a decoder layer, such as "self_attn.q_proj"; or, without a dot, its name in the model.
        targets: a regular expression, names, or `target_modules.ALL_LINEAR`.
        num_layers: of the decoder.
    """
    if is_all_linear(targets):
        return "." in module
    if isinstance(targets, str):
        return any(re.fullmatch(targets, path) for path in _paths(module, num_layers))
    return any(_names(target, module) for target in targets)


def unknown(targets: Targets, modules: Iterable[str]) -> list[str]:
    """The target names that none of the modules has."""
    if isinstance(targets, str):
        return []
    modules = list(modules)
    return [target for target in targets if not any(_names(target, module) for module in modules)]


def _names(target: str, module: str) -> bool:
    """Whether one is the end of the other: targets may be longer or shorter than a path in a decoder layer."""
    return f".{module}".endswith(f".{target}") or f".{target}".endswith(f".{module}")


def _paths(module: str, num_layers: int) -> Iterator[str]:
    if "." in module:
        yield from (f"{model}layers.{index}.{module}" for model in _MODELS for index in range(num_layers))
    else:
        yield module
        yield from (f"{model}{module}" for model in (*_MODELS, "language_model."))
