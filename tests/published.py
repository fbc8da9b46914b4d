"""The shapes that published tests of such kernels go through, as cases.

vLLM's tests/lora/test_punica_ops.py (Apache-2.0): every hidden size of the models that it serves, as tensor parallelism
of 1, 2, 8, 16 and 64 divides it; and at 2,049 every rank, number of adapters and of prompts. sglang's
test_chunked_sgmv_backend.py (Apache-2.0): prefill and decode of one layer with three slices, one with four, adapters of
ranks 8, 16, 32 and none. Theirs give every adapter the same rank, and shrink or expand alone; these do not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from cases import Case
from csgmv import rules

_MODELS = (
    *(128, 256, 512, 896, 1024, 1152, 1216, 1280, 1536, 1664, 2048, 2240, 2304, 2368, 2432, 2560, 2752, 3072, 3328),
    *(3456, 3584, 3712, 4096, 4480, 4608, 4736, 4864, 5120, 5504, 5632, 5888, 6144, 6400, 6848, 6912, 7168, 7424, 8192),
    *(8960, 9216, 9472, 10240, 11008, 11264, 13824, 14336, 14784, 14848, 15360, 18944, 22016, 22528, 24576, 27392),
    *(27648, 29568, 29696, 32000, 32256, 32512, 32768, 33024, 36864, 43264, 49152, 49408, 60544, 60672, 64000, 64256),
    *(102400, 102656, 128000, 128256),
)
HIDDEN_SIZES = sorted({size // ways for size in _MODELS for ways in (1, 2, 8, 16, 64)} | {12345})
RANKS = (1, 4, 8, 16, 32, 64, 128, 256)
DTYPES = ("float16", "bfloat16")
PROMPT = 128  # tokens


def _case(op: str, dtype: str, input_dim: int, widths: Sequence[int], ranks: Sequence[int], **more: object) -> Case:
    """One whose config is what the operation finds."""
    fields: dict[str, object] = {
        "max_rank": max(ranks),
        "chunk_size": 16,
        "padded": False,
        "batch_invariant": False,
        "x_extra": 0,
        "base_extra": 0,
        "unaligned": "",
        "given_out": False,
        "config": None,
        "source": "the table",
        "scalings": tuple(0.5 + slot % 3 for slot in range(len(ranks))),
    }
    return Case(op, dtype, input_dim, tuple(widths), ranks=tuple(ranks), **{**fields, **more})  # type: ignore[arg-type]


def _ranks(rank: int, adapters: int) -> list[int]:
    """The rank itself, and of every third adapter a lower one."""
    return [max(1, rank * 3 // 4) if slot % 3 == 1 else rank for slot in range(adapters)]


def vllm() -> Iterator[Case]:
    """Both of its matrices, each operation."""
    ways = list(itertools.product(rules.OPS, DTYPES, (1, 2, 3)))
    for hidden, (op, dtype, slices) in itertools.product(HIDDEN_SIZES, ways):
        how = {"num_tokens": 4 * PROMPT, "mix": "prompts", "seed": hidden}
        yield _case(op, dtype, hidden, [hidden] * slices, _ranks(32, 4), **how)
    for rank, (op, dtype, slices) in itertools.product(RANKS, ways):
        for prompts, adapters in itertools.product((1, 4, 16, 32), (1, 8, 32, 128)):
            how = {"num_tokens": prompts * PROMPT, "mix": "prompts", "seed": rank + prompts, "chunk_size": 64}
            yield _case(op, dtype, 2049, [2049] * slices, _ranks(rank, adapters), **how)


def sglang() -> Iterator[Case]:
    """Uniform, mixed and skewed batches of prompts and of single tokens."""
    layers = [(4096, 1024, 1024), (2048, 2048, 4096, 4096)]
    for op, widths, dtype, requests in itertools.product(rules.OPS, layers, DTYPES, (1, 2, 16, 64)):
        for mix, tokens in itertools.product(
            ("one", "prompts", "runs", "turns", "none"), (requests, requests * PROMPT)
        ):
            yield _case(op, dtype, 2560, widths, (8, 16, 32, 0), num_tokens=tokens, mix=mix, seed=requests)


def groups() -> list[list[Case]]:
    """All of them, those together that may share binaries; in no order, so that not all large ones come at once."""
    alike: dict[object, list[Case]] = {}
    for case in (*vllm(), *sglang()):
        alike.setdefault((case.op, case.dtype, case.input_dim, case.widths, case.max_rank), []).append(case)
    parts = [cases[at : at + 16] for cases in alike.values() for at in range(0, len(cases), 16)]
    random.Random(0).shuffle(parts)
    return parts
