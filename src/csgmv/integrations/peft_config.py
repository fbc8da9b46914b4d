"""What an adapter_config.json says, as PEFT means it: which modules of a model, with which rank and scaling.

The rules are those of peft.tuners.tuners_utils (check_target_module_exists) and peft.utils.other (get_pattern_key),
as of PEFT 0.21. A field that is neither honoured here nor without effect on inference must have its neutral value.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from csgmv import peft_adapter, rules
from csgmv.target_modules import ALL_LINEAR, Targets, is_all_linear, regex_fault

_HONOURED = {
    "alpha_pattern",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
_NEUTRAL: tuple[Any, ...] = (None, False, "none", [], {})
# Only these leave the base weights that the adapter is added to as they are on disk.
_INITIALISED_APART = (None, True, False, "gaussian", "orthogonal")

_LARGEST = 3.4e38  # that float32 holds, as scalings do


class Size(NamedTuple):
    """An adapter's rank in one module, and what its product is scaled with."""

    rank: int
    scaling: float


@dataclass(frozen=True)
class AdapterConfig:
    """A plain LoRA's config.

    Attributes:
        path: of the file.
        rank, alpha: where no pattern says otherwise.
        rank_pattern, alpha_pattern: by regular expressions for how modules' paths end; the first that matches counts.
        rslora: the scaling is alpha / √rank, not alpha / rank.
        targets: a regular expression, names, or `target_modules.ALL_LINEAR`.
        excluded: what is no target all the same.
        layers: numbers of the layers that are targeted, None for all.
        layers_patterns: what layers' numbers follow in a path; none for anything.
    """

    path: Path
    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    rslora: bool
    targets: Targets
    excluded: Targets
    layers: frozenset[int] | None
    layers_patterns: list[str]

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """The config in an adapter's folder.

        Raises:
            ValueError: there is none, or it cannot be honoured; every fault is named.
        """
        path, config = peft_adapter.load(folder)
        if found := [*_faults(config)]:
            raise ValueError(f"{path}: " + "; ".join(found))
        layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
        targets = config["target_modules"]
        return cls(
            path,
            config["r"],
            config["lora_alpha"],
            config.get("rank_pattern") or {},
            config.get("alpha_pattern") or {},
            bool(config.get("use_rslora")),
            ALL_LINEAR if is_all_linear(targets) else targets,
            config.get("exclude_modules") or [],
            None if layers in (None, []) else frozenset([layers] if isinstance(layers, int) else layers),
            [patterns] if isinstance(patterns, str) and patterns else list(patterns or []),
        )

    def sizes(self, modules: Iterable[str], all_linear: Collection[str]) -> dict[str, Size]:
        """Of a model's modules those that the adapter targets.

        Args:
            modules: their paths in the model.
            all_linear: the paths that target_modules "all-linear" means.
        """
        return {path: self._size(path) for path in modules if self._targeted(path, all_linear)}

    def _size(self, path: str) -> Size:
        rank = _by_pattern(self.rank_pattern, path, self.rank)
        alpha = _by_pattern(self.alpha_pattern, path, self.alpha)
        return Size(rank, alpha / (math.sqrt(rank) if self.rslora else rank))

    def _targeted(self, path: str, all_linear: Collection[str]) -> bool:
        if self.excluded and matches(self.excluded, path):
            return False
        if self.targets == ALL_LINEAR:
            return path in all_linear
        if not matches(self.targets, path):
            return False
        if self.layers is None or path in self.targets:  # PEFT asks nothing more of a path that is listed whole
            return True
        number = self._layer(path)
        return number is not None and number in self.layers

    def _layer(self, path: str) -> int | None:
        """The first number in a path that stands where a layer's does."""
        patterns = [_numbered(each) for each in self.layers_patterns] or [r".*?\.[^.]*\.(?P<number>\d+)\."]
        found = next(filter(None, (re.match(pattern, path) for pattern in patterns)), None)
        return int(found["number"]) if found else None


def matches(names: Targets, path: str) -> bool:
    """Whether a module is meant by a regular expression for its whole path, or by one of several ends of it."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _numbered(layers_pattern: str) -> str:
    return rf"(?:^|.*?\.){layers_pattern}\.(?P<number>\d+)\."


def _ending(key: str) -> str:
    return rf"(.*\.)?({key})$"


def _by_pattern(patterns: dict[str, Any], path: str, otherwise: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(_ending(key), path)), otherwise)


def _faults(config: dict[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if name not in _HONOURED and name not in _WITHOUT_EFFECT and value not in _NEUTRAL:
            yield f"expected plain LoRA, got {name} = {reprlib.repr(value)}"
    if (start := config.get("init_lora_weights")) not in _INITIALISED_APART:
        yield f"expected an adapter to the base weights as they are, got init_lora_weights = {reprlib.repr(start)}"
    yield from _number_faults(config)
    yield from _target_faults(config)


def _target_faults(config: dict[str, Any]) -> Iterator[str]:
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not targets:
        yield f"expected target_modules to be names or a regular expression, got {reprlib.repr(targets)}"
    for name in ("target_modules", "exclude_modules"):
        yield from _names_faults(name, config.get(name) or [])
    if layers not in (None, []):
        if isinstance(targets, str):
            wanted = "target_modules to be names, since there is layers_to_transform"
            yield f"expected {wanted}, got {reprlib.repr(targets)}"
        if not all(type(layer) is int for layer in (layers if isinstance(layers, list) else [layers])):
            yield f"expected layers_to_transform to be integers, got {reprlib.repr(layers)}"
    patterns = config.get("layers_pattern") or []
    listed = patterns if isinstance(patterns, list) else [patterns]
    if not all(isinstance(pattern, str) and not regex_fault(_numbered(pattern)) for pattern in listed):
        yield f"expected layers_pattern to be regular expressions, got {reprlib.repr(patterns)}"


def _number_faults(config: dict[str, Any]) -> Iterator[str]:
    for name, pattern, fits, wanted in (
        ("r", "rank_pattern", _is_rank, f"whole numbers from 1 to {rules.MAX_RANK}"),
        ("lora_alpha", "alpha_pattern", _is_finite, "finite numbers"),
    ):
        patterns = config.get(pattern) or {}
        if not isinstance(patterns, dict):
            yield f"expected {pattern} to be an object, got {reprlib.repr(patterns)}"
            continue
        for value in (config.get(name), *patterns.values()):
            if not fits(value):
                yield f"expected {name} and {pattern} to hold {wanted}, got {reprlib.repr(value)}"
        for key in patterns:
            if fault := regex_fault(_ending(key)):
                yield f"expected {pattern} to have regular expressions, got {reprlib.repr(key)}: {fault}"


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= rules.MAX_RANK


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _names_faults(field: str, names: object) -> Iterator[str]:
    if isinstance(names, str):
        if fault := regex_fault(names):
            yield f"expected {field} to be names or a regular expression, got {reprlib.repr(names)}: {fault}"
    elif not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        yield f"expected {field} to be names or a regular expression, got {reprlib.repr(names)}"
