"""The plugin `csgmv` of sglang and of vLLM, which both load plugins into each process that they serve from.

An engine loads every plugin that is installed beside it, so being there must change nothing: csgmv's kernels are put in
only where the engine's own list of plugins names csgmv. Nothing is imported before.

    SGLANG_PLUGINS=csgmv sglang serve --enable-lora --lora-backend csgmv …
    VLLM_PLUGINS=csgmv vllm serve --enable-lora …
"""

from __future__ import annotations

import os


def _named(variable: str) -> bool:
    return "csgmv" in (name.strip() for name in os.environ.get(variable, "").split(","))


def sglang() -> None:
    """`csgmv.integrations.sglang.install`, where SGLANG_PLUGINS names csgmv."""
    if _named("SGLANG_PLUGINS"):
        from csgmv.integrations.sglang import install

        install()


def vllm() -> None:
    """`csgmv.integrations.vllm.install`, where VLLM_PLUGINS names csgmv."""
    if _named("VLLM_PLUGINS"):
        from csgmv.integrations.vllm import install

        install()
