"""Which names the reference is about: a page a module, with all that users call and what that returns."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping

# Names of each module; () for those in its __all__. What stands in no page is private.
PAGES: Mapping[str, tuple[str, ...]] = {
    "csgmv": (),
    "csgmv.binaries": ("Warmup",),
    "csgmv.dispatch": ("Choice",),
    "csgmv.overlay": ("Overlay",),
    "csgmv.rules": ("Key",),
    "csgmv.models": ("LayerShape", "layer_shapes"),
    "csgmv.integrations.transformers": ("MultiLoRA",),
    "csgmv.integrations.row_batches": ("StaticBatch",),
    "csgmv.integrations.sglang": (
        "BatchInfo",
        "chunked_sgmv_lora_expand_forward",
        "chunked_sgmv_lora_shrink_forward",
        "install",
        "segments",
    ),
    "csgmv.integrations.vllm": ("install", "lora_expand", "lora_shrink"),
    "csgmv.tuning": (),
}


def names(page: str) -> tuple[str, ...]:
    """The public names of a module."""
    return PAGES[page] or tuple(importlib.import_module(page).__all__)


def objects() -> Iterator[tuple[str, object]]:
    """Every public function, class and public method, by its full name; each page's in turn."""
    for page in PAGES:
        module = importlib.import_module(page)
        for name in names(page):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{page}.{name}", value
            if inspect.isclass(value):
                yield from _methods(f"{page}.{name}", value)


def _methods(name: str, owner: type) -> Iterator[tuple[str, object]]:
    """What the class itself defines under a public name, and a constructor written by hand."""
    for attribute, raw in vars(owner).items():
        value = raw.fget if isinstance(raw, property) else getattr(raw, "__func__", raw)
        by_hand = inspect.isfunction(value) and inspect.getsourcefile(inspect.unwrap(value)) == inspect.getsourcefile(
            owner
        )
        if by_hand and (attribute == "__init__" or not attribute.startswith("_")):
            yield f"{name}.{attribute}", value
