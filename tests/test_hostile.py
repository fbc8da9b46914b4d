"""Whatever an adapter's folder, a model's config or a file of ours holds, it is refused in a line or read rightly.

Nothing is written, and nothing but csgmv's own errors comes out. `python tests/hostile.py SECONDS [SEED]` does more.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hostile import ADAPTER, KINDS, adapter_weights, nested, outcome, run

# Those that need the codegen are in test_codegen_hostile.py.
HERE = [kind for kind in (*KINDS, "weights") if kind != "results"]


@pytest.mark.parametrize("kind", HERE)
def test_a_hundred_spoilt_files(kind: str, tmp_path: Path) -> None:
    """Most are refused; in some, what was changed does not matter."""
    found = run(kind, tmp_path, random.Random(20), 20 if kind == "model" else 60)
    assert sum(found.values()) - found["read"] > found["read"]


@pytest.mark.parametrize("kind", [kind for kind in HERE if kind not in ("model", "peers")])
def test_cut_off_at_every_byte(kind: str, tmp_path: Path) -> None:
    """No part of a file passes for the whole."""
    whole = adapter_weights() if kind == "weights" else json.dumps(KINDS[kind].good()).encode()
    for length in range(len(whole)):
        assert outcome(kind, tmp_path, whole[:length]) != "read", length
    assert outcome(kind, tmp_path, whole) == "read"


def deep(depth: int) -> Any:
    return json.loads(nested(depth))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers_pattern": 5}, r"expected layers_pattern to be regular expressions, got 5"),
        ({"layers_pattern": {"layers": 1}}, r"expected layers_pattern to be regular expressions, got "),
        ({"unheard_of": deep(300)}, r"expected plain LoRA, got unheard_of = \[\["),
        ({"unheard_of": "x" * 100_000}, r"expected plain LoRA, got unheard_of = 'xxx.{0,30}xxx'$"),
        ({"peft_type": deep(300)}, r"expected peft_type LORA, got \[\["),
        ({"r": True}, "expected r and rank_pattern to hold whole numbers from 1 to 256, got True"),
        ({"r": 10**400}, "expected r and rank_pattern to hold whole numbers from 1 to 256, got 1000"),
        ({"lora_alpha": 10**400}, "expected lora_alpha and alpha_pattern to hold finite numbers, got 1000"),
        ({"target_modules": "(" * 5000 + ")" * 5000}, "expected target_modules to be names or a regular expression"),
    ],
)
def test_adapters_that_once_broke_something(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    """A traceback, or a message of megabytes."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({**ADAPTER, **change}))
    with pytest.raises(ValueError, match=said) as caught:
        KINDS["sizes"].read(tmp_path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"r": 2, "r": 200}', "expected JSON, got a name that is given more than once"),
        (b'{"r": 2, "lora_alpha": NaN}', "expected JSON, got NaN, which is not a JSON number"),
        (b'{"r": 2}' + b" " * 2**20, "expected at most 1048576 bytes, got 1048584"),
        (b"\xff", "to be text that can be read"),
        (b"[]", r"expected an object, got \[\]"),
    ],
)
def test_files_that_are_no_plain_json(content: bytes, said: str, tmp_path: Path) -> None:
    """Of a name that is given twice, nobody can say which one was meant."""
    (tmp_path / "adapter_config.json").write_bytes(content)
    for kind in ("adapter", "sizes"):
        with pytest.raises(ValueError, match=said):
            KINDS[kind].read(tmp_path)


def test_many_layers_are_no_endless_search(tmp_path: Path) -> None:
    """Each layer's path is compared with a regular expression."""
    config = {**KINDS["model"].good(), "num_hidden_layers": 10**12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="num_hidden_layers of 'llama' to be at most 10000, got 1000000000000"):
        KINDS["model"].read(tmp_path)
