"""One case, made and judged: the result against float32 torch, and every bit that the call must leave alone.

All memory that the call is given or takes is fenced and full of NaN where nothing may be read: rows without an adapter,
weights past an adapter's rank and those of adapters without rows, columns between rows, and what lies around a tensor.
Numbers that say what belongs to whom are fenced too, by ones that lead to a row, a slot and a rank of NaN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from batches import TOLERANCE
from cases import Case
from csgmv import Segments, add_lora, launch, lora_expand, lora_shrink, reference
from csgmv import config as configs
from csgmv.adapters import Adapters
from fences import Fenced, bits
from interpreting import backwards, rows_alike


@dataclasses.dataclass
class Operands:
    """A case's tensors: `inputs` is x, or expand's h; `output` is base_output, or shrink's h, None if it is not given.

    Attributes:
        ranks: int64 [rows], of each row's adapter, 0 where there is none; on the host.
        used: bool [rows], which rows have an adapter of some rank.
        own: bool [rows, slices · max_rank], which of h's numbers are theirs, as shrink and expand have them.
    """

    inputs: Fenced
    lora_a: Fenced
    lora_b: Fenced
    output: Fenced | None
    segments: Segments
    ranks: torch.Tensor
    used: torch.Tensor
    own: torch.Tensor

    def due(self, case: Case) -> torch.Tensor:
        """Which numbers of the output the call is to write: bool, of its shape."""
        if case.op == "shrink":
            return self.own
        return self.used[:, None].expand(-1, sum(case.widths))


def check(case: Case, device: torch.device, made: list[Fenced]) -> None:
    """Raise AssertionError, or what the call raises, unless the case comes out right; `made` is `fresh_memory`'s."""
    alike = case.batch_invariant and launch.INTERPRETED
    with rows_alike() if alike else contextlib.nullcontext():
        operands = prepare(case, device)
        made.clear()
        result = call(case, operands)
        output = operands.output or made.pop(0)
        assert result.data_ptr() == output.tensor.data_ptr(), "returned something else than what it wrote"
        _judge(case, operands, output)
        _judge_stages(case, operands, made)
        first = bits(output.tensor).clone()
        _repeat(case, operands, output, made, first)
        if case.batch_invariant and bool(operands.used.any()):
            _alone(case, operands, first, device)


def prepare(case: Case, device: torch.device) -> Operands:
    """The tensors of a case; each but those of the segments is kept as it is now."""
    dtype, slices, rows = getattr(torch, case.dtype), len(case.widths), case.num_tokens + case.idle_rows
    loras, width, output_dim = len(case.ranks) + case.spare_loras, slices * case.max_rank, sum(case.widths)
    draw = torch.Generator(device).manual_seed(case.seed)

    def memory(name: str, *shape: int, extra: int = 0) -> Fenced:
        return Fenced(shape, dtype, device, extra=extra, shift=int(case.unaligned == name))

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=draw, device=device).mul_(scale).to(dtype)

    ids = torch.tensor(case.ids(), dtype=torch.int64)
    ranks = torch.zeros(rows, dtype=torch.int64)
    ranks[: case.num_tokens] = torch.tensor((*case.ranks, 0))[ids]  # an id of -1 takes the last
    column = torch.arange(width)
    place = column % case.max_rank if case.padded else column // slices  # below the rank where a column is the rank's
    used, own = (ranks > 0).to(device), (place < ranks[:, None]).to(device)

    lora_a = memory("lora_a", loras + 1, width, case.input_dim)
    lora_b = memory("lora_b", loras + 1, output_dim, case.max_rank)
    for slot in ids.unique().tolist():
        if slot >= 0:
            theirs = (place < case.ranks[slot]).to(device)
            numbers = normal(width, case.input_dim, scale=case.input_dim**-0.5)
            lora_a.tensor[slot, theirs] = numbers[theirs]
            rank = case.ranks[slot]
            lora_b.tensor[slot, :, :rank] = normal(output_dim, rank, scale=max(rank, 1) ** -0.5)
    if case.op == "expand":
        inputs = memory("x", rows, width)
        inputs.tensor[own] = normal(rows, width)[own]
    else:
        inputs = memory("x", rows, case.input_dim, extra=case.x_extra)
        inputs.tensor[used] = normal(rows, case.input_dim)[used]
    output = None
    if case.op != "shrink":
        output = memory("base_output", rows, output_dim, extra=case.base_extra)
        output.tensor[used] = normal(rows, output_dim)[used]
    elif case.given_out:
        output = memory("base_output", rows, width)
    for each in (inputs, lora_a, lora_b, *([output] if output else [])):
        each.keep()
    segments = _fenced(segments_of(case, device), rows, loras, case)
    return Operands(inputs, lora_a, lora_b, output, segments, ranks, used, own)


