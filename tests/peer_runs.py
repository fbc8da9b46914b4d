"""What bench_peers.py writes, made up: times as an H200 gave them, or in proportion to the bytes that move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LAYERS = {"qkv": (1024, 3, 4096), "o": (2048, 1, 1024), "gate_up": (1024, 2, 6144), "down": (3072, 1, 1024)}
CHUNKS = (16, 32, 64, 128)
_TB = 4.2e6  # bytes a microsecond
# How many times its floor a backend takes, at the chunk sizes in turn.
_PREFILL = {
    "s511": (7, 6, 5, 4.5),
    "s523": (6.9, 6, 5, 4.4),
    "vllm": (5.5, 5.5, 5.5, 5.5),
    "csgmv": (1.9, 1.5, 1.3, 1.2),
}
_SPLIT = {"s511": 9.0, "s523": 8.5, "vllm": 9.5, "csgmv": 2.0}
# tokens, adapters, layer: floor, then s511, s523, s523_t, s523_sk, vllm, csgmv
_DECODE = {
    (1, 1, "qkv"): (0.4, 16.8, 16.5, 15.8, 10.4, 16.7, 5.2),
    (1, 1, "gate_up"): (0.5, 17.1, 17.0, 16.2, 10.8, 20.4, 5.6),
    (1, 1, "down"): (0.3, 34.0, 33.9, 32.3, 11.1, 9.8, 5.9),
    (32, 32, "qkv"): (11.2, 63.9, 40.2, 32.9, 41.0, 229.5, 20.1),
    (32, 32, "gate_up"): (16.6, 75.2, 68.3, 50.6, 67.7, 259.7, 27.3),
    (32, 32, "down"): (8.2, 43.9, 43.1, 39.4, 29.3, 32.5, 15.2),
}


def document(drift: float = 1.0) -> dict[str, Any]:
    """All suites; `drift` times as long as usual for csgmv."""
    prefill = []
    for layer, (input_dim, slices, output_dim) in LAYERS.items():
        floors = {
            "s": 2 * 30720 * (input_dim + slices * 64) / _TB,
            "e": 2 * 30720 * (2 * output_dim + slices * 64) / _TB,
        }
        for index, chunk in enumerate(CHUNKS):
            row: dict[str, Any] = {"layer": layer, "chunk": chunk}
            for end, floor in floors.items():
                row |= {f"floor_{end}": floor, f"limit_{end}": 1.15 * floor, f"cublas_{end}": 1.7 * floor}
                for name, times in _PREFILL.items():
                    row[f"{name}_{end}"] = floor * times[index] * (drift if name == "csgmv" else 1)
            prefill.append(row | {"csgmv_pair": 0.9 * (row["csgmv_s"] + row["csgmv_e"])})
    mixed = []
    for tokens, adapters in ((512, 8), (8192, 32)):
        for layer, (input_dim, slices, output_dim) in LAYERS.items():
            moved = tokens * (input_dim + 2 * output_dim) + adapters * 64 * (slices * input_dim + output_dim)
            row = {"tokens": tokens, "adapters": adapters, "layer": layer, "floor": 2 * moved / _TB}
            for name, times in _SPLIT.items():
                row[name] = (6 if name == "csgmv" else 12) + row["floor"] * times * (drift if name == "csgmv" else 1)
                row[f"{name}_chunk"] = 64 if tokens > 512 else 16
            mixed.append(row)
    names = ("floor", "s511", "s523", "s523_t", "s523_sk", "vllm", "csgmv")
    decode = [
        dict(zip(("tokens", "adapters", "layer"), launch)) | dict(zip(names, times))
        for launch, times in _DECODE.items()
    ]
    for row in decode:
        row["csgmv"] *= drift
    host: dict[str, Any] = {"torch.empty": 3.4, "csgmv_pair": 14.0 * drift}
    for name, call in {"s511": (30.0, 33.0), "s523": (21.0, 24.0), "s523_sk": (48.0, 25.0), "vllm": (46.0, 40.0),
                       "csgmv": (9.5 * drift, 10.5 * drift)}.items():  # fmt: skip
        host |= {f"{name}_s": call[0], f"{name}_e": call[1]}
    return {"prefill": prefill, "mixed": mixed, "decode": decode, "host": [host]}


def whole_models() -> dict[str, Any]:
    """The suite of whole models; in its second batch csgmv's result was wrong."""
    others = {"torch_bmm": 50.0, "peft_mixed": 300.0, "csgmv_no_adapter": 42.0, "base_beside_no_adapter": 40.0}
    right = {"rel_err_vs_peft": 0.02, "base": 40.0, "csgmv": 44.0}
    return {
        "e2e": [
            {"batch": 8, "length": 1024, **others, **right},
            {"batch": 64, "length": 128, **others, "rel_err_vs_peft": 0.9},
        ]
    }


def put(path: Path, content: object) -> Path:
    """Writes a run as bench_peers.py does."""
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path
