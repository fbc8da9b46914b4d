"""Slices of the published engines, for tests that compare with them."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from engines import NEW, OLD, only

PEERS = pathlib.Path(__file__).parents[2] / ".peers"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The slices' modules under short names."""
    if not PEERS.is_dir():
        pytest.skip("needs slices of the published engines in .peers, which are not part of this repository")
    monkeypatch.syspath_prepend(str(PEERS))
    with only("sglang", "sglang511", "vllm"):
        new, old = NEW, OLD.replace("sglang", "sglang511")
        found = {
            "info": "sglang.srt.lora.utils",
            "new_shrink": f"{new}.chunked_sgmv_shrink",
            "new_expand": f"{new}.chunked_sgmv_expand",
            "old_shrink": f"{old}.chunked_sgmv_shrink",
            "old_expand": f"{old}.chunked_sgmv_expand",
            "vllm_shrink": "vllm.lora.ops.triton_ops.lora_shrink_op",
            "vllm_expand": "vllm.lora.ops.triton_ops.lora_expand_op",
            "vllm_meta": "vllm.lora.ops.triton_ops.lora_kernel_metadata",
        }
        yield SimpleNamespace(**{name: importlib.import_module(module) for name, module in found.items()})