def segments_of(case: Case, device: torch.device) -> Segments:
    """The batch, by the case's way to make it."""
    ids, ranks, scalings = case.ids(), list(case.ranks), list(case.scalings)
    how: dict[str, Any] = {"chunk_size": case.chunk_size, "device": device}
    if case.grouping == "tokens":
        return Segments.from_tokens(ids, ranks, scalings, **how)
    if case.grouping == "sequences":
        runs = [(slot, len([*run])) for slot, run in itertools.groupby(ids)]
        slots = [None if slot < 0 else slot for slot, _ in runs]
        return Segments.from_sequences([length for _, length in runs], slots, ranks, scalings, **how)
    if case.grouping == "other adapters":  # than those by which rows were gathered: ones of rank 0 stay in
        gathered = Segments.from_tokens(ids, [1] * len(ranks), [1.0] * len(ranks), **how)
        return gathered.with_adapters(
            torch.tensor(ranks, dtype=torch.int32, device=device), torch.tensor(scalings, device=device)
        )
    spare = case.spare_tokens if case.grouping != "on the device" else 0
    static = Segments.allocate(len(ids) + spare, len(ranks) + case.spare_loras, **how)
    static.update_from_tokens([0] * (len(ids) + spare), [case.max_rank], [3.0])  # another batch was there before
    if case.grouping == "refilled":
        static.update_from_tokens(ids, ranks, scalings)
    else:  # what update_from_tokens does with ids on a GPU, also where there is none
        static._regroup(torch.tensor(ids, dtype=torch.int64, device=device), Adapters.read(ranks, scalings))
    return static


def _fenced(segments: Segments, rows: int, loras: int, case: Case) -> Segments:
    """The same in fenced memory; what is not specified leads astray, to row `rows` and to slot `loras`."""
    last = int(segments.seg_indptr[-1])
    permutation = segments.permutation.clone()
    permutation[last:] = rows

    def fenced(tensor: torch.Tensor, wrong: float) -> torch.Tensor:
        storage = torch.full((64 + len(tensor) + 64,), wrong, dtype=tensor.dtype, device=tensor.device)
        inside = storage[64 : 64 + len(tensor)]
        inside.copy_(tensor)
        return inside

    return dataclasses.replace(
        segments,
        permutation=fenced(permutation, rows),
        seg_indptr=fenced(segments.seg_indptr, last + 1),
        weight_indices=fenced(segments.weight_indices, loras),
        lora_ranks=fenced(segments.lora_ranks, case.max_rank),
        scalings=fenced(segments.scalings, float("nan")),
        _buffer=None,
        _refillable=False,
    )


def call(case: Case, operands: Operands) -> torch.Tensor:
    """Make the call; what it returns."""
    config: Any = None if case.config is None else configs.from_row(case.op, case.config)
    how: dict[str, Any] = {"padded": case.padded, "config": config, "batch_invariant": case.batch_invariant}
    inputs: Any = operands.inputs.tensor
    output, segments, offsets = operands.output, operands.segments, (0, *itertools.accumulate(case.widths))
    a, b = _slices_of_a(case, operands.lora_a.tensor), _slices_of_b(case, operands.lora_b.tensor)
    if case.op == "shrink":
        out: Any = output.tensor if output else None
        if out is None or "h" not in case.apart:
            return lora_shrink(inputs, a, segments, len(case.widths), out=out, **how)
        slices = tuple(out.new_full((len(out), case.max_rank), torch.nan) for _ in case.widths)
        assert lora_shrink(inputs, a, segments, len(case.widths), out=slices, **how) is slices
        for row, column, slice_id, own in _own_columns(case, operands.ranks):
            out[row, column] = slices[slice_id][row, own]
        return out  # type: ignore[no-any-return]
    assert output is not None
    base: Any = output.tensor
    if "base_output" in case.apart:
        base = tuple(base[:, start:end] for start, end in itertools.pairwise(offsets))
    if case.op == "expand":
        given = lora_expand(_slices_of_h(case, inputs, operands.ranks), b, segments, offsets, base, **how)
    else:
        given = add_lora(base, inputs, a, b, segments, offsets, **how)
    assert given is base
    return output.tensor


