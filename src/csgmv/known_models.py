"""The dimensions of well-known models, so that their names are enough, without a network and without transformers.

`known_models.json` has for each name on the Hugging Face hub the config.json that it was taken from, the fields of it
that `decoders` reads, the published number of its weights (tied ones counted once), which these fields must come to
(tests/test_known_models.py), and the names of others with the same dimensions.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_DATA = Path(__file__).with_name("known_models.json")


@functools.cache
def models() -> Mapping[str, Mapping[str, Any]]:
    """By the name on the hub: "source", "parameters", "config" and, where there are others like it, "also"."""
    found: Mapping[str, Mapping[str, Any]] = json.loads(_DATA.read_text(encoding="utf-8"))
    return found


@functools.cache
def _names() -> Mapping[str, str]:
    """What a model may be called, in lower case: its whole name, or what comes after the owner's."""
    called = {name: (name, *model.get("also", ())) for name, model in models().items()}
    whole = {other.lower(): name for name, others in called.items() for other in others}
    return {other.rpartition("/")[2]: name for other, name in whole.items()} | whole


def config(name: str) -> Any | None:
    """The config of a known model, as `csgmv.models.layer_shapes` takes it; None for a name that is not known.

    Args:
        name: on the hub, in any case and with or without the owner: "Qwen/Qwen3-8B", "llama-3.1-8b".
    """
    known = _names().get(name.lower())
    return None if known is None else SimpleNamespace(**models()[known]["config"])


def misspelt(name: str) -> list[str]:
    """The known models that a name is most probably meant to be one of; none for other names."""
    alike = difflib.get_close_matches(name.lower(), _names(), n=2, cutoff=0.85)
    return list(dict.fromkeys(_names()[other] for other in alike))


def nearest(name: str) -> list[str]:
    """The known models whose names are most like this one; all of them where none is."""
    short = name.lower().rpartition("/")[2]
    alike = [_names()[other] for other in difflib.get_close_matches(short, _names(), n=6, cutoff=0.6)]
    return list(dict.fromkeys(alike)) or list(models())
