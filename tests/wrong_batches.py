"""Wrong arguments of all that makes or refills `Segments`; and what `Segments.check` finds in tensors."""

from __future__ import annotations

from typing import Any

import torch

from batches import DEVICE
from csgmv import Segments
from wrong import DEVICES, Case, From, Subject, whole

NAN, INF = float("nan"), float("inf")


def _vector(name: str, *, whole_numbers: bool = True) -> list[Case]:
    """Of a list or tensor of numbers: another class, another shape, numbers of another kind."""
    kind = "whole numbers" if whole_numbers else "numbers"
    listed = f"^{name}: expected a list or tensor of {kind}, got "
    cases: list[Case] = [
        (7, TypeError, f"^{name}: expected a list or tensor of numbers, got int"),
        (None, TypeError, f"^{name}: expected a list or tensor of numbers, got NoneType"),
        (b"ab", TypeError, f"^{name}: expected a list or tensor of numbers, got bytes"),
        ({0: 1}, TypeError, f"^{name}: expected a list or tensor of numbers, got dict"),
        (["a", "b"], TypeError, listed),
        ([[1, 1]], TypeError, listed),
        (From(lambda _: torch.tensor([[1, 1]])), ValueError, rf"^{name}: expected one dimension, got shape \[1, 2\]"),
        (From(lambda _: torch.tensor(1)), ValueError, rf"^{name}: expected one dimension, got shape \[\]"),
        (From(lambda _: torch.tensor([True, False])), TypeError, f"^{name}: expected .* numbers, got torch.bool"),
        (From(lambda _: torch.tensor([1j, 1j])), TypeError, f"^{name}: expected .* numbers, got torch.complex64"),
        (From(lambda _: torch.tensor([1, 1], device="meta")), TypeError, f"^{name}: expected .* got one on meta"),
    ]
    if whole_numbers:
        cases += [
            ([1, 1.5], TypeError, listed),
            ([1, 2**70], TypeError, listed),
            (
                From(lambda _: torch.tensor([1.0, 1.0])),
                TypeError,
                f"^{name}: expected whole numbers, got torch.float32",
            ),
        ]
    return cases


_RANKS: list[Case] = [
    *_vector("lora_ranks"),
    ([8, 257], ValueError, "^lora_ranks: expected 0 … 256, got 257"),
    ([-1, 8], ValueError, "^lora_ranks: expected 0 … 256, got -1"),
    ([8, None], ValueError, "^lora_ranks: expected 0 … 256, got -1"),
    ([8, 8, 8], ValueError, r"^scalings: expected one per slot of lora_ranks \(3\), got 2"),
]
_SCALINGS: list[Case] = [
    *_vector("scalings", whole_numbers=False),
    ([1.0], ValueError, r"^scalings: expected one per slot of lora_ranks \(2\), got 1"),
    ([1.0, None], TypeError, "^scalings: expected a list or tensor of numbers"),
    ([1.0, NAN], ValueError, "^scalings: expected finite float32 numbers, got nan"),
    ([-INF, 1.0], ValueError, "^scalings: expected finite float32 numbers, got -inf"),
    ([1.0, 1e300], ValueError, "^scalings: expected finite float32 numbers, got inf"),
    ([1.0, 10**400], TypeError, "^scalings: expected a list or tensor of numbers"),
    (From(lambda _: torch.tensor([1.0, NAN])), ValueError, "^scalings: expected finite float32 numbers, got nan"),
]
_IDS: list[Case] = [
    *_vector("adapter_ids"),
    ([0, 2], ValueError, "^adapter_ids: expected -1 … 1, got 2"),
    ([0, -2], ValueError, "^adapter_ids: expected -1 … 1, got -2"),
    (From(lambda _: torch.tensor([0, 2])), ValueError, "^adapter_ids: expected -1 … 1, got 2"),
]
_LENS: list[Case] = [
    *_vector("seq_lens"),
    ([3], ValueError, r"^adapter_ids: expected one per sequence \(1\), got 2"),
    ([3, -4], ValueError, "^seq_lens: expected 0 or more, got -4"),
    ([3, None], ValueError, "^seq_lens: expected 0 or more, got -1"),
]
_CHUNKS = [case for case in whole("chunk_size", 0, 2**31) if case[0] is not None]
_TOO_MANY: Case = ([2**31 - 1, 2], ValueError, "^seq_lens: expected a sum of at most 2147483647, got 2147483649")


