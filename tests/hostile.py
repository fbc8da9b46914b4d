"""Files that nobody should trust, made from good ones: what reads them must refuse them or read them rightly.

`python tests/hostile.py SECONDS [SEED]` goes on for so long; tests/test_hostile.py does a little of it.
"""

from __future__ import annotations

import ast
import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("", "src", "tests")]

import torch
from safetensors.torch import save

from csgmv import merge, misses, models, peers, peft_adapter
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect
from csgmv.cli import _ours
from csgmv.integrations import peft_folder
from csgmv.integrations.linear_layers import Linear
from csgmv.integrations.peft_config import AdapterConfig
from csgmv.reporting import findings
from fabricated import LLAMA, document, record
from peer_runs import document as peer_run

MODULES = {"": None, "model.layers.0.q": Linear(6, 4, torch.float32), "model.layers.1.q": Linear(6, 4, torch.float32)}
ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 3,
    "target_modules": ["q"],
    "rank_pattern": {"1.q": 2},
    "alpha_pattern": {},
    "layers_to_transform": [0, 1],
    "layers_pattern": "layers",
    "exclude_modules": ["k"],
    "base_model_name_or_path": "Qwen/Qwen3-0.6B",
    "use_rslora": False,
}
MISS = {
    "gpu": "NVIDIA H200",
    "triton": "3.6.0",
    "op": "shrink",
    "input_dim": 1024,
    "slice_widths": [],
    "max_rank": 64,
    "num_slices": 3,
    "dtype": "bfloat16",
    "chunk_size": 16,
    "segment_bucket": 8,
    "step": "default",
}


def nested(depth: int) -> str:
    """A list in a list in a list …"""
    return "[" * depth + "]" * depth


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 10**40, 5e-324, 1e308, float("nan"), float("inf"), -0.0),
    *("", " ", "x" * 10_000, "\0", "\ud800", "\u202e", "²", "1" * 300, "Ω", "'''", "\\", "\n", "{{ 7 * 7 }}", "%s%n"),
    *("'] = __import__('os').system('touch hacked') or ['", '"); exit() #', "<script>alert(1)</script>", "(", "(a*)*b"),
    *("../../hacked", "/etc/passwd", "~", "C:\\hacked", "a/../../hacked", "https://example.com/x", "-rf"),
    *([], [[]], [None], {}, {"": 0}, {"__class__": {}}, [[[[[[[[[[]]]]]]]]]], list(range(1000))),
)
TEXTS = (
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "9" * 5000,
    "0x10",
    "01",
    "1.",
    "'x'",
    "[" * 400 + "]" * 400,
    "[" * 100_000,
)


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        name: of the file in its folder.
        good: what it has, before it is spoilt.
        read: what reads it, given the folder; raises what it must, or returns.
    """

    name: str
    good: Callable[[], dict[str, Any]]
    read: Callable[[Path], object]


def _table(folder: Path) -> None:
    """From a folder of results to a table's source, which must hold nothing but literals."""
    from codegen.render import render  # which stays behind where an installed wheel is tested

    text = render(choose(collect(folder).found), "sha256:0")
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, (ast.Call, ast.Lambda, ast.Attribute)), ast.unparse(node)


def _merged(folder: Path) -> None:
    """All files of the outcome are below the folder."""
    collected = collect(folder)
    found = [one for name, content in collected.documents.items() for one in merge.measured(name, dict(content))]
    for name in merge.merged(found).documents:
        assert (folder / name).resolve().is_relative_to(folder.resolve()), name


def _sizes(folder: Path) -> None:
    sizes = AdapterConfig.read(folder).sizes(MODULES, set())
    assert {*sizes} <= {*MODULES}
    assert all(1 <= size.rank <= 256 and abs(size.scaling) < float("inf") for size in sizes.values())


def _config(folder: Path) -> None:
    for layer in models.layer_shapes(folder):
        assert 1 <= layer.input_dim < 2**31
        assert all(1 <= width < 2**63 for width in layer.slice_widths)


KINDS = {
    "results": Kind("results.json", lambda: document(record(), record(chunk_size=32, default=None)), _table),
    "merge": Kind("results.json", document, _merged),
    "misses": Kind("misses.json", lambda: {"schema": 1, "misses": [MISS]}, lambda at: misses.read(at / "misses.json")),
    "peers": Kind("peers.json", peer_run, lambda at: peers.read(at / "peers.json")),
    "bench": Kind(
        "bench.json",
        lambda: {"gpu": "NVIDIA H200", "copy_bandwidth": 4.2e12, "figures": []},
        lambda at: findings.bench_bandwidth(at / "bench.json", "NVIDIA H200"),
    ),
    "adapter": Kind("adapter_config.json", lambda: ADAPTER, peft_adapter.read),
    "sizes": Kind("adapter_config.json", lambda: ADAPTER, _sizes),
    "model": Kind("config.json", lambda: {**LLAMA, "num_hidden_layers": 2, "vocab_size": 99}, _config),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*path, name))


