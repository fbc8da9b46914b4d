"""Wrong arguments of what a server calls beside the operations: look-ups, files, warm-up, adapters, models' layers."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import csgmv
from batches import DEVICE
from csgmv import binaries, models
from csgmv.integrations.row_batches import StaticBatch
from csgmv.integrations.transformers import MultiLoRA
from csgmv.models import LayerShape
from fabricated import document, put
from peft_models import save_adapter, tiny
from wrong import DEVICES, Case, From, Subject, flag, whole

_16 = r"^dtype: expected torch\.float16, torch\.bfloat16"
_OF_ITS_CLASS = [(wrong, ValueError) for wrong in (torch.int8, torch.float64)]
_OF_ANOTHER = [("float16", TypeError), (None, TypeError)]
_DTYPE_OR_NONE = [(*case, rf"{_16}, torch\.float32 or None, got ") for case in (*_OF_ITS_CLASS, _OF_ANOTHER[0])]
_DTYPE = [(*case, rf"{_16} or torch\.float32, got ") for case in (*_OF_ITS_CLASS, *_OF_ANOTHER)]
_folder = Path(tempfile.mkdtemp(prefix="csgmv-every-input-"))
_OPS = "expected (some|one) of shrink, expand, add_lora, got"


def _explained() -> dict[str, Any]:
    return dict(op="add_lora", max_rank=8, input_dim=64, slice_widths=(32,), chunk_size=16, num_segments=4)


_EXPLAIN = Subject(
    csgmv.explain,
    lambda: {**_explained(), "device": DEVICE},
    {
        "op": [(wrong, ValueError, f"^op: {_OPS} ") for wrong in ("sgmv", None, 3, ["shrink"])],
        "max_rank": whole("max_rank", 0, 257),
        "input_dim": [*whole("input_dim", -1), (0, ValueError, "^input_dim: expected a positive number for add_lora")],
        "slice_widths": [
            (None, TypeError, "^slice_widths: expected whole numbers, got None"),
            (32, TypeError, "^slice_widths: expected whole numbers, got 32"),
            ("32", TypeError, "^slice_widths: expected whole numbers, got '32'"),
            ((32.0,), TypeError, r"^slice_widths: expected a whole number, got 32\.0"),
            ((-1,), ValueError, "^slice_widths: expected 0 or more, got -1"),
            ((), ValueError, r"^slice_widths: expected 1 non-negative widths for add_lora, got \[\]"),
            ((8,) * 5, ValueError, "^num_slices: expected 1 to 4, got 5"),
        ],
        "num_slices": [
            *whole("num_slices", 0, 5, optional=True),
            (2, ValueError, "^slice_widths: expected 2 non-negative"),
        ],
        "dtype": _DTYPE,
        "chunk_size": whole("chunk_size", 0),
        "num_segments": whole("num_segments", -1),
        "batch_invariant": flag("batch_invariant"),
        "device": DEVICES,
    },
)


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """As far as the arguments of a warm-up are looked at, there is one; nothing is compiled for it."""
    with contextlib.ExitStack() as stack:
        for thing, name, value in (
            (binaries.launch, "INTERPRETED", False),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "device", contextlib.nullcontext),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None)),
            (binaries, "_without_rows", lambda chunk_size, *_: SimpleNamespace(chunk_size=chunk_size)),
            (binaries, "_calls", lambda *_: ()),
            (binaries.sizes_of_chunks, "possible", lambda *_: {16}),
        ):
            stack.enter_context(mock.patch.object(thing, name, value))
        yield


def _warmed(**arguments: Any) -> None:
    with _as_on_a_gpu():
        csgmv.warmup(**arguments)


_WARMUP = Subject(
    csgmv.warmup,
    lambda: dict(layers=[LayerShape("qkv", 64, (32, 16))], max_rank=8, max_tokens=64, max_loras=2),
    {
        "layers": [
            ([], ValueError, "^layers: expected at least one, got none"),
            (["qkv"], TypeError, "^layers: expected a model or LayerShapes, got str among them"),
            ("/no/such/folder", ValueError, "^model: expected a hub name, a folder .*, got no folder /no/such/folder"),
            ([LayerShape("o", 0, (8,))], ValueError, "^input_dim: expected a positive number for add_lora, got 0"),
            ([LayerShape("o", 8, (8,) * 5)], ValueError, "^num_slices: expected 1 to 4, got 5"),
            (None, ValueError, "^model: expected one of .*, got 'NoneType'"),
        ],
        "max_rank": whole("max_rank", 0, 257),
        "max_tokens": whole("max_tokens", 0),
        "max_loras": whole("max_loras", -1),
        "tp": [*whole("tp", 0), (2, ValueError, "^tp: expected 1 with LayerShapes, .* got 2")],
        "dtype": _DTYPE,
        "ops": [(wrong, ValueError, f"^ops: {_OPS} ") for wrong in (("shrink", "fly"), (), None, "shrink", 3)],
        "chunk_sizes": [
            ([], ValueError, "^chunk_sizes: expected at least one, got none"),
            ([16, 0], ValueError, "^chunk_sizes: expected 1 or more, got 0"),
            ([16.0], TypeError, r"^chunk_sizes: expected a whole number, got 16\.0"),
            (16, TypeError, "^chunk_sizes: expected whole numbers, got 16"),
            ("16", TypeError, "^chunk_sizes: expected whole numbers, got '16'"),
        ],
        "padded": flag("padded"),
        "batch_invariant": flag("batch_invariant"),
        "apart": [
            (wrong, ValueError, "^apart: expected some of lora_a, lora_b, h, base_output, got ")
            for wrong in (("x",), "lora_a", None, 3, [["h"]])
        ],
        "device": [*DEVICES, ("cpu", ValueError, "^device: expected a GPU, got cpu")],
        "threads": whole("threads", 0, optional=True),
        "progress": [(3, TypeError, "^progress: expected a function or None, got 3")],
    },
    call=_warmed,
)


def _results() -> Path:
    return put(_folder, "results/shrink.json", document()).parent


_OVERLAY = Subject(
    csgmv.load_overlay,
    lambda: dict(path=_results()),
    {
        "path": [
            *((wrong, TypeError, "^path: expected a str or a PathLike, got ") for wrong in (None, 3, b"folder", [])),
            ("/no/such/folder", ValueError, "^/no/such/folder: expected raw results, got no such file or folder"),
            ("nul\0in it", ValueError, "^nul\0in it: expected raw results, got no such file or folder"),
        ],
    },
)


def _recorded(path: Any) -> None:
    csgmv.record_misses(path)
    csgmv.record_misses(None)


_MISSES = Subject(
    csgmv.record_misses,
    lambda: dict(path=_folder / "misses.json"),
    {
        "path": [
            *((wrong, TypeError, "^path: expected a str, a PathLike or None, got ") for wrong in (3, b"file", [])),
            ("nul\0in it", ValueError, "^path: expected a file, got 'nul"),
            ("", ValueError, "^path: expected a file, got ''"),
            (_folder, ValueError, "^path: expected a file, got the folder "),
        ],
    },
    call=_recorded,
)


_model = functools.cache(tiny)  # which no case may change


def _adapter(name: str, **config: Any) -> Path:
    folder = _folder / name
    if not folder.exists():
        save_adapter(_model(), folder, **{"r": 2, "target_modules": ["q_proj"], **config})
    return folder


def _served() -> dict[str, Any]:
    return dict(model=_model(), adapters={"a": _adapter("a")})


_FOLDERS: list[Case] = [
    (None, TypeError, "^folder: expected a str or a PathLike, got NoneType"),
    (3, TypeError, "^folder: expected a str or a PathLike, got int"),
    (b"folder", TypeError, "^folder: expected a str or a PathLike, got bytes"),
    ("/no/such/folder", ValueError, r"^adapter: expected a folder with an adapter_config\.json, got .*/no/such/folder"),
    ("nul\0in it", ValueError, r"^adapter: expected a folder with an adapter_config\.json, got "),
    (__file__, ValueError, r"^adapter: expected a folder with an adapter_config\.json, got "),
]


def _closed_after(**arguments: Any) -> None:
    MultiLoRA(**arguments).close()


def _of_an_open_one(call: Any) -> Any:
    def called(**arguments: Any) -> None:
        with MultiLoRA(**_served(), max_loras=2) as many:
            before = many.adapters
            try:
                call(many, **arguments)
            except BaseException:
                assert many.adapters == before
                raise

    return called


def _used(many: MultiLoRA, batch: Any, **given: Any) -> None:
    with many.use(batch, **given):
        pass


_NAMES: list[Case] = [
    ("a", TypeError, "^batch: expected a sequence with an adapter's name or None for each row, got 'a'"),
    (3, TypeError, "^batch: expected a sequence with an adapter's name or None for each row, got 3"),
    (None, TypeError, "^batch: expected a sequence .*, got None"),
    ([], ValueError, "^batch: expected an adapter's name or None for each row, got no rows"),
    (["b"], ValueError, r"^batch: expected names of adapters \(a\), got 'b'"),
    ([["a"]], ValueError, r"^batch: expected names of adapters \(a\), got \['a'\]"),
    ([0], ValueError, r"^batch: expected names of adapters \(a\), got 0"),
]


def _a_layers_config(**change: Any) -> SimpleNamespace:
    sizes = dict(hidden_size=96, num_attention_heads=12, num_key_value_heads=4, intermediate_size=264, vocab_size=999)
    return SimpleNamespace(**{"model_type": "llama", "num_hidden_layers": 2, **sizes, **change})


def _size(name: str, *wrong: Any) -> list[Case]:
    said = rf"^model: expected {name} of 'llama' to be (a positive integer|at most \d+), got "
    return [(From(lambda _, value=value: _a_layers_config(**{name: value})), ValueError, said) for value in wrong]


_LAYER_SHAPES = Subject(
    models.layer_shapes,
    lambda: dict(model=_a_layers_config()),
    {
        "model": [
            (3, ValueError, "^model: expected one of .*, got 'int'"),
            (None, ValueError, "^model: expected one of .*, got 'NoneType'"),
            (From(lambda _: _a_layers_config(model_type=3)), ValueError, "^model: expected one of .*, got '3'"),
            (
                From(lambda _: _a_layers_config(model_type=["x"])),
                ValueError,
                r"^model: expected one of .*, got .*\['x'\]",
            ),
            *_size("hidden_size", 0, -1, 1.5, "96", None, True, [96]),
            *_size("num_attention_heads", 0, "12"),
            *_size("num_hidden_layers", 0, "2", 1.5, 10**12),
            *_size("vocab_size", "999", 0),
            *_size("head_dim", "8", -8),
            ("/no/such/folder", ValueError, "^model: expected a hub name, a folder .* got no folder"),
        ],
        "tp": [*whole("tp", 0), (5, ValueError, "^tp: expected a number that divides num_attention_heads = 12, got 5")],
        "trust_remote_code": flag("trust_remote_code"),
        "targets": [
            (["nowhere"], ValueError, r"^targets: expected any of .*, got \['nowhere'\]"),
            ("nowhere", ValueError, "^targets: expected any of .*, got 'nowhere'"),
            ("(", ValueError, r"^targets: expected names or a regular expression, got '\('"),
            (3, TypeError, "^targets: expected names or a regular expression, got 3"),
            ([3], TypeError, r"^targets: expected names or a regular expression, got \[3\]"),
        ],
    },
)
_PARSE_LAYER = Subject(
    models.parse_layer,
    lambda: dict(text="qkv:64:32+16+16"),
    {
        "text": [
            (wrong, ValueError, r"^layer: expected NAME:INPUT_DIM:W1\+W2\+W3 .*got ")
            for wrong in (
                "",
                "qkv",
                "qkv:64",
                ":64:32",
                "o:0:8",
                "o:8:-1",
                "o:x:8",
                "o:8:1+2+3+4+5",
                "o:8:8:8",
                None,
                3,
            )
        ]
    },
)
_MULTI = Subject(
    MultiLoRA,
    _served,
    {
        "model": [
            (None, TypeError, r"^model: expected a torch\.nn\.Module, got NoneType"),
            ("Qwen/Qwen3-0.6B", TypeError, r"^model: expected a torch\.nn\.Module, got str"),
            (From(lambda _: tiny().to("meta")), ValueError, "^model: expected it on a GPU, got meta"),
        ],
        "adapters": [
            (None, TypeError, "^adapters: expected folders by name, got NoneType"),
            (["a"], TypeError, "^adapters: expected folders by name, got list"),
            *(
                (From(lambda _, name=name: {name: _adapter("a")}), TypeError, "^adapters: expected names, got ")
                for name in ("", None, 3)
            ),
            *(({"a": wrong}, kind, message) for wrong, kind, message in _FOLDERS),
            ({}, ValueError, "^adapters: expected at least one, or target_modules that the model has, got neither"),
        ],
        "max_loras": [*whole("max_loras", 0, optional=True)],
        "max_rank": [
            *whole("max_rank", 0, 257, optional=True),
            (1, ValueError, "^adapter 'a': expected ranks of at most max_rank 1, got 2 of .*q_proj"),
        ],
        "target_modules": [
            ("(", ValueError, r"^target_modules: expected names or a regular expression, got '\('"),
            (3, TypeError, "^target_modules: expected names or a regular expression, got 3"),
            ([3], TypeError, r"^target_modules: expected names or a regular expression, got \[3\]"),
            (None, TypeError, "^target_modules: expected names or a regular expression, got None"),
        ],
        "dtype": _DTYPE_OR_NONE,
    },
    call=_closed_after,
)
_METHODS = [
    Subject(
        MultiLoRA.use,
        lambda: dict(batch=["a", None]),
        {"batch": _NAMES, "chunk_size": whole("chunk_size", 0, optional=True)},
        call=_of_an_open_one(_used),
    ),
    Subject(
        MultiLoRA.static,
        lambda: dict(rows=2, tokens=1),
        {
            "rows": whole("rows", 0),
            "tokens": whole("tokens", 0),
            "chunk_size": whole("chunk_size", 0, optional=True),
        },
        call=_of_an_open_one(lambda many, **given: many.static(**given)),
    ),
    Subject(
        MultiLoRA.add,
        lambda: dict(name="b", folder=_adapter("b", target_modules=["q_proj"])),
        {
            "name": [
                *((wrong, TypeError, "^adapters: expected names, got ") for wrong in (None, "", 3, ["b"])),
                ("a", ValueError, "^name: expected a new one, got 'a'"),
            ],
            "folder": _FOLDERS,
        },
        call=_of_an_open_one(lambda many, **given: many.add(**given)),
    ),
    Subject(
        MultiLoRA.remove,
        lambda: dict(name="a"),
        {"name": [(wrong, ValueError, "^name: expected one of a, got ") for wrong in ("b", None, 3, ["a"])]},
        call=_of_an_open_one(lambda many, **given: many.remove(**given)),
    ),
    Subject(
        StaticBatch.update,
        lambda: dict(names=["a", None]),
        {
            "names": [
                *((wrong, kind, message.replace("^batch:", "^names:")) for wrong, kind, message in _NAMES),
                (["a"] * 3, ValueError, r"^names: expected .* \(3\), .* got 2"),
            ]
        },
        call=_of_an_open_one(lambda many, **given: many.static(2).update(**given)),
    ),
]
SUBJECTS = [_EXPLAIN, _WARMUP, _OVERLAY, _MISSES, _LAYER_SHAPES, _PARSE_LAYER, _MULTI, *_METHODS]
SUBJECTS.append(Subject(csgmv.debug, dict, {}))
SUBJECTS.append(Subject(MultiLoRA.close, dict, {}, call=_of_an_open_one(MultiLoRA.close)))