def _sequences() -> dict[str, Any]:
    return dict(seq_lens=[3, 4], adapter_ids=[0, 1], lora_ranks=[8, 16], scalings=[1.0, 2.0])


def _tokens() -> dict[str, Any]:
    return dict(adapter_ids=[0, 1], lora_ranks=[8, 16], scalings=[1.0, 2.0])


_FROM = {"lora_ranks": _RANKS, "scalings": _SCALINGS, "chunk_size": _CHUNKS, "device": DEVICES}


def _static() -> Segments:
    segments = Segments.allocate(10, 2, chunk_size=2, device=DEVICE)
    segments.update_from_sequences(**_sequences())
    return segments


def _refill(segments: Segments, **arguments: Any) -> None:
    update = segments.update_from_sequences if "seq_lens" in arguments else segments.update_from_tokens
    update(**arguments)


_MORE_SLOTS: Case = ([8, 8, 8], ValueError, "^(scalings|lora_ranks): expected .*, got")


def _adapters() -> dict[str, Any]:
    segments = _static()
    return dict(segments=segments, lora_ranks=segments.lora_ranks.clone(), scalings=segments.scalings.clone())


def _own(name: str, other: torch.dtype) -> list[Case]:
    return [
        ([2, 0], TypeError, rf"^{name}: expected a torch\.Tensor, got list"),
        (From(lambda good: good[name].to(other)), TypeError, rf"^{name}: expected torch\.\w+, got {other}"),
        (From(lambda good: good[name][:1]), ValueError, rf"^{name}: expected a contiguous tensor of shape \[2\]"),
        (From(lambda good: good[name].repeat(2)[::2]), ValueError, rf"^{name}: expected .* strides \[2\]"),
        (From(lambda good: good[name].to("meta")), ValueError, rf"^{name}: expected .* on meta"),
    ]


def _fields() -> dict[str, Any]:
    """Two adapters in four segments, the last one empty: what the constructor takes."""
    made = Segments.from_sequences([5, 3], [1, 0], [8, 4], [1.0, 0.5], chunk_size=4, device=DEVICE)
    return dict(
        permutation=made.permutation.clone(),  # 5 6 7, 0 1 2 3, 4
        seg_indptr=torch.cat((made.seg_indptr, made.seg_indptr[-1:])),  # 0 3 7 8 8
        weight_indices=torch.cat((made.weight_indices, made.weight_indices[-1:])),  # 0 1 1 1
        lora_ranks=made.lora_ranks.clone(),
        scalings=made.scalings.clone(),
        chunk_size=4,
        num_segments=4,
        num_tokens=8,
    )


def _checked(**fields: Any) -> Segments:
    segments = Segments(**fields)
    segments.check()
    return segments


def _with(name: str, index: int, value: float) -> From:
    def made(good: dict[str, Any]) -> torch.Tensor:
        tensor: torch.Tensor = good[name].clone()
        tensor[index] = value
        return tensor

    return From(made)


def _layout(name: str, other: torch.dtype) -> list[Case]:
    said = rf"^segments\.{name}: expected"
    return [
        ([0, 1], TypeError, rf"{said} a torch\.Tensor, got list"),
        (From(lambda good: good[name].to(other)), TypeError, rf"{said} torch\.\w+, got {other}"),
        (From(lambda good: good[name][None]), ValueError, rf"{said} one contiguous dimension, got shape \[1, \d\]"),
        (From(lambda good: good[name].repeat_interleave(2)[::2]), ValueError, rf"{said} one contig.*strides \[2\]"),
    ]


