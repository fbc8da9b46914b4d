"""With batch_invariant=True a row has the same bits in any batch: whatever is around it, and however that is cut."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import csgmv
import interpreting
from batches import DEVICE, DTYPES
from csgmv import AddLoraConfig, ExpandConfig, Segments, ShrinkConfig, dispatch, fallback, launch, rules
from csgmv.config import to_row

RANKS, SCALINGS, MAX_RANK = [48, 64, 20], [0.5, -1.25, 2.0], 64
INPUT_DIM, WIDTHS, OFFSETS = 224, (32, 16), (0, 32, 48)
HERE = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")
# Where our row stands among others that use these adapters (None: no adapter), and the chunk size.
BATCHES: list[tuple[list[int | None], int, int]] = [
    ([0], 0, 16),
    ([0] * 18, 17, 16),
    ([0] * 40, 23, 64),
    ([1, 0, 2, None] * 5, 9, 16),
    ([2] * 9 + [0] * 5 + [1] * 20, 12, 128),
    ([adapter for adapter in (1, 2, None) for _ in range(20)] + [0] * 17, 76, 24),
]


def uneven_table() -> dispatch.Table:
    """Rows for every bucket and chunk size, in which neighbours sum in different orders."""
    where, rows = dispatch.target(HERE), {}
    for place, bucket in enumerate(1 << power for power in range(8)):
        for shift, chunk_size in enumerate((16, 32, 64, 128)):
            number = place + shift
            block_m = 16 << number % 3
            shrink = ShrinkConfig(block_m=block_m, block_n=128, block_k=32 << number % 2, split_k=1 + number % 4)
            expand = ExpandConfig(block_m=block_m, block_n=32, block_k=16 << number % 3, num_stages=1 + number % 2)
            each = {"shrink": shrink, "expand": expand, "add_lora": AddLoraConfig(shrink, expand)}
            for op, config in each.items():
                dims = 0 if op == "expand" else INPUT_DIM, () if op == "shrink" else WIDTHS
                for dtype in rules.DTYPE_BYTES:
                    key = rules.Key(op, *dims, MAX_RANK, len(WIDTHS), dtype, chunk_size, bucket)
                    rows[key] = to_row(config)
    return {(where.gpu, where.triton): fallback.by_layer(rows)}


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    uneven = uneven_table()
    monkeypatch.setattr(dispatch, "table", lambda: uneven)
    monkeypatch.setattr(dispatch, "_remembered", {})
    monkeypatch.setattr(launch, "plans", {})
    return


def our_row(op: str, dtype: torch.dtype, ids: list[int | None], at: int, chunk_size: int, **more: Any) -> torch.Tensor:
    """The bits of one row of an operation's result, where row `at` of the batch is always the same one."""

    def normal(*shape: int, seed: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    widths, slices = {"x": INPUT_DIM, "h": len(WIDTHS) * MAX_RANK, "base": OFFSETS[-1]}, len(WIDTHS)
    inputs = {}
    for seed, (name, width) in enumerate(widths.items()):
        inputs[name] = normal(len(ids), width, seed=100 + len(ids) + seed)
        inputs[name][at] = normal(width, seed=seed)
    x, h, base = (each.to(DEVICE, dtype) for each in inputs.values())
    lora_a = normal(len(RANKS), slices * MAX_RANK, INPUT_DIM, seed=11).to(DEVICE, dtype) / INPUT_DIM**0.5
    lora_b = normal(len(RANKS), OFFSETS[-1], MAX_RANK, seed=12).to(DEVICE, dtype)
    segments = Segments.from_tokens(ids, RANKS, SCALINGS, chunk_size=chunk_size, device=DEVICE)
    if op == "shrink":
        result = csgmv.lora_shrink(x, lora_a, segments, slices, **more)[:, : slices * RANKS[0]]
    elif op == "expand":
        result = csgmv.lora_expand(h, lora_b, segments, OFFSETS, base, **more)
    else:
        result = csgmv.add_lora(base, x, lora_a, lora_b, segments, OFFSETS, **more)
    return result[at].cpu().view(torch.uint8)


@pytest.fixture
def rows_alike() -> Iterator[None]:
    with interpreting.rows_alike():
        yield


@pytest.mark.usefixtures("rows_alike")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", rules.OPS)
def test_a_rows_bits_do_not_depend_on_its_batch(op: str, dtype: torch.dtype) -> None:
    """Alone, among many, in the first segment or the last, at either end of a tile, whatever the chunk size."""
    alone, *others = (our_row(op, dtype, *batch, batch_invariant=True) for batch in BATCHES)
    for other, batch in zip(others, BATCHES[1:]):
        assert torch.equal(other, alone), batch


SOMEBODY = st.sampled_from([0, 1, 2, None])


@functools.cache
def alone_in_float32(op: str) -> torch.Tensor:
    return our_row(op, torch.float32, [0], 0, 16, batch_invariant=True)


@pytest.mark.usefixtures("rows_alike")
@settings(
    max_examples=8, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    st.sampled_from(rules.OPS),
    st.lists(st.tuples(SOMEBODY, st.integers(1, 20)), max_size=4),
    st.lists(st.tuples(SOMEBODY, st.integers(1, 20)), max_size=4),
    st.sampled_from([1, 7, 16, 24, 64, 128]),
)
def test_nor_do_they_on_any_other(
    op: str, before: list[tuple[int | None, int]], after: list[tuple[int | None, int]], chunk_size: int
) -> None:
    """Whoever stands before and after it, in runs of any length, in chunks of any size."""
    ids, others = ([slot for slot, length in runs for _ in range(length)] for runs in (before, after))
    among = our_row(op, torch.float32, [*ids, 0, *others], len(ids), chunk_size, batch_invariant=True)
    assert torch.equal(among, alone_in_float32(op))


# On a GPU expand's float32 sums go along the rank one by one, in whatever steps that is walked: split_k is what tells.
DIFFERING = rules.OPS if DEVICE == "cpu" else ("shrink", "add_lora")


@pytest.mark.usefixtures("rows_alike")
@pytest.mark.parametrize("op", DIFFERING)
def test_they_do_without_the_flag(op: str) -> None:
    """What the test above shows would otherwise not hold: the table's rows sum in different orders."""
    found = {bytes(our_row(op, torch.float32, *batch).tolist()) for batch in BATCHES}
    assert len(found) > 1


def test_one_config_for_every_batch() -> None:
    """explain names it; its tiles have 16 rows, and the rest is what the table has for 32 segments of 16 rows."""
    dims: dict[str, dict[str, Any]] = {
        "shrink": dict(input_dim=INPUT_DIM, num_slices=2),
        "expand": dict(slice_widths=WIDTHS),
        "add_lora": dict(input_dim=INPUT_DIM, slice_widths=WIDTHS),
    }
    for op, dim in dims.items():
        said = {
            csgmv.explain(
                op,
                **dim,
                max_rank=MAX_RANK,
                chunk_size=chunk_size,
                num_segments=count,
                batch_invariant=True,
                device=HERE,
            )
            for chunk_size in (16, 24, 64, 128)
            for count in (1, 7, 32, 100)
        }
        (choice,) = said
        looked_up = csgmv.explain(op, **dim, max_rank=MAX_RANK, chunk_size=16, num_segments=32, device=HERE)
        assert choice.source == looked_up.source
        parts = [choice.config.shrink, choice.config.expand] if op == "add_lora" else [choice.config]
        theirs = looked_up.config
        their_parts = [theirs.shrink, theirs.expand] if op == "add_lora" else [theirs]
        for part, theirs in zip(parts, their_parts):
            assert part.block_m == 16 != theirs.block_m
            assert to_row(part)[1:] == to_row(theirs)[1:]


@pytest.mark.parametrize(
    ("op", "config"),
    [
        ("shrink", ShrinkConfig(block_m=32)),
        ("expand", ExpandConfig(block_m=64)),
        ("add_lora", AddLoraConfig(ShrinkConfig(block_m=16), ExpandConfig(block_m=32))),
        ("add_lora", AddLoraConfig(ShrinkConfig(block_m=128), ExpandConfig(block_m=16))),
    ],
)
def test_a_config_of_other_tiles_is_refused(op: str, config: Any) -> None:
    """Its rows might meet another instruction in another batch; the same config with 16 rows is used as it is."""
    call = op, torch.float16, [0, 1, 0], 2, 16
    our_row(*call, config=config)
    with pytest.raises(ValueError, match=r"config: expected block_m 16 with batch_invariant=True, got .*block_m="):
        our_row(*call, config=config, batch_invariant=True)
    low = csgmv.config.with_block_m(config, 16)
    assert torch.equal(our_row(*call, config=low, batch_invariant=True), our_row(*call, config=low))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_at_a_models_size(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the table as it is: a row alone, in decode and in prefill."""
    monkeypatch.undo()
    launch.plans.clear()
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device="cuda").to(dtype)

    lora_a, lora_b, ours, base = normal(4, 192, 1024) / 32, normal(4, 4096, 64) / 8, normal(1, 1024), normal(1, 4096)
    results = set()
    for tokens in (1, 3, 32, 500, 9000):
        for chunk_size in (16, 64, 128):
            at = tokens * 2 // 3
            x, output = normal(tokens, 1024), normal(tokens, 4096)
            x[at], output[at] = ours[0], base[0]
            ids = [row % 4 if row != at else 1 for row in range(tokens)]
            segments = Segments.from_tokens(ids, [64, 64, 32, 8], [1.0, 0.5, 2.0, 1.0], chunk_size=chunk_size)
            offsets = (0, 2048, 3072, 4096)
            csgmv.add_lora(output, x, lora_a, lora_b, segments, offsets, batch_invariant=True)
            results.add(bytes(output[at].view(torch.uint8).tolist()))
    assert len(results) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", rules.OPS)
def test_on_a_gpu_in_batches_of_every_composition(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the table as it is: a row of a model's layer among random others, 200 times."""
    monkeypatch.undo()
    launch.plans.clear()
    numbers, draw = torch.Generator("cuda").manual_seed(0), random.Random(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers, device="cuda").to(dtype)

    ranks, offsets = [64, 64, 32, 8], (0, 2048, 3072, 4096)
    lora_a, lora_b = normal(4, 192, 1024) / 32, normal(4, 4096, 64) / 8
    ours = {"x": normal(1, 1024), "h": normal(1, 192), "base": normal(1, 4096)}
    results = set()
    for _ in range(200):
        tokens = draw.choice((1, 2, 5, 16, 17, 40, 100, 400, 1500, 4000))
        at, chunk_size = draw.randrange(tokens), draw.choice((16, 24, 32, 64, 128))
        ids: list[int] = []
        while len(ids) < tokens:
            ids += [draw.choice((-1, 0, 1, 2, 3))] * draw.choice((1, 1, 3, 16, 50, 300))
        ids = ids[:tokens]
        ids[at] = 1
        x, h, base = (normal(tokens, row.shape[1]) for row in ours.values())
        for tensor, row in zip((x, h, base), ours.values()):
            tensor[at] = row[0]
        segments = Segments.from_tokens(ids, ranks, [1.0, 0.5, 2.0, 1.0], chunk_size=chunk_size)
        if op == "shrink":
            result = csgmv.lora_shrink(x, lora_a, segments, 3, batch_invariant=True)
        elif op == "expand":
            result = csgmv.lora_expand(h, lora_b, segments, offsets, base, batch_invariant=True)
        else:
            result = csgmv.add_lora(base, x, lora_a, lora_b, segments, offsets, batch_invariant=True)
        results.add(bytes(result[at].view(torch.uint8).tolist()))
    assert len(results) == 1