def _own_columns(case: Case, ranks: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]]:
    """Where, in what holds all slices for each of these ranks, the numbers of a slice are.

    Yields for each slice: numbers of the ranks; columns where all slices are together; the slice; columns in it.
    """
    for slice_id in range(len(case.widths)):
        column = torch.arange(case.max_rank)
        at, own = (column < ranks[:, None]).nonzero(as_tuple=True)
        yield at, slice_id * (case.max_rank if case.padded else ranks[at]) + own, slice_id, own


def _slices_of_a(case: Case, whole: torch.Tensor) -> Any:
    """The weights, or a tensor for each slice; past an adapter's rank NaN."""
    if "lora_a" not in case.apart:
        return whole
    slices = tuple(whole.new_full((len(whole), case.max_rank, whole.shape[2]), torch.nan) for _ in case.widths)
    ranks = torch.tensor((*case.ranks, *[0] * (len(whole) - len(case.ranks))))
    for slot, column, slice_id, own in _own_columns(case, ranks):
        slices[slice_id][slot, own] = whole[slot, column]
    return slices


def _slices_of_b(case: Case, whole: torch.Tensor) -> Any:
    if "lora_b" not in case.apart:
        return whole
    return tuple(part.contiguous() for part in whole.split(case.widths, dim=1))


def _slices_of_h(case: Case, whole: torch.Tensor, ranks: torch.Tensor) -> Any:
    if "h" not in case.apart:
        return whole
    slices = tuple(whole.new_full((len(whole), case.max_rank), torch.nan) for _ in case.widths)
    for row, column, slice_id, own in _own_columns(case, ranks):
        slices[slice_id][row, own] = whole[row, column]
    return slices


