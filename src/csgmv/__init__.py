"""csgmv: many LoRA adapters in one batch, by Triton kernels whose tuned launch configs are part of the package."""

from csgmv._version import __version__
from csgmv.add_lora import add_lora
from csgmv.config import AddLoraConfig, ExpandConfig, ShrinkConfig
from csgmv.dispatch import explain
from csgmv.expand import lora_expand
from csgmv.segments import Segments
from csgmv.shrink import lora_shrink

__all__ = [
    "AddLoraConfig",
    "ExpandConfig",
    "Segments",
    "ShrinkConfig",
    "__version__",
    "add_lora",
    "explain",
    "lora_expand",
    "lora_shrink",
]