def _elsewhere(name: str) -> Case:
    return (From(lambda good: good[name].to("meta")), ValueError, rf"^segments\.{name}: expected it on .* got meta")


def _indptr(*bounds: int) -> From:
    return From(lambda good: good["seg_indptr"].new_tensor(bounds))


_CONTENTS: dict[str, list[Case]] = {
    "permutation": [
        *_layout("permutation", torch.int64),
        (_with("permutation", 2, 8), ValueError, r"^segments\.permutation\[2\]: expected a row of x, 0 … 7, got 8"),
        (_with("permutation", 7, -1), ValueError, r"^segments\.permutation\[7\]: expected a row of x, 0 … 7, got -1"),
        (
            _with("permutation", 6, 5),
            ValueError,
            r"^segments\.permutation\[6\]: expected each row once, got 5, which permutation\[0\] is too",
        ),
        (
            From(lambda good: good["permutation"][:7]),
            ValueError,
            r"^segments\.seg_indptr\[3\]: expected a position in the permutation, 0 … 7, got 8",
        ),
    ],
    "seg_indptr": [
        *_layout("seg_indptr", torch.int64),
        _elsewhere("seg_indptr"),
        (_indptr(0, 3, 7, 8), ValueError, r"^segments\.seg_indptr: expected 5 or more numbers, got 4"),
        (_indptr(-1, 3, 7, 8, 8), ValueError, r"^segments\.seg_indptr\[0\]: expected a position .* got -1"),
        (_indptr(0, 3, 7, 8, 9), ValueError, r"^segments\.seg_indptr\[4\]: expected a position .*, 0 … 8, got 9"),
        (_indptr(0, 3, 2, 6, 8), ValueError, r"^segments\.seg_indptr\[2\]: expected no less than the one .*, got 2"),
        (
            _indptr(0, 3, 8, 8, 8),
            ValueError,
            r"^segments\.seg_indptr\[2\]: expected at most 4 rows in segment 1 \(chunk_size 4, num_tokens 8\), got 5",
        ),
        (
            _indptr(0, 3, 3, 4, 8),
            ValueError,
            r"^segments\.seg_indptr\[2\]: expected empty segments .*, got segment 1 .* before 2 with some",
        ),
    ],
    "weight_indices": [
        *_layout("weight_indices", torch.int16),
        _elsewhere("weight_indices"),
        (From(lambda good: good["weight_indices"][:3]), ValueError, r"^segments\.weight_indices: expected 4 or more"),
        (
            _with("weight_indices", 1, 2),
            ValueError,
            r"^segments\.weight_indices\[1\]: expected an adapter slot, 0 … 1, got 2",
        ),
        (
            _with("weight_indices", 3, -1),
            ValueError,
            r"^segments\.weight_indices\[3\]: expected an adapter slot.*, got -1",
        ),
        (
            _with("weight_indices", 2, 0),
            ValueError,
            r"^segments\.weight_indices\[2\]: expected .* to be neighbours, got 0 again, after segment 0",
        ),
    ],
    "lora_ranks": [
        *_layout("lora_ranks", torch.int64),
        _elsewhere("lora_ranks"),
        (_with("lora_ranks", 1, 257), ValueError, r"^segments\.lora_ranks\[1\]: expected 0 … 256, got 257"),
        (_with("lora_ranks", 0, -3), ValueError, r"^segments\.lora_ranks\[0\]: expected 0 … 256, got -3"),
    ],
    "scalings": [
        *_layout("scalings", torch.float16),
        _elsewhere("scalings"),
        (From(lambda good: good["scalings"][:1]), ValueError, r"^segments\.scalings: expected 2 or more .* got 1"),
        (_with("scalings", 1, NAN), ValueError, r"^segments\.scalings\[1\]: expected a finite number, got nan"),
        (_with("scalings", 0, -INF), ValueError, r"^segments\.scalings\[0\]: expected a finite number, got -inf"),
    ],
    "chunk_size": [
        *whole(r"segments\.chunk_size", 0),
        (3, ValueError, r"^segments\.seg_indptr\[2\]: expected at most 3 rows in segment 1 .*, got 4"),
    ],
    "num_segments": [
        *whole(r"segments\.num_segments", -1),
        (5, ValueError, r"^segments\.seg_indptr: expected 6 or more numbers, got 5"),
    ],
    "num_tokens": [
        *whole(r"segments\.num_tokens", -1),
        (7, ValueError, r"^segments\.permutation\[2\]: expected a row of x, 0 … 6, got 7"),
    ],
    "active_adapters": [
        *whole(r"segments\.active_adapters", -1),
        (1, ValueError, r"^segments\.active_adapters: expected 2, or 0 for unknown, got 1"),
    ],
}
_KNOWN = "what the host knows beside the tensors, which are what counts"