def expected(case: Case, operands: Operands, output: Fenced) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float32, with h rounded to the dtype as it is documented; and its size without cancellation.

    The latter is what a row's norm comes to where the products of a sum are of random signs. Where there are few of
    them, or few columns, they may cancel each other, and the rounding of each is no longer small beside the result.
    add_lora's h is such a sum itself, in float32: of rank 1 it is all that there is, and may be next to nothing.
    """
    inputs, a, b = operands.inputs.tensor, operands.lora_a.tensor, operands.lora_b.tensor
    segments, offsets = operands.segments, (0, *itertools.accumulate(case.widths))
    padded, squared = case.padded, dataclasses.replace(operands.segments, scalings=operands.segments.scalings**2)
    h, h_squared = inputs, inputs.float() ** 2
    if case.op != "expand":
        h = reference.lora_shrink(inputs, a, segments, len(case.widths), padded=padded)
        h_sizes = reference.lora_shrink(h_squared, a.float() ** 2, segments, len(case.widths), padded=padded).sqrt()
        if case.op == "shrink":
            return h, h_sizes
        h = h.to(inputs.dtype)
        in_float32 = TOLERANCE[torch.float32] / TOLERANCE[inputs.dtype]  # of what `judge` grants
        h_squared = torch.maximum(h.float().abs(), in_float32 * h_sizes) ** 2
    base = output.before()
    result = reference.lora_expand(h, b, segments, offsets, base, padded=padded)
    sizes = reference.lora_expand(h_squared, b.float() ** 2, squared, offsets, base.float() ** 2, padded=padded)
    return result, sizes.sqrt()


def _judge(case: Case, operands: Operands, output: Fenced) -> None:
    """The output is right where it is due, and as it was elsewhere; so are the inputs."""
    due = operands.due(case)
    assert output.intact(due), "the output has changed where it must not"
    judge(output.tensor, due, *expected(case, operands, output))
    for name in ("inputs", "lora_a", "lora_b"):
        assert getattr(operands, name).intact(), f"{name} has changed"


def judge(got: torch.Tensor, due: torch.Tensor, wanted: torch.Tensor, sizes: torch.Tensor) -> None:
    """What was due is as `expected` says, row by row, within the tolerance of the dtype."""
    number = got.float().masked_fill(~due, 0.0)
    wanted, sizes = wanted.masked_fill(~due, 0.0), sizes.masked_fill(~due, 0.0)
    assert bool(number.isfinite().all()), f"{int((~number.isfinite()).sum())} numbers of the output are not finite"
    assert bool(wanted.isfinite().all()), "the reference is not finite"
    norm = torch.maximum(wanted.norm(dim=-1), sizes.norm(dim=-1))
    beyond = (number - wanted).norm(dim=-1) - TOLERANCE[got.dtype] * norm
    worst = beyond.max().item() if beyond.numel() else 0.0
    assert worst <= 1e-6, f"row {int(beyond.argmax())} is off by {worst:.2e} beyond the tolerance"


def _judge_stages(case: Case, operands: Operands, made: list[Fenced]) -> None:
    """Partials and stages have the numbers of the batch's rows, by position, slice i from i · max_rank on; no more."""
    if not made:
        return
    (stage,) = made
    segments, width = operands.segments, operands.own.shape[1]
    positions, last = len(segments.permutation), int(segments.seg_indptr[-1])
    rows = segments.permutation[:last].long()
    slot_of = torch.zeros(positions, dtype=torch.int64)
    starts = segments.seg_indptr.tolist()
    for slot, start, end in zip(segments.weight_indices.tolist(), starts, starts[1:]):
        slot_of[start:end] = slot
    ranks = torch.tensor([*segments.lora_ranks.tolist()])[slot_of]
    ranks[last:] = 0
    assert bool(operands.used[rows].any()) == bool((ranks > 0).any())
    due = (torch.arange(width) % case.max_rank < ranks[:, None]).to(stage.tensor.device)
    splits = stage.tensor.numel() // max(1, positions * width)
    written = due.expand(splits, positions, width).reshape(-1)
    assert stage.intact(written), "the stage has changed where it must not"
    assert bool(stage.tensor[written].isfinite().all()), "the stage lacks numbers"


def _repeat(case: Case, operands: Operands, output: Fenced, made: list[Fenced], first: torch.Tensor) -> None:
    """The same call gives the same bits, in whatever order its programs come."""
    output.restore()
    made.clear()
    with backwards() if launch.INTERPRETED else contextlib.nullcontext():
        again = call(case, operands)
    fresh = made.pop(0) if operands.output is None else output
    assert fresh.intact(operands.due(case)), "the output has changed where it must not, the second time"
    assert torch.equal(bits(again), first), "the same call gives other bits"
    _judge_stages(case, operands, made)


def _alone(case: Case, operands: Operands, first: torch.Tensor, device: torch.device) -> None:
    """With batch_invariant, a row has the same bits in a batch of its own, of another chunk size."""
    rows = operands.used.nonzero().flatten().tolist()
    row = rows[case.seed % len(rows)]
    chunk_size = 16 if case.chunk_size != 16 else 64
    ids = [case.ids()[row]]
    segments = Segments.from_tokens(ids, case.ranks, case.scalings, chunk_size=chunk_size, device=device)
    dtype = operands.inputs.tensor.dtype

    def one(fenced: Fenced, name: str, extra: int) -> Fenced:
        kept = fenced.before()
        shift = int(case.unaligned == name)
        other = Fenced((1, kept.shape[1]), dtype, device, extra=extra, shift=shift)
        other.tensor.copy_(kept[row : row + 1])
        return other

    inputs = one(operands.inputs, "x", 0 if case.op == "expand" else case.x_extra)
    output = operands.output and one(operands.output, "base_output", 0 if case.op == "shrink" else case.base_extra)
    ranks = operands.ranks[row : row + 1]
    alone = dataclasses.replace(operands, inputs=inputs, output=output, segments=segments, ranks=ranks)
    got = bits(call(dataclasses.replace(case, chunk_size=chunk_size), alone))[0]
    due = operands.due(case)[row]
    assert torch.equal(got[due], first[row][due]), f"row {row} has other bits in a batch of its own"