def _with(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    content = copy.deepcopy(content)
    at = content
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return content


def spoilt(content: Mapping[str, Any], draw: random.Random) -> bytes:
    """A file in which something is not as it should be."""
    path = draw.choice([*places(content)])
    kind = draw.randrange(6)
    if kind == 0:  # another value
        return json.dumps(_with(content, path, draw.choice(VALUES))).encode()
    if kind == 1:  # what no value writes
        return json.dumps(_with(content, path, "@@")).replace('"@@"', draw.choice(TEXTS)).encode()
    if kind == 2:  # a name more, a name twice
        text = json.dumps(content)
        name, value = draw.choice([*content, *filter(lambda one: isinstance(one, str), VALUES)]), draw.choice(VALUES)
        return f"{{{json.dumps(name)}: {json.dumps(value)}, {text[1:]}".encode()
    text = json.dumps(content).encode()
    at = draw.randrange(len(text))
    if kind == 3:  # cut off
        return text[:at]
    if kind == 4:  # bytes that are no text
        return text[:at] + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9))) + text[at:]
    return bytes([*text[:at], text[at] ^ (1 << draw.randrange(8)), *text[at + 1 :]])


def adapter_weights() -> bytes:
    """A safetensors file that fits `ADAPTER` and `MODULES`."""
    shapes = {"A": (2, 6), "B": (4, 2)}
    names = {f"base_model.model.{path}.lora_{one}.weight": shapes[one] for path in MODULES if path for one in shapes}
    return bytes(save({name: torch.ones(shape) for name, shape in names.items()}))


def spoilt_weights(content: bytes, draw: random.Random) -> bytes:
    """The same with a header that lies, or cut off, or with other bytes."""
    length = int.from_bytes(content[:8], "little")
    kind = draw.randrange(3)
    if kind == 0:
        header = spoilt(json.loads(content[8 : 8 + length]), draw)
        told = draw.choice([len(header), len(header), len(header) + 1, 0, 2**63, 2**64 - 1])
        return told.to_bytes(8, "little") + header + content[8 + length :]
    at = draw.randrange(len(content))
    return content[:at] if kind == 1 else content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]


def read_weights(folder: Path) -> None:
    """Weights have the shapes that they should, and are finite."""
    found = peft_folder.read(folder, MODULES, set(), {})
    for weights in found.values():
        assert (weights.lora_a.shape, weights.lora_b.shape) == ((2, 6), (4, 2))
        assert bool(weights.lora_a.isfinite().all() & weights.lora_b.isfinite().all())


def outcome(kind: str, folder: Path, content: bytes) -> str:
    """What becomes of a file: "read", or the class of the error that refuses it; anything else is raised."""
    if kind == "weights":
        (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
        (folder / "adapter_model.safetensors").write_bytes(content)
        read: Callable[[Path], object] = read_weights
    else:
        (folder / KINDS[kind].name).write_bytes(content)
        read = KINDS[kind].read
    before = {*folder.rglob("*")}
    try:
        read(folder)
    except (ValueError, OSError) as error:  # commands tell these in one line
        if not (_ours(error) or isinstance(error, OSError)):
            raise AssertionError(f"not said by csgmv: {error!r}") from error
        str(error).encode("utf-8", "backslashreplace")
        return type(error).__name__
    finally:
        assert {*folder.rglob("*")} == before, "a file was written"
    return "read"


def run(kind: str, folder: Path, draw: random.Random, times: int) -> Counter[str]:
    """So many files of a kind; how many came to what."""
    found: Counter[str] = Counter()
    whole = adapter_weights() if kind == "weights" else b""
    for _ in range(times):
        content = spoilt_weights(whole, draw) if kind == "weights" else spoilt(KINDS[kind].good(), draw)
        try:
            found[outcome(kind, folder, content)] += 1
        except BaseException:
            print(f"{kind}: {content[:2000]!r}", file=sys.stderr)
            raise
    return found


def main() -> None:
    """Files of all kinds in turn, until the time is over."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    draw, end = random.Random(seed), time.monotonic() + seconds
    found: dict[str, Counter[str]] = {kind: Counter() for kind in (*KINDS, "weights")}
    while time.monotonic() < end:
        for kind, counts in found.items():
            with tempfile.TemporaryDirectory() as folder:
                counts.update(run(kind, Path(folder), draw, 20))
    for kind, counts in found.items():
        print(f"{kind}: {counts.total():,} files, {', '.join(f'{number:,} {what}' for what, number in counts.items())}")


if __name__ == "__main__":
    main()
