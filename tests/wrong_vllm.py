"""Wrong arguments of vLLM's two operators on csgmv's kernels."""

from __future__ import annotations

from typing import Any

import torch

from batches import DEVICE, poisoned
from csgmv.integrations import vllm
from vllm_batches import Meta, shrunk, some_x, weights
from wrong import Case, From, Subject, flag, whole

_IDS = (3, -1, 0, 0, 1, 3, 0)
_NAMES = "token_lora_mapping", "token_indices_sorted_by_lora_ids", "num_tokens_per_lora", "lora_token_start_loc"
_METADATA = (*_NAMES, "lora_ids", "no_lora_flag_cpu", "num_active_loras")


def _batch() -> dict[str, Any]:
    return dict(zip(_METADATA, Meta().refill(_IDS).arguments(len(_IDS))))


def _shrink() -> dict[str, Any]:
    a, _ = weights((8, 16))
    h = poisoned(2, len(_IDS), 16, dtype=torch.float32)
    return dict(inputs=some_x(len(_IDS)), lora_a_weights=a, output_tensor=h, **_batch(), scaling=1.0)


def _expand() -> dict[str, Any]:
    a, b = weights((8, 16))
    h = shrunk(some_x(len(_IDS)), a, _IDS)
    output = torch.ones(len(_IDS), 27, dtype=b[0].dtype, device=DEVICE)
    return dict(inputs=h, lora_b_weights=b, output_tensor=output, **_batch(), offset_start=3)


def _changed(name: str, change: Any) -> From:
    return From(lambda good: change(good[name]))


def _tensor(name: str) -> list[Case]:
    return [
        (None, TypeError, rf"^{name}: expected a torch\.Tensor, got NoneType"),
        ([1.0], TypeError, rf"^{name}: expected a torch\.Tensor, got list"),
    ]


def _sparse(name: str) -> Case:
    return _changed(name, lambda one: one.to_sparse()), TypeError, rf"^{name}: expected a strided tensor, got .*sparse"


def _several(name: str) -> list[Case]:
    one = rf"^{name}\[1\]: expected "
    return [
        (None, TypeError, f"^{name}: expected a list with a tensor of each slice, got NoneType"),
        (_changed(name, lambda each: each[0]), TypeError, f"^{name}: expected a list .* got Tensor"),
        ([], ValueError, f"^{name}: expected a tensor of each slice, got none"),
        (_changed(name, lambda each: [each[0], None]), TypeError, one + r"a torch\.Tensor, got NoneType"),
        (
            _changed(name, lambda each: [each[0], each[1][0, 0]]),
            ValueError,
            one + r"\[num_loras, .* got shape \[\d+, \d",
        ),
        (_changed(name, lambda each: [each[0], each[1].repeat(1, 2, 1, 1)]), ValueError, one + ".* got shape"),
        (_changed(name, lambda each: [each[0], each[1].double()]), TypeError, one + ".* got torch.float64"),
        (_changed(name, lambda each: [each[0], each[1].float()]), TypeError, one + ".* got torch.float32"),
        (_changed(name, lambda each: [each[0], each[1].to_sparse()]), TypeError, one + "a strided .* got .*sparse"),
        (_changed(name, lambda each: (one for one in each)), TypeError, f"^{name}: expected a list .* got generator"),
        (_changed(name, lambda each: {*each}), TypeError, f"^{name}: expected a list .* got set"),
        (_changed(name, lambda each: [each[0], each[1].to("meta")]), ValueError, one + ".* got one on meta"),
        (_changed(name, lambda each: [each[0], each[1].mT.contiguous().mT]), ValueError, one + "a contiguous .* got"),
        (_changed(name, lambda each: [each[0], each[1][:2].contiguous()]), ValueError, one + "4 adapters .* got shape"),
    ]


def _metadata() -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = {}
    for name in (*_NAMES, "lora_ids"):
        cases[name] = [
            *_tensor(name),
            (_changed(name, lambda one: one.long()), TypeError, rf"^{name}: expected torch\.int32, got torch\.int64"),
            (_changed(name, lambda one: one[None]), ValueError, f"^{name}: expected one contiguous dimension"),
            (_changed(name, lambda one: one.repeat(2)[::2]), ValueError, f"^{name}: expected one contiguous dimension"),
            (_changed(name, lambda one: one.to("meta")), ValueError, f"^{name}: expected .* on .* got .* on meta"),
        ]
    for name in _NAMES[:2]:
        cases[name].append((_changed(name, lambda one: one[:-1]), ValueError, f"^{name}: expected 7 rows .* got 6"))
    for name in _NAMES[2:]:
        cases[name].append((_changed(name, lambda one: one[:-1]), ValueError, f"^{name}: expected . numbers .* got"))
    cases["lora_ids"].append((_changed("lora_ids", lambda one: one[:-1]), ValueError, "expected . numbers .* got"))
    said = r"^no_lora_flag_cpu: expected one torch\.bool on the CPU, got"
    cases["no_lora_flag_cpu"] = [
        *flag("no_lora_flag_cpu"),
        (torch.tensor([0]), ValueError, said),
        (torch.tensor([False, True]), ValueError, said),
        (torch.tensor([False], device="meta"), ValueError, said),
    ]
    said = "^num_active_loras: expected one whole number on the CPU, got"
    cases["num_active_loras"] = [
        *whole("num_active_loras", -1),
        (torch.tensor([2.0]), ValueError, said),
        (torch.tensor([1, 2]), ValueError, said),
        (torch.tensor([2], device="meta"), ValueError, said),
        (torch.tensor([-2]), ValueError, "^num_active_loras: expected 0 or more, got -2"),
    ]
    return cases


