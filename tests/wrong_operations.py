"""Wrong arguments of the three operations, of configs, and of sglang's functions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import csgmv
from batches import DEVICE, make_batch
from csgmv import rules
from csgmv.integrations import lora_batch_info, sglang
from wrong import Case, From, Subject, flag, whole

_SIZES = dict(ranks=[4, 3], max_rank=4, input_dim=32, widths=[8, 4], num_tokens=9, chunk_size=4)


def _shrink() -> dict[str, Any]:
    batch = make_batch(**_SIZES)  # type: ignore[arg-type]
    out = torch.zeros(9, 8, dtype=batch.x.dtype, device=DEVICE)
    return dict(x=batch.x, lora_a=batch.lora_a, segments=batch.segments, num_slices=2, out=out)


def _expand() -> dict[str, Any]:
    batch = make_batch(**_SIZES)  # type: ignore[arg-type]
    h = torch.ones(9, 8, dtype=batch.x.dtype, device=DEVICE)
    offsets, base = batch.slice_offsets, batch.base_output
    return dict(h=h, lora_b=batch.lora_b, segments=batch.segments, slice_offsets=offsets, base_output=base)


def _layer() -> dict[str, Any]:
    batch = make_batch(**_SIZES)  # type: ignore[arg-type]
    return dict(
        base_output=batch.base_output,
        x=batch.x,
        lora_a=batch.lora_a,
        lora_b=batch.lora_b,
        segments=batch.segments,
        slice_offsets=batch.slice_offsets,
    )


def _changed(name: str, change: Any) -> From:
    return From(lambda good: change(good[name]))


def _tensor(name: str, *, like: bool) -> list[Case]:
    """Of any tensor: another class, layout, dtype or device; `like` says that it is compared with the input's."""
    dtype = "float16, bfloat16 or float32, got torch"
    if like:
        dtype = r"torch\.float16 like (the input|lora_b)( or torch\.float32)?, got torch\.float64"
    device = (
        "a tensor on (cpu|cuda:0) like the input, got one on meta" if like else "a tensor on a GPU, got one on meta"
    )
    return [
        ([1.0], TypeError, rf"^{name}: expected a torch\.Tensor, got list"),
        (None, TypeError, rf"^{name}: expected a torch\.Tensor, got NoneType"),
        (_changed(name, lambda one: one.double()), TypeError, f"^{name}: expected {dtype}"),
        (_changed(name, lambda one: one.int()), TypeError, f"^{name}: expected "),
        (_changed(name, lambda one: one.to("meta")), ValueError, f"^{name}: expected {device}"),
        (_changed(name, lambda one: one.to_sparse()), TypeError, rf"^{name}: expected a strided tensor, got .*sparse"),
    ]


def _input(name: str, *, like: bool = False) -> list[Case]:
    return [
        *_tensor(name, like=like),
        (_changed(name, lambda one: one[0]), ValueError, rf"^{name}: expected 2 dimensions, got shape \[\d+\]"),
        (_changed(name, lambda one: one.T.contiguous().T), ValueError, f"^{name}: expected .* got strides"),
    ]


def _weights(name: str) -> list[Case]:
    return [
        *_tensor(name, like=True),
        (_changed(name, lambda one: one[0]), ValueError, rf"^{name}: expected 3 dimensions, got shape \[\d+, \d+\]"),
        (_changed(name, lambda one: one.mT.contiguous().mT), ValueError, f"^{name}: expected a contiguous tensor, got"),
    ]


