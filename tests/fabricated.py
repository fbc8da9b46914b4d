"""Raw results and a model made up for tests: valid as they come, to be bent out of shape from there."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

from csgmv import checks, raw_results, records

DEFAULT = [64, 16, 256, 1, 1, 4, 3, None, False]
BETTER = [32, 32, 128, 2, 1, 4, 2, None, False]
REMOVED = object()
LLAMA = {  # config.json of a model
    "model_type": "llama",
    "hidden_size": 96,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 264,
}


def timing(row: list[Any], p50_us: float, samples: int = 48, **more: int) -> dict[str, Any]:
    return {"row": row, "p20_us": p50_us - 0.5, "p50_us": p50_us, "p80_us": p50_us + 0.75, "samples": samples, **more}


def finalist(row: list[Any], p50_us: float, samples: int = 48) -> dict[str, Any]:
    return timing(row, p50_us, samples, shared_bytes=49152, registers=96, spills=0)


def record(
    default_us: float | None = 30.0, tuned_us: float = 20.0, others: list[Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A record of a shrink in which `BETTER` beats the default by a third, unless told otherwise.

    `others` are the batches beside its own; None is one of 8 tokens, on which everything takes half as long.
    """
    made = {
        "run": 0,
        "chunk_size": 16,
        "segment_bucket": 8,
        "tokens": 101,
        "adapters": 5,
        "num_segments": 7,
        "default": None if default_us is None else timing(DEFAULT, default_us),
        "candidates": [[BETTER, tuned_us, 12, False], [[16, 16, 64, 1, 1, 4, 2, 96, True], 31.5, 3, True]],
        "finalists": [finalist(BETTER, tuned_us)],
        "pruned": {"too much shared memory": 12},
        "failed": {},
        "accuracy": {"cases": 3, "max_error": 0.0012, "tolerance": 0.01},
        "noise_us": 0.12,
        "tuned_on": 1,
        "races": [],
        **more,
    }
    default, finalists = made["default"], made["finalists"]
    times = [default and default["p50_us"], min((one["p50_us"] for one in finalists), default=None)]
    own = [made["tokens"], made["adapters"], made["num_segments"], *times]
    if others is None:
        others = [[8, 8, 8, *(time and time / 2 for time in times)]]
    return {"batches": [own, *others], **made}


def document(*records: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A file of shrink results; without records, one of one record."""
    return {
        "schema": 4,
        "gpu": "NVIDIA H200",
        "triton": "3.6.0",
        "op": "shrink",
        "input_dim": 1024,
        "slice_widths": [],
        "max_rank": 64,
        "num_slices": 3,
        "dtype": "bfloat16",
        "fields": [
            "block_m",
            "block_n",
            "block_k",
            "column_tiles",
            "split_k",
            "num_warps",
            "num_stages",
            "maxnreg",
            "sliced_k",
        ],
        "runs": [
            {
                "compute_capability": "9.0",
                "sm_count": 132,
                "driver": "580.65.06",
                "cuda": "13.0",
                "torch": "2.11.0+cu130",
                "csgmv": "0.1.0.dev0",
                "kernel_hash": "sha256:" + "0123456789abcdef" * 4,
                "seed": 0,
                "date": "2026-11-23",
                "l2": "cold: twice its size is written before each launch",
            }
        ],
        "records": list(records) or [record()],
        **more,
    }


# What differs from a document of shrink results, of 1024 → 3·64.
EXPAND = {
    "op": "expand",
    "input_dim": 0,
    "slice_widths": [256, 64, 64],
    "fields": ["block_m", "block_n", "block_k", "column_tiles", "num_warps", "num_stages", "maxnreg", "prefetch"],
}
ADD_LORA = {
    "op": "add_lora",
    "slice_widths": [256, 64, 64],
    "fields": [
        *(f"shrink_{name}" for name in document()["fields"]),
        *(f"expand_{name}" for name in EXPAND["fields"]),
        "overlap",
    ],
}
_EXPAND_ROW = [64, 64, 64, 4, 4, 3, None, True]
_ROWS = {"expand": _EXPAND_ROW, "add_lora": [*BETTER, *_EXPAND_ROW, False]}


def record_of(op: str, us: float, chunk_size: int, tokens: int, adapters: int, **more: Any) -> dict[str, Any]:
    """A record of any operation at a batch dealt evenly, alone, whose only finalist takes `us` microseconds."""
    segments = adapters * -(-(tokens // adapters) // chunk_size)
    row = _ROWS.get(op, BETTER)
    return record(
        **{
            "chunk_size": chunk_size,
            "segment_bucket": 1 << round(math.log2(segments)),
            "tokens": tokens,
            "adapters": adapters,
            "num_segments": segments,
            "default": None,
            "candidates": [],
            "finalists": [finalist(row, us)],
            "noise_us": 0.01,
            "others": [],
            **more,
        }
    )


def put(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Writes a file of raw results into a folder, making the folders on the way."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return file


def older(content: dict[str, Any], schema: int = 1) -> dict[str, Any]:
    """A file of shrink results as it was: without races, then without sliced_k, in schema 1 with one batch a record."""
    content = json.loads(json.dumps({**content, "schema": schema}))
    for one in content["records"]:
        del one["races"]
    if schema > 2:
        return content
    content["fields"].remove("sliced_k")
    for one in content["records"]:
        timings = [*filter(None, [one["default"]]), *one["finalists"]]
        for row in (*(timing["row"] for timing in timings), *(row for row, *_ in one["candidates"])):
            del row[-1]
        if schema == 1:
            del one["batches"], one["tuned_on"]
    return content


def faults(content: dict[str, Any]) -> list[str]:
    """What is wrong with a file of this content."""
    return raw_results.faults(checks.parse(json.dumps(content)))


def bent(path: str, value: Any) -> dict[str, Any]:
    """A valid file with one value changed; the path is written as in the faults, without the leading dollar."""
    content = copy.deepcopy(document())
    *way, last = [int(step) if step.isdigit() else step for step in path.replace("[", ".").replace("]", "").split(".")]
    holder: Any = content
    for step in way:
        holder = holder[step]
    if value is REMOVED:
        del holder[last]
    else:
        holder[last] = value
    return content


def the_result(**more: Any) -> records.Result:
    """Of a file with this one record."""
    content = document(record(**more))
    assert not faults(content)
    (result,) = raw_results.results(content)
    return result
