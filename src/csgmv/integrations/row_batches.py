"""Which adapter each row of a model's batch uses, and the Segments that follow for layers whose inputs have so many
tokens a row.

A model hands its layers [rows, tokens, …]: rows are the sequences of a batch, or with beam search a multiple of them,
in which a sequence's beams follow one another; tokens change from the prompt to decoding, and may be fewer for the
layer that makes logits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from csgmv import plain_arguments
from csgmv.integrations.adapter_slots import AdapterSlots
from csgmv.segments import Segments, check_chunk_size

_numbers = itertools.count()  # of static batches


def slot_ids(slots: AdapterSlots, called: str, names: object) -> list[int]:
    """The slot of each row's adapter, -1 for None; `called` is the argument's name.

    Raises:
        TypeError: what is given is no sequence of names and None.
        ValueError: there are none, or a name is unknown.
    """
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise TypeError(f"{called}: expected a sequence with an adapter's name or None for each row, got {names!r}")
    if not names:
        raise ValueError(f"{called}: expected an adapter's name or None for each row, got no rows")
    if unknown := [name for name in names if name is not None and not (isinstance(name, str) and name in slots.of)]:
        there = ", ".join(slots.of) or "there are none"
        raise ValueError(f"{called}: expected names of adapters ({there}), got {unknown[0]!r}")
    return [-1 if name is None else slots.of[name] for name in names]


class RowBatch:
    """A batch as long as it is served.

    Attributes:
        ids: slot of each row, -1 for none.
        mask: bit i says that slot i is used.
        graph: what compiled graphs tell batches apart by; empty, since none depends on an ordinary batch.
    """

    graph = ""

    def __init__(self, slots: AdapterSlots, names: object, chunk_size: int | None = None) -> None:
        check_chunk_size(chunk_size)
        self.ids = slot_ids(slots, "batch", names)
        self._chunk_size = chunk_size
        self.mask = sum(1 << slot for slot in {*self.ids} if slot >= 0)
        self._slots, self._on_gpu = slots, slots.device.type == "cuda"
        self._whole: dict[torch.Size, Segments] = {}
        self._alike: dict[tuple[int, torch.Size], Segments] = {}
        self._found: dict[tuple[int, torch.Size], Segments | None] = {}

    def segments(self, shape: torch.Size, row: int) -> Segments | None:
        """For a layer's input of this shape, with the layer's row of the slots' table; None if it leaves the rest be.

        Raises:
            ValueError: the input's rows are not the batch's.
            RuntimeError: the stream is being captured, and what would be captured is gone after this batch.
        """
        if self._on_gpu and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a CUDA graph needs a batch in fixed buffers: capture within use(MultiLoRA.static(…))")
        asked = row, shape
        try:
            return self._found[asked]
        except KeyError:
            found = self._found[asked] = self._with_adapters(shape[:-1], row)
            return found

    def _with_adapters(self, lead: torch.Size, row: int) -> Segments | None:
        """The same Segments for all rows of the table that are alike: launches of theirs share a plan's look-up."""
        slots = self._slots
        if not slots.masks[row] & self.mask:
            return None
        key = slots.alike[row], lead
        segments = self._alike.get(key)
        if segments is None:
            if (whole := self._whole.get(lead)) is None:
                whole = self._whole[lead] = self._grouped(lead)
            segments = self._alike[key] = whole.with_adapters(*slots.row(key[0]))
        return segments

    def _grouped(self, lead: torch.Size) -> Segments:
        ranks = self._slots.largest_ranks()
        return Segments.from_sequences(
            _tokens("batch", lead, len(self.ids)),
            self.ids,
            ranks,
            [1.0] * len(ranks),
            chunk_size=self._chunk_size,
            device=self._slots.device,
        )


def _tokens(called: str, lead: Sequence[int], rows: int) -> list[int]:
    """Tokens that belong to each row of the batch, of an input [*lead, input_dim]; `called` is the rows' argument."""
    if len(lead) < 2:
        raise ValueError(f"expected layers' inputs of [rows, tokens, features], got {len(lead) + 1} dimensions")
    if lead[0] % rows:
        wanted = f"as many rows as names of adapters ({rows}), or a multiple"
        raise ValueError(f"{called}: expected {wanted}, got {lead[0]}")
    return [math.prod(lead) // rows] * rows


class StaticBatch:
    """A batch in fixed buffers, for CUDA graphs: what is captured with it replays right after any `update`.

    Made by `MultiLoRA.static`; give it to `MultiLoRA.use` while the graph is captured.

    Attributes:
        ids: slot of each row, -1 for none.
        mask: all bits, since any slot may be used by a replay.
        graph: what of it a compiled graph depends on, which a CUDA graph may be made of: its buffers.
    """

    mask = -1

    def __init__(self, slots: AdapterSlots, rows: int, tokens: int, chunk_size: int | None = None) -> None:
        """What `MultiLoRA.static` calls.

        Args:
            slots: of the adapters.
            rows: of the model's inputs.
            tokens: of a row.
            chunk_size: most rows of a segment.

        Raises:
            TypeError, ValueError: a number is none, or below 1.
        """
        for name, value in (("rows", rows), ("tokens", tokens)):
            plain_arguments.whole(name, value, 1)
        self.ids = [-1] * rows
        self.graph = f"static {next(_numbers)}"
        self._slots, self._lead = slots, (rows, tokens)
        self._whole = Segments.allocate(rows * tokens, slots.max_loras, chunk_size=chunk_size, device=slots.device)
        self._segments: dict[int, Segments] = {}

    def update(self, names: Sequence[str | None]) -> None:
        """Other adapters from now on, without a wait for the GPU: the copy is queued on the current stream.

        Args:
            names: an adapter or None for each row; or for each of equally many neighbouring rows, a sequence's beams.

        Raises:
            TypeError, ValueError: these are no such names; nothing has been changed.
        """
        ids = slot_ids(self._slots, "names", names)
        ranks = self._slots.largest_ranks()
        self._whole.update_from_sequences(_tokens("names", self._lead, len(ids)), ids, ranks, [1.0] * len(ranks))
        self.ids = ids

    def segments(self, shape: torch.Size, row: int) -> Segments:
        """For a layer's input of this shape, with the layer's own row of the slots' table.

        Args:
            shape: [rows, tokens, features].
            row: the layer's, which has its adapters' ranks and scalings.

        Raises:
            ValueError: the shape is not that of the batch.
        """
        if shape[:-1] != self._lead:
            raise ValueError(f"expected layers' inputs of {[*self._lead]} rows and tokens, got {[*shape[:-1]]}")
        segments = self._segments.get(row)
        if segments is None:
            segments = self._segments[row] = self._whole.with_adapters(*self._slots.row(row))
        return segments
