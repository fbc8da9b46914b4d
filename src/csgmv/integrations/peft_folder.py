"""A LoRA adapter's folder as PEFT saves it, adapter_config.json and adapter_model.safetensors → weights by module.

Nothing that is read is trusted: modules are looked up in the model, shapes and dtypes are compared with it before data
is read, and pickles are not opened at all.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from csgmv.integrations.linear_layers import Linear
from csgmv.integrations.peft_config import AdapterConfig, Size

_WEIGHTS, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_LORA = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
_BASE = re.compile(r"base_model\.model\.(.+?)(?:\.base_layer)?\.weight")
_DTYPES = {"F32", "F16", "BF16"}
_MOST_NAMED = 3  # faults of one kind that a message names


class LoraWeights(NamedTuple):
    """An adapter's weights for one module, on the host.

    Attributes:
        lora_a: [rank, input_dim], in the module's dtype.
        lora_b: [output_dim, rank], likewise.
        scaling: of their product.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """The adapter's rank in this module."""
        return self.lora_a.shape[0]


def read(
    folder: Path,
    modules: Mapping[str, Linear | None],
    all_linear: Collection[str],
    base: Mapping[str, torch.Tensor],
) -> dict[str, LoraWeights]:
    """An adapter's weights by the path of the module in the model.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        modules: all of a model's modules by their paths; None for those that are not linear.
        all_linear: the paths that target_modules "all-linear" means.
        base: the model's own parameters by their paths. PEFT saves an lm_head's or embedding's beside an adapter of the
            lm_head: they must be the same.

    Raises:
        ValueError: something is missing or broken, cannot be honoured, or does not fit the model. The file and what
            was expected and came are named.
        ModuleNotFoundError: safetensors is not installed (extra `transformers`).
    """
    config = AdapterConfig.read(folder)
    sizes = config.sizes(modules, all_linear)
    if not sizes:
        raise ValueError(
            f"{config.path}: expected target_modules that the model has, got {reprlib.repr(config.targets)}"
        )
    if other := [path for path in sizes if modules[path] is None]:
        raise ValueError(f"{config.path}: expected target_modules to be linear layers, got {_some(other)}")
    return _read_weights(folder, {path: (size, modules[path]) for path, size in sizes.items()}, base)


def _read_weights(
    folder: Path, wanted: Mapping[str, tuple[Size, Any]], base: Mapping[str, torch.Tensor]
) -> dict[str, LoraWeights]:
    path = folder / _WEIGHTS
    if not path.is_file():
        remedy = f"; convert {_PICKLE} to safetensors, a pickle is not opened" if (folder / _PICKLE).exists() else ""
        raise ValueError(f"adapter: expected {path}, got no such file{remedy}")
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise ModuleNotFoundError("adapters are read by safetensors: pip install 'csgmv[transformers]'") from None
    try:
        with safe_open(path, framework="pt") as file:
            _check_keys(path, file, wanted, base)
            return {name: _weights(path, file, name, size, linear) for name, (size, linear) in wanted.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected safetensors, got {error}") from None


def _key(name: str, matrix: str) -> str:
    return f"base_model.model.{name}.lora_{matrix}.weight"


def _check_keys(
    path: Path, file: Any, wanted: Mapping[str, tuple[Size, Any]], base: Mapping[str, torch.Tensor]
) -> None:
    """Two matrices for each module that the config targets, with shapes that fit, and nothing else that matters."""
    present = {key for key in file.keys() if not _is_copy(file, key, base)}  # noqa: SIM118  it is no dict
    expected = {}
    for name, (size, linear) in wanted.items():
        expected[_key(name, "A")] = [size.rank, linear.input_dim]
        expected[_key(name, "B")] = [linear.output_dim, size.rank]
    if strange := sorted(key for key in present if not _LORA.fullmatch(key)):
        raise ValueError(f"{path}: expected lora_A and lora_B weights only, got {_some(strange)}")
    if more := sorted(present - {*expected}):
        raise ValueError(f"{path}: expected weights of the model's modules that the config targets, got {_some(more)}")
    if missing := sorted({*expected} - present):
        raise ValueError(f"{path}: expected weights of every module that the config targets, got no {_some(missing)}")
    for key, shape in expected.items():
        part = file.get_slice(key)
        if part.get_shape() != shape or part.get_dtype() not in _DTYPES:
            raise ValueError(
                f"{path}: {key}: expected shape {shape}, {' or '.join(sorted(_DTYPES))}, "
                f"got {part.get_shape()}, {part.get_dtype()}"
            )


def _is_copy(file: Any, key: str, base: Mapping[str, torch.Tensor]) -> bool:
    """Whether this is one of the model's own parameters, as it is there."""
    named = None if _LORA.fullmatch(key) else _BASE.fullmatch(key)
    own = base.get(f"{named[1]}.weight") if named else None
    if own is None or file.get_slice(key).get_shape() != [*own.shape]:
        return False
    return torch.equal(file.get_tensor(key).to(own.dtype), own.detach().cpu())


def _weights(path: Path, file: Any, name: str, size: Size, linear: Linear) -> LoraWeights:
    found = {matrix: file.get_tensor(_key(name, matrix)).to(linear.dtype) for matrix in "AB"}
    for matrix, tensor in found.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {_key(name, matrix)}: expected numbers that are finite in {linear.dtype}")
    return LoraWeights(found["A"], found["B"], size.scaling)


def _some(names: list[str]) -> str:
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return ", ".join([*names[:_MOST_NAMED], *more])