def _slices(name: str, at: int, counted: str, *of_second: tuple[Any, type[Exception], str]) -> list[Case]:
    """Of what may be a tuple of slices, both of them right but for the second; `at` is where the first one ends."""

    def cut(one: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return one[:, :at].contiguous(), one[:, at:].contiguous()

    def second(change: Any) -> From:
        return _changed(name, lambda one: (cut(one)[0], change(cut(one)[1])))

    said = rf"^{name}\[1\]: expected "
    wrong: list[Case] = [
        ((), ValueError, rf"^{name}: expected a tensor for each slice \(2 by {counted}\), got 0"),
        (_changed(name, lambda one: (one,)), ValueError, rf"^{name}: expected a tensor for each slice .*, got 1"),
        (_changed(name, lambda one: (*cut(one), one)), ValueError, rf"^{name}: expected a tensor for each .*, got 3"),
        (_changed(name, lambda one: [*cut(one)]), TypeError, rf"^{name}: expected a torch\.Tensor, got list"),
        (second(lambda _: None), TypeError, said + r"a torch\.Tensor, got NoneType"),
        (second(lambda one: one.double()), TypeError, said + r".*, got torch\.float64"),
        (second(lambda one: one.to("meta")), ValueError, said + ".* got one on meta"),
        (second(lambda one: one.mT.contiguous().mT), ValueError, said + ".* got strides"),
        (second(lambda one: one[0]), ValueError, said + r"\d dimensions, got shape"),
        (
            _changed(name, lambda one: (None, cut(one)[1])),
            TypeError,
            rf"^{name}\[0\]: expected a torch\.Tensor, got Non",
        ),
    ]
    return wrong + [(second(change), error, said + text) for change, error, text in of_second]


def _more_rows(rank: int = 4) -> csgmv.Segments:
    return csgmv.Segments.from_sequences([10], [0], [rank], [1.0], device=DEVICE)


_SEGMENTS: list[Case] = [
    (None, TypeError, r"^segments: expected csgmv\.Segments, got NoneType"),
    ("segments", TypeError, r"^segments: expected csgmv\.Segments, got str"),
    (From(lambda _: _more_rows()), ValueError, "^segments: expected those of at most 9 tokens, got 10"),
    (
        From(lambda _: csgmv.Segments.from_sequences([9], [0], [4] * 3, [1.0] * 3, device=DEVICE)),
        ValueError,
        "^segments: expected at most 2 adapter slots, as the weights have, got 3",
    ),
    (
        From(lambda _: csgmv.Segments.from_sequences([9], [0], [5], [1.0], device=DEVICE)),
        ValueError,
        "^segments: expected ranks of at most max_rank 4, got 5",
    ),
    (
        From(lambda _: csgmv.Segments([0], [0, 1], [0], [4], [1.0], 4, 1, 9)),  # type: ignore[arg-type]
        TypeError,
        r"^segments\.permutation: expected a torch\.Tensor, got list",
    ),
]
_OFFSETS: list[Case] = [
    (From(lambda _: torch.tensor([0, 8, 12])), TypeError, r"^slice_offsets: expected .* got a torch\.Tensor"),
    (None, TypeError, "^slice_offsets: expected a sequence of host integers, got None"),
    (8, TypeError, "^slice_offsets: expected a sequence of host integers, got 8"),
    ((0, 8.0, 12), TypeError, r"^slice_offsets: expected a sequence of host integers, got \(0, 8\.0, 12\)"),
    ((0, "8", 12), TypeError, "^slice_offsets: expected a sequence of host integers, got "),
    ("012", TypeError, "^slice_offsets: expected a sequence of host integers, got .*0"),
    ((0,), ValueError, r"^slice_offsets: expected 2 to 5 offsets, got \[0\]"),
    ((0, 1, 2, 3, 4, 12), ValueError, "^slice_offsets: expected 2 to 5 offsets, got"),
    ((1, 8, 12), ValueError, r"^slice_offsets: expected to rise from 0 to output_dim, got \[1, 8, 12\]"),
    ((0, 13, 12), ValueError, r"^slice_offsets: expected to rise from 0 to output_dim, got \[0, 13, 12\]"),
    ((0, 8, 11), ValueError, r"^slice_offsets: expected to rise from 0 to output_dim 12, got \[0, 8, 11\]"),
]
_BASE: list[Case] = [
    *_input("base_output", like=True),
    (
        _changed("base_output", lambda one: one[:, :11]),
        ValueError,
        r"^base_output: expected \[9, at least 12\], got shape \[9, 11\]",
    ),
    (_changed("base_output", lambda one: one[:8]), ValueError, r"^base_output: expected \[9, .* got shape \[8, 12\]"),
    (
        _changed("base_output", lambda one: one[:1].expand(9, -1)),
        ValueError,
        r"^base_output: expected rows that do not overlap .* got strides \[0, 1\]",
    ),
    *_slices(
        "base_output",
        8,
        "slice_offsets",
        (lambda one: one[:, :3], ValueError, r"\[9, at least 4\], got shape \[9, 3\]"),
        (lambda one: one[:8], ValueError, r"\[9, at least 4\], got shape \[8, 4\]"),
        (lambda one: one[:1].expand(9, -1), ValueError, r"rows that do not overlap .* got strides \[0, 1\]"),
    ),
]
_LORA_A: list[Case] = [
    *_weights("lora_a"),
    (
        _changed("lora_a", lambda one: one[:, :, :16].contiguous()),
        ValueError,
        r"^lora_a: expected input_dim 32 as x has .* got shape \[2, 8, 16\]",
    ),
    (_changed("lora_a", lambda one: one[:, :7].contiguous()), ValueError, "^lora_a: expected num_slices · max_rank"),
    (_changed("lora_a", lambda one: one[:, :0].contiguous()), ValueError, "^lora_a: expected a max_rank .* got 0"),
    (_changed("lora_a", lambda one: one.repeat(1, 128, 1)), ValueError, "^lora_a: expected a max_rank .* got 512"),
    *_slices(
        "lora_a",
        4,
        "num_slices",
        (lambda one: one[:, :, :16].contiguous(), ValueError, r"input_dim 32 as x has .* got shape \[2, 4, 16\]"),
        (lambda one: one[:, :3].contiguous(), ValueError, r"shape \[2, 4, 32\] as lora_a\[0\] has, got \[2, 3, 32\]"),
        (lambda one: one[:1], ValueError, r"shape \[2, 4, 32\] as lora_a\[0\] has, got \[1, 4, 32\]"),
        (lambda one: one.repeat(1, 128, 1), ValueError, "a max_rank of 1 to 256, got 512"),
    ),
]
_LORA_B: list[Case] = [
    *_weights("lora_b"),
    (_changed("lora_b", lambda one: one[:, :, :0].contiguous()), ValueError, "^lora_b: expected a max_rank .* got 0"),
    (_changed("lora_b", lambda one: one.repeat(1, 1, 128)), ValueError, "^lora_b: expected a max_rank .* got 512"),
    *_slices(
        "lora_b",
        8,
        "slice_offsets",
        (lambda one: one[:, :3].contiguous(), ValueError, r"4 rows, by slice_offsets, got shape \[2, 3, 4\]"),
        (
            lambda one: one[:, :, :3].contiguous(),
            ValueError,
            r"num_loras and max_rank \[2, 4\] as .* got \[2, 3\]",
        ),
        (lambda one: one[:1], ValueError, r"num_loras and max_rank \[2, 4\] as lora_b\[0\] has, got \[1, 4\]"),
        (lambda one: one.repeat(1, 1, 128), ValueError, "a max_rank of 1 to 256, got 512"),
    ),
]


def _config(own: str, other: Any) -> list[Case]:
    return [
        ({}, TypeError, f"^config: expected {own} or None, got dict"),
        (other, TypeError, f"^config: expected {own} or None, got {type(other).__name__}"),
    ]


_SHRINK = Subject(
    csgmv.lora_shrink,
    _shrink,
    {
        "x": _input("x"),
        "lora_a": _LORA_A,
        "segments": _SEGMENTS,
        "num_slices": [
            *whole("num_slices", 0, 5),
            (3, ValueError, "^lora_a: expected .* rows with num_slices 3, got 8"),
        ],
        "out": [
            *[case for case in _input("out", like=True) if case[0] is not None],
            (_changed("out", lambda one: one[:8]), ValueError, r"^out: expected shape \[9, 8\], got \[8, 8\]"),
            (
                _changed("out", lambda one: one.repeat(1, 2)[:, :8]),
                ValueError,
                r"^out: expected a contiguous tensor, got strides \[16, 1\]",
            ),
            *_slices(
                "out",
                4,
                "num_slices",
                (lambda one: one[:8], ValueError, r"shape \[9, 4\], got \[8, 4\]"),
                (lambda one: one.float(), TypeError, r"torch\.float16 like out\[0\], got torch\.float32"),
            ),
        ],
        "padded": flag("padded"),
        "config": _config("ShrinkConfig", csgmv.ExpandConfig()),
        "batch_invariant": flag("batch_invariant"),
    },
)
_EXPAND = Subject(
    csgmv.lora_expand,
    _expand,
    {
        "h": [
            *_input("h"),
            (_changed("h", lambda one: one[:, :4]), ValueError, r"^h: expected shape \[9, 8\], got \[9, 4\]"),
            *_slices("h", 4, "slice_offsets", (lambda one: one[:8], ValueError, r"shape \[9, 4\], got \[8, 4\]")),
        ],
        "lora_b": _LORA_B,
        "segments": _SEGMENTS,
        "slice_offsets": [
            *_OFFSETS,
            ((0, 12), ValueError, r"^h: expected shape \[9, 4\], got \[9, 8\]"),
        ],
        "base_output": _BASE,
        "padded": flag("padded"),
        "config": _config("ExpandConfig", csgmv.ShrinkConfig()),
        "batch_invariant": flag("batch_invariant"),
    },
)
_LAYER = Subject(
    csgmv.add_lora,
    _layer,
    {
        "base_output": _BASE,
        "x": _input("x"),
        "lora_a": _LORA_A,
        "lora_b": [
            *_LORA_B,
            (
                _changed("lora_b", lambda one: one[:1]),
                ValueError,
                r"^lora_b: expected 2 adapters of max_rank 4 as lora_a has, got shape \[1, 12, 4\]",
            ),
            (
                _changed("lora_b", lambda one: one[:, :, :3].contiguous()),
                ValueError,
                r"^lora_b: expected 2 adapters of max_rank 4 as lora_a has, got shape \[2, 12, 3\]",
            ),
        ],
        "segments": _SEGMENTS,
        "slice_offsets": _OFFSETS,
        "padded": flag("padded"),
        "config": [
            *_config("AddLoraConfig", csgmv.ShrinkConfig()),
        ],
        "batch_invariant": flag("batch_invariant"),
    },
)


def _field(op: str, field: rules.Field) -> list[Case]:
    wrong: tuple[Any, ...] = ("16", 1.5, [16], field.most + 1, field.least - 1, 10**30)
    if field.boolean:
        wrong = ("no", 1, None)
    elif not field.optional:
        wrong += (None, True)
    if field.power_of_two and not field.boolean:
        wrong += (3 * field.least,) if 3 * field.least < field.most else ()
    return [(value, ValueError, f"^{op} config: {field.name}: expected .*, got ") for value in wrong]


def _of_class(kind: Any) -> Subject:
    return Subject(kind, dict, {field.name: _field(kind.op, field) for field in rules.FIELDS[kind.op]})


_ADD_LORA_CONFIG = Subject(
    csgmv.AddLoraConfig,
    dict,
    {
        "shrink": [
            (wrong, TypeError, "^shrink: expected ShrinkConfig, got ") for wrong in (None, csgmv.ExpandConfig())
        ],
        "expand": [(wrong, TypeError, "^expand: expected ExpandConfig, got ") for wrong in ({}, csgmv.ShrinkConfig())],
        "overlap": [(wrong, ValueError, "^add_lora config: overlap: expected .*, got ") for wrong in (None, "no", 1)],
    },
)


def batch_info(**change: Any) -> SimpleNamespace:
    """A LoRABatchInfo of sglang's csgmv backend, for the batch of `_SIZES`."""
    segments = make_batch(**_SIZES).segments  # type: ignore[arg-type]
    return SimpleNamespace(
        **{
            "use_cuda_graph": False,
            "num_segments": segments.num_segments,
            "seg_indptr": segments.seg_indptr,
            "weight_indices": segments.weight_indices,
            "lora_ranks": segments.lora_ranks,
            "scalings": segments.scalings,
            "max_len": segments.chunk_size,
            "permutation": segments.permutation,
            **change,
        }
    )


def _without(name: str) -> From:
    def made(_: dict[str, Any]) -> SimpleNamespace:
        info = batch_info()
        delattr(info, name)
        return info

    return From(made)


_DTYPE = r"expected torch\.(int|float)32, got torch\.float(64|16)"
_BATCH_INFO: list[Case] = [
    (None, TypeError, "^batch_info: expected .* permutation.*, got NoneType"),
    *[(_without(name), TypeError, f"^batch_info: expected .*{name}.*, got") for name in vars(batch_info())],
    *[
        (From(lambda _, name=name: batch_info(**{name: getattr(batch_info(), name).double()})), TypeError, _DTYPE)
        for name in ("seg_indptr", "weight_indices", "lora_ranks", "permutation", "scalings")
    ],
    (
        From(lambda _: batch_info(permutation=None)),
        ValueError,
        r"^batch_info\.permutation: expected a tensor, got None",
    ),
    (
        From(lambda _: batch_info(scalings=[1.0])),
        TypeError,
        r"^batch_info\.scalings: expected a torch\.Tensor, got list",
    ),
    (From(lambda _: batch_info(max_len=None)), ValueError, r"^batch_info\.max_len: expected the chunk size.* got None"),
    (From(lambda _: batch_info(max_len=0)), ValueError, r"^batch_info\.max_len: expected 1 or more, got 0"),
    (From(lambda _: batch_info(num_segments=-1)), ValueError, r"^batch_info\.num_segments: expected 0 or more, got -1"),
    (From(lambda _: batch_info(num_segments=99)), ValueError, r"^batch_info\.seg_indptr: expected 100 or more .* got"),
]


def _sglang_shrink() -> dict[str, Any]:
    good = _shrink()
    return dict(x=good["x"], weights=good["lora_a"], batch_info=batch_info(), num_slices=2)


def _sglang_expand() -> dict[str, Any]:
    good = _expand()
    return dict(
        x=good["h"],
        weights=good["lora_b"],
        batch_info=batch_info(),
        slice_offsets=good["slice_offsets"],
        max_slice_size=8,
        base_output=good["base_output"],
    )


_SGLANG = [
    Subject(
        lora_batch_info.segments,
        lambda: dict(batch_info=batch_info()),
        {"batch_info": _BATCH_INFO, "rows": whole("rows", -1, optional=True)},
    ),
    Subject(
        sglang.chunked_sgmv_lora_shrink_forward,
        _sglang_shrink,
        {
            "x": _input("x"),
            "weights": [([1.0], TypeError, r"^lora_a: expected a torch\.Tensor, got list")],
            "batch_info": _BATCH_INFO,
            "num_slices": whole("num_slices", 0, 5),
            "split_k": [
                (value, ValueError, "^shrink config: split_k: expected from 1 to 64, got ")
                for value in (0, 65, "2", 1.5)
            ],
        },
    ),
    Subject(
        sglang.chunked_sgmv_lora_expand_forward,
        _sglang_expand,
        {
            "x": [([1.0], TypeError, r"^h: expected a torch\.Tensor, got list")],
            "weights": [([1.0], TypeError, r"^lora_b: expected a torch\.Tensor, got list")],
            "batch_info": _BATCH_INFO,
            "slice_offsets": [case for case in _OFFSETS if not isinstance(case[0], From)]
            + [
                (From(lambda _: torch.tensor([0.0, 8.0, 12.0])), TypeError, "^slice_offsets: expected .* host integers")
            ],
            "base_output": [case for case in _BASE if case[0] is not None],
            "slice_offsets_cpu": [case for case in _OFFSETS if not (isinstance(case[0], From) or case[0] is None)],
        },
        no_wrong={"max_slice_size": "sglang's callers pass it, and nothing asks for it"},
    ),
]

SUBJECTS = [_SHRINK, _EXPAND, _LAYER, _of_class(csgmv.ShrinkConfig), _of_class(csgmv.ExpandConfig), _ADD_LORA_CONFIG]
SUBJECTS += _SGLANG
