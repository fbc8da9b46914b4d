"""A toy whose linear layers a `MultiLoRA` wraps, adapters for it, and what they should give, in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTHS = {"q_proj": 24, "k_proj": 8, "v_proj": 16, "o_proj": 32}
INPUT_DIM = 32


class Attention(nn.Module):
    """q, k and v of one tensor, o of all three."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(INPUT_DIM, WIDTHS[name]) for name in ("q_proj", "k_proj", "v_proj")
        )
        self.o_proj = nn.Linear(48, WIDTHS["o_proj"], bias=False)
        self.eval().requires_grad_(False).to(DEVICE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, tokens, 32] → the same."""
        x = torch.tanh(x)
        mixed = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)
        return self.o_proj(torch.relu(mixed))


def save(folder: Path, rank: int, scaling: float, targets: list[str]) -> Path:
    """A folder as PEFT would save it."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank * scaling, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw, tensors = torch.Generator().manual_seed(rank), {}
    for name in targets:
        input_dim = 48 if name == "o_proj" else INPUT_DIM
        for matrix, shape in (("A", (rank, input_dim)), ("B", (WIDTHS[name], rank))):
            tensors[f"base_model.model.{name}.lora_{matrix}.weight"] = (
                torch.randn(shape, generator=draw) / shape[1] ** 0.5
            )
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def three(folder: Path) -> dict[str, Path]:
    """All layers; q and v; o alone."""
    return {
        "all": save(folder / "all", 5, 0.5, [*WIDTHS]),
        "qv": save(folder / "qv", 16, -1.0, ["q_proj", "v_proj"]),
        "o": save(folder / "o", 3, 2.0, ["o_proj"]),
    }


def merged(folder: Path) -> Attention:
    """The toy with one adapter merged into its weights."""
    from safetensors.torch import load_file

    model, config = Attention(), json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors", device=DEVICE)
    for name in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{name}.lora_{matrix}.weight"] for matrix in "AB")
        getattr(model, name).weight += config["lora_alpha"] / config["r"] * (b @ a)
    return model


def expected(folders: dict[str, Path], names: list[str | None], x: torch.Tensor) -> torch.Tensor:
    """Each row by the model that has its adapter merged."""
    models: dict[str | None, Any] = {None: Attention()} | {name: merged(folder) for name, folder in folders.items()}
    return torch.stack([models[name](x[row : row + 1])[0] for row, name in enumerate(names)])
