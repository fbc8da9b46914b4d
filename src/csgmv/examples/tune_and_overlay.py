"""Tune a layer on this machine's GPU and launch with what was found, in one process, without a rebuild."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

import csgmv
from csgmv.models import LayerShape
from csgmv.tuning import Plan, tune

# A layer that no table knows, and one batch size: some seconds' work. `csgmv tune --model NAME` does all of a model's.
LAYER = LayerShape("mine", 640, (1536,))
PLAN = Plan([LAYER], max_rank=24, chunk_sizes=[16], tokens=[64], adapters=[4], ops=["shrink", "expand", "add_lora"])
WITHOUT_A_GPU = """\
Tuning needs a GPU, and torch finds none here. On a machine with one, this example
 1. tunes {layers} at rank {rank}: {keys} keys,
 2. loads the results over this process's table by csgmv.load_overlay(FOLDER),
 3. shows which config a launch got before, and which it gets then.
For a model's layers, the same by the command line:
    csgmv tune --model Qwen/Qwen3-Embedding-0.6B --rank 64 --out tuned --then-load
and at the start of each process that serves: csgmv.load_overlay("tuned")."""


def explained() -> str:
    """Which config an `add_lora` of the layer gets, and by which step of the fallback."""
    choice = csgmv.explain(
        "add_lora",
        input_dim=LAYER.input_dim,
        slice_widths=LAYER.slice_widths,
        max_rank=PLAN.max_rank,
        chunk_size=16,
        num_segments=4,
    )
    return f"{choice.step}: {choice.config}"


def main() -> None:
    """Tune, load, and show the difference; or say what would be done."""
    if not torch.cuda.is_available():
        layers = f"{LAYER.input_dim} → {'+'.join(map(str, LAYER.slice_widths))}"
        print(WITHOUT_A_GPU.format(layers=layers, rank=PLAN.max_rank, keys=len(PLAN.tasks())))
        print(f"\nToday a launch of that layer gets, {explained()}")
        return
    print(f"before: {explained()}")
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        summary = tune(PLAN, Path(folder))
        print(f"{summary.tuned} keys tuned in {time.monotonic() - started:.0f} s")
        print(csgmv.load_overlay(folder))
    print(f"after:  {explained()}")


if __name__ == "__main__":
    main()
