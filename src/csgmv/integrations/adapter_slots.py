"""Which adapter is in which slot, and with which rank and scaling in each row of a table.

A model's layers differ in what the adapters are to them, while a batch's rows and segments are the same to all. So each
layer, or group of layers that share their input, has a row of this table, whose tensors take the place of a batch's own
(`Segments.with_adapters`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from csgmv.integrations.peft_config import Size

_ABSENT = Size(0, 0.0)
_ALIGNED = 4  # 16 bytes, so that each row's pointer is as good as an allocation's


class AdapterSlots:
    """The slots.

    Attributes:
        of: adapter → its slot.
        alike: for each row, the first row that equals it.
        masks: for each row, bit i says that slot i has a rank there.
    """

    def __init__(self, max_loras: int, device: torch.device) -> None:
        self.max_loras, self.device = max_loras, device
        self.of: dict[str, int] = {}
        self.alike: list[int] = []
        self.masks: list[int] = []
        self._sizes: list[list[Size]] = []
        self._ranks = torch.empty(0, dtype=torch.int32, device=device)
        self._scalings = torch.empty(0, dtype=torch.float32, device=device)

    def add_rows(self, count: int) -> range:
        """So many rows more, in which no slot has a rank; their numbers. What `row` gave before no longer changes."""
        before = len(self._sizes)
        self._sizes += [[_ABSENT] * self.max_loras for _ in range(count)]
        shape = len(self._sizes), -(-self.max_loras // _ALIGNED) * _ALIGNED
        self._ranks, self._scalings = self._ranks.new_zeros(shape), self._scalings.new_zeros(shape)
        self._write()
        return range(before, len(self._sizes))

    def put(self, name: str, slot: int, sizes: Mapping[int, Size]) -> None:
        """Gives a slot to an adapter, with its rank and scaling by row; rows that are not there get rank 0."""
        self.of[name] = slot
        for number, row in enumerate(self._sizes):
            row[slot] = sizes.get(number, _ABSENT)
        self._write()

    def take(self, name: str) -> None:
        """Frees an adapter's slot."""
        self.put(name, self.of[name], {})
        del self.of[name]

    def free(self) -> int:
        """A slot that no adapter has.

        Raises:
            ValueError: there is none.
        """
        taken = {*self.of.values()}
        slot = next((slot for slot in range(self.max_loras) if slot not in taken), None)
        if slot is None:
            raise ValueError(f"expected at most max_loras = {self.max_loras} adapters at a time: remove one first")
        return slot

    def largest_ranks(self) -> list[int]:
        """[max_loras], each slot's largest rank in any row."""
        return [max(size.rank for size in column) for column in zip(*self._sizes)]

    def row(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A row's lora_ranks and scalings, each [max_loras], on the device; later changes show in them."""
        return self._ranks[row, : self.max_loras], self._scalings[row, : self.max_loras]

    def _write(self) -> None:
        first: dict[tuple[Size, ...], int] = {}
        self.alike = [first.setdefault(tuple(row), number) for number, row in enumerate(self._sizes)]
        self.masks = [sum(1 << slot for slot, size in enumerate(row) if size.rank) for row in self._sizes]
        for column, table in enumerate((self._ranks, self._scalings)):
            values = torch.tensor([[size[column] for size in row] for row in self._sizes], dtype=table.dtype)
            table[:, : self.max_loras].copy_(values)