SUBJECTS = [
    Subject(
        Segments.from_sequences,
        lambda: {**_sequences(), "device": DEVICE},
        {"seq_lens": [*_LENS, _TOO_MANY], "adapter_ids": _IDS, **_FROM},
    ),
    Subject(Segments.from_tokens, lambda: {**_tokens(), "device": DEVICE}, {"adapter_ids": _IDS, **_FROM}),
    Subject(
        Segments.allocate,
        lambda: dict(max_tokens=8, max_loras=3, chunk_size=4, device=DEVICE),
        {
            "max_tokens": whole("max_tokens", -1, 2**31),
            "max_loras": whole("max_loras", -1, 2**31),
            "chunk_size": _CHUNKS,
            "device": DEVICES,
        },
    ),
    Subject(
        Segments.update_from_sequences,
        lambda: {**_sequences(), "segments": _static()},
        {
            "seq_lens": [
                *_LENS,
                ([3, 8], ValueError, "^seq_lens: expected a batch of at most max_tokens = 10 tokens, got 11"),
            ],
            "adapter_ids": _IDS,
            "lora_ranks": [*_RANKS, _MORE_SLOTS],
            "scalings": _SCALINGS,
        },
        call=_refill,
    ),
    Subject(
        Segments.update_from_tokens,
        lambda: {**_tokens(), "segments": _static()},
        {
            "adapter_ids": [
                *_IDS,
                ([0] * 11, ValueError, "^adapter_ids: expected a batch of at most max_tokens = 10 tokens, got 11"),
            ],
            "lora_ranks": [*_RANKS, _MORE_SLOTS],
            "scalings": _SCALINGS,
        },
        call=_refill,
    ),
    Subject(
        Segments.with_adapters,
        _adapters,
        {"lora_ranks": _own("lora_ranks", torch.int64), "scalings": _own("scalings", torch.float16)},
        call=lambda segments, **given: segments.with_adapters(**given),
    ),
    Subject(
        Segments.check,
        lambda: dict(segments=_static(), num_tokens=10, max_rank=16),
        {
            "num_tokens": [
                *(case for case in whole("num_tokens", -1) if case[0] is not None),
                (6, ValueError, r"^segments\.permutation\[6\]: expected a row of x, 0 … 5, got 6"),
            ],
            "max_rank": [
                *whole("max_rank", 0, 257),
                (8, ValueError, r"^segments\.lora_ranks\[1\]: expected 0 … 8, got 16"),
            ],
        },
        call=lambda segments, **given: segments.check(**given),
    ),
    Subject(
        Segments,
        _fields,
        _CONTENTS,
        call=_checked,
        no_wrong=dict.fromkeys(("least_tokens", "largest_rank", "_buffer", "_refillable"), _KNOWN),
    ),
]