def _stack(name: str) -> list[Case]:
    return [
        *_tensor(name),
        _sparse(name),
        (
            _changed(name, lambda one: one[:1]),
            ValueError,
            rf"^{name}: expected \[2, .*, 16\] .* got shape \[1, 7, 16\]",
        ),
        (_changed(name, lambda one: one[0]), ValueError, rf"^{name}: expected \[2, .* got shape \[7, 16\]"),
        (_changed(name, lambda one: one[..., :8].contiguous()), ValueError, rf"^{name}: expected .* got shape"),
        (_changed(name, lambda one: one.int()), TypeError, f"^{name}: expected .* got torch.int32"),
    ]


SUBJECTS = [
    Subject(
        vllm.lora_shrink,
        _shrink,
        {
            "inputs": [
                *_tensor("inputs"),
                (
                    _changed("inputs", lambda one: one[0]),
                    ValueError,
                    r"^inputs: expected 2 dimensions, got shape \[40\]",
                ),
                (_changed("inputs", lambda one: one.int()), TypeError, "^inputs: expected float16, bfloat16 or .* got"),
                (
                    _changed("inputs", lambda one: one.to("meta")),
                    ValueError,
                    "^inputs: expected a tensor on a GPU, got",
                ),
                (_changed("inputs", lambda one: one.to_sparse()), TypeError, "^inputs: expected a strided tensor, got"),
                (_changed("inputs", lambda one: one[:, :8]), ValueError, r"^lora_a_weights\[0\]: expected input_dim 8"),
                (_changed("inputs", lambda one: one[:-1]), ValueError, r"^output_tensor: expected \[2, 6, 16\] .* got"),
            ],
            "lora_a_weights": [
                *_several("lora_a_weights"),
                (
                    _changed("lora_a_weights", lambda each: [each[0].repeat(1, 1, 17, 1)]),
                    ValueError,
                    r"^lora_a_weights\[0\]: expected a max_rank of 1 to 256, got 272",
                ),
                (
                    _changed("lora_a_weights", lambda each: [each[0], each[1][:, :, :8].contiguous()]),
                    ValueError,
                    r"^lora_a_weights\[1\]: expected 4 adapters of rank 16 as the first .* got shape \[4, 8, 40\]",
                ),
            ],
            "output_tensor": [
                *_stack("output_tensor"),
                (
                    _changed("output_tensor", lambda one: one.mT.contiguous().mT),
                    ValueError,
                    "^output_tensor: expected a contiguous tensor, got strides",
                ),
                (
                    _changed("output_tensor", lambda one: one.double()),
                    TypeError,
                    r"^output_tensor: expected torch\.float16 like the input or torch\.float32, got torch\.float64",
                ),
            ],
            **_metadata(),
            "scaling": [
                *((wrong, TypeError, "^scaling: expected a number, got ") for wrong in (None, "1", True, [1.0])),
                *((float(bad), ValueError, f"^scaling: expected a finite number, got {bad}") for bad in ("nan", "inf")),
            ],
            "batch_invariant": flag("batch_invariant"),
        },
    ),
    Subject(
        vllm.lora_expand,
        _expand,
        {
            "inputs": [
                *_stack("inputs"),
                (
                    _changed("inputs", lambda one: one.to("meta")),
                    ValueError,
                    "^inputs: expected a tensor on a GPU, got",
                ),
                (
                    _changed("inputs", lambda one: one[:, :-1]),
                    ValueError,
                    r"^output_tensor: expected \[6, at least 27\]",
                ),
            ],
            "lora_b_weights": [
                *_several("lora_b_weights"),
                (
                    _changed("lora_b_weights", lambda each: [each[0], each[1][..., :8].contiguous()]),
                    ValueError,
                    r"^lora_b_weights\[1\]: expected 4 adapters of rank 16 as the first .* got shape \[4, 16, 8\]",
                ),
            ],
            "output_tensor": [
                *_tensor("output_tensor"),
                _sparse("output_tensor"),
                (
                    _changed("output_tensor", lambda one: one.new_zeros(200).as_strided((7, 27), (26, 1))),
                    ValueError,
                    r"^output_tensor: expected rows that do not overlap \(a stride of 27 or more\), got strides",
                ),
                (
                    _changed("output_tensor", lambda one: one[:, :26]),
                    ValueError,
                    r"^output_tensor: expected \[7, at least 27\], got shape \[7, 26\]",
                ),
                (
                    _changed("output_tensor", lambda one: one[0]),
                    ValueError,
                    "^output_tensor: expected 2 dim.*, got shape",
                ),
                (_changed("output_tensor", lambda one: one[:-1]), ValueError, r"^output_tensor: expected \[7, .* got"),
                (_changed("output_tensor", lambda one: one.double()), TypeError, "^output_tensor: expected .* got"),
                (
                    _changed("output_tensor", lambda one: one.to("meta")),
                    ValueError,
                    "^output_tensor: .* got one on meta",
                ),
                (
                    _changed("output_tensor", lambda one: one[:1].expand(7, 27)),
                    ValueError,
                    "^output_tensor: expected rows that do not overlap .* got strides",
                ),
            ],
            **_metadata(),
            "offset_start": [
                *whole("offset_start", -1),
                (4, ValueError, r"^output_tensor: expected \[7, at least 28\], got shape \[7, 27\]"),
            ],
            "add_inputs": flag("add_inputs"),
            "batch_invariant": flag("batch_invariant"),
        },
    ),
]
