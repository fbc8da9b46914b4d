"""An adapter's folder is compared with the model before its data is read; what is not as it should be is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from csgmv.integrations import peft_folder
from csgmv.integrations.linear_layers import Linear

MODULES = {
    "": None,
    "norm": None,
    "q": Linear(6, 4, torch.float32),
    "half": Linear(6, 5, torch.float16),
    "head": Linear(6, 7, torch.float32),
}
BASE = {"head.weight": torch.arange(42.0).view(7, 6), "norm.weight": torch.ones(6)}
PREFIX = "base_model.model."


def written(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q", "half"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(known))
    save_file({PREFIX + name: tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def good() -> dict[str, torch.Tensor]:
    sizes = {"q": 4, "half": 5}
    tensors = {f"{name}.lora_A.weight": torch.randn(2, 6) for name in sizes}
    return tensors | {f"{name}.lora_B.weight": torch.randn(width, 2) for name, width in sizes.items()}


def read(folder: Path) -> dict[str, peft_folder.LoraWeights]:
    return peft_folder.read(folder, MODULES, {"q", "half"}, BASE)


def test_weights_by_module(tmp_path: Path) -> None:
    """In each module's own dtype, whatever they were saved in."""
    tensors = good()
    tensors["q.lora_A.weight"] = tensors["q.lora_A.weight"].bfloat16()
    found = read(written(tmp_path, tensors, alpha_pattern={"half": 5}))
    assert {name: (weights.rank, weights.scaling) for name, weights in found.items()} == {
        "q": (2, 1.5),
        "half": (2, 2.5),
    }
    assert torch.equal(found["q"].lora_a, tensors["q.lora_A.weight"].float())
    assert torch.equal(found["half"].lora_b, tensors["half.lora_B.weight"].half())


def test_copies_of_the_models_own_parameters_are_let_pass(tmp_path: Path) -> None:
    """PEFT saves an lm_head beside its adapter; another one is refused, since it would have to replace the model's."""
    tensors = good() | {"head.base_layer.weight": BASE["head.weight"], "norm.weight": BASE["norm.weight"]}
    assert set(read(written(tmp_path, tensors))) == {"q", "half"}
    for other in (BASE["head.weight"] + 1, torch.ones(2, 6)):
        tensors["head.base_layer.weight"] = other
        with pytest.raises(
            ValueError, match=r"expected lora_A and lora_B weights only, got .*head\.base_layer\.weight"
        ):
            read(written(tmp_path, tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q.lora_A.weight": torch.ones(3, 6)}, r"q\.lora_A\.weight: expected shape \[2, 6\], .* got \[3, 6\], F32"),
        ({"q.lora_B.weight": torch.ones(5, 2)}, r"q\.lora_B\.weight: expected shape \[4, 2\], .* got \[5, 2\]"),
        ({"q.lora_B.weight": torch.ones(8)}, r"expected shape \[4, 2\], .* got \[8\]"),
        ({"q.lora_A.weight": torch.ones(2, 6).double()}, "BF16 or F16 or F32, got .* F64"),
        ({"q.lora_A.weight": torch.ones(2, 6).int()}, "BF16 or F16 or F32, got .* I32"),
        ({"q.lora_A.weight": torch.full((2, 6), float("nan"))}, r"q\.lora_A\.weight: expected numbers that are finite"),
        (
            {"half.lora_B.weight": torch.full((5, 2), 1e5)},
            r"half\.lora_B\.weight: expected .* finite in torch\.float16",
        ),
        ({"q.lora_A.weight": None}, r"of every module that the config targets, got no base_model\.model\.q\.lora_A"),
        ({"head.lora_A.weight": torch.ones(2, 6)}, "of the model's modules that the config targets, got .*head"),
        ({"../../etc.lora_A.weight": torch.ones(2, 6)}, r"modules that the config targets, got .*\.\./\.\./etc"),
        ({"__class__.lora_B.weight": torch.ones(2, 6)}, "modules that the config targets, got .*__class__"),
        ({"q.lora_magnitude_vector": torch.ones(4)}, "lora_A and lora_B weights only, got .*lora_magnitude_vector"),
        ({"q.lora_B.bias": torch.ones(4)}, r"lora_A and lora_B weights only, got .*q\.lora_B\.bias"),
        ({"q.lora_embedding_A": torch.ones(4)}, "lora_A and lora_B weights only, got .*lora_embedding_A"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    """Key, what was expected and what came."""
    tensors = {name: tensor for name, tensor in (good() | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=rf"adapter_model\.safetensors: .*{message}"):
        read(written(tmp_path, tensors))


def test_targets_must_be_linear_layers_of_the_model(tmp_path: Path) -> None:
    """Nothing at all, or a norm."""
    for targets, message in ((["k"], r"that the model has, got \['k'\]"), (["q", "norm"], "linear layers, got norm")):
        with pytest.raises(ValueError, match=f"adapter_config.json: expected target_modules .*{message}"):
            read(written(tmp_path, good(), target_modules=targets))


def test_what_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    """Missing, pickled (never opened), cut off, or with a header that lies about its length."""
    path = written(tmp_path, good()) / "adapter_model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:-5], whole[:60], b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors: expected safetensors, got "):
            read(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"expected .*adapter_model\.safetensors, got no such file$"):
        read(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"convert adapter_model\.bin to safetensors, a pickle is not opened"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder with an adapter_config\.json, got .*nowhere"):
        read(tmp_path / "nowhere")
