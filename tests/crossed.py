"""Results of a few layers that lend each other rows, and a bench that knows what each row takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from csgmv import raw_results, rules
from csgmv.baking.choose import Chosen, choose
from csgmv.baking.collect import collect
from csgmv.tuning.lab import Screening
from csgmv.tuning.plan import Batch, Task
from csgmv.tuning.record import name
from csgmv.tuning.worker import Failure
from fabricated import document, finalist, put, record
from rigs import HERE

WHERE = ("NVIDIA H200", "3.6.0")


def own(stages: int, warps: int = 4) -> list[Any]:
    """A layer's winner, told apart by its stages and warps."""
    return [16, 32, 128, 2, 1, warps, stages, None, False]


def layer(
    input_dim: int, stages: int, chunk_sizes: Sequence[int] = (16, 64), *, finalists: Sequence[Any] = (), **more: Any
) -> dict[str, Any]:
    """A file of a key for each chunk size, measured with today's kernels; the larger the chunk, the more warps."""
    made = [
        record(
            chunk_size=size,
            finalists=[finalist(own(stages, size // 16), 20.0), *finalists],
            candidates=[],
            batches=[[101, 5, 7, 30.0, 20.0], [32, 8, 8, 15.0, 10.0], [8, 8, 8, 15.0, 10.0]],
            tuned_on=2,
        )
        for size in chunk_sizes
    ]
    content = document(*made, input_dim=input_dim, **more)
    content["runs"][0]["kernel_hash"] = HERE.run.kernel_hash
    return content


def folder(path: Path, *contents: dict[str, Any]) -> Path:
    """Files of raw results under the names that the tuner gives them."""
    for content in contents:
        first = next(iter(raw_results.results(content)))
        put(path, str(name(first.gpu, first.triton, first.key)), content)
    return path


def chosen(path: Path) -> Chosen:
    """As a build chooses."""
    return choose(collect(path).found)


class RowBench:
    """A row takes ten microseconds a stage, and as many more as it has warps; `wrong` and `crashing` rows fail."""

    def __init__(self, wrong: Sequence[rules.Row] = (), crashing: Sequence[rules.Row] = ()) -> None:
        self.wrong, self.crashing = wrong, crashing
        self.checked: list[tuple[rules.Key, rules.Row]] = []
        self.raced: list[tuple[rules.Key, Batch, tuple[rules.Row, ...]]] = []
        self.before_race: Callable[[], None] = lambda: None

    def check(self, key: rules.Key, row: rules.Row) -> float:
        """Right, unless it is a wrong one."""
        self.checked.append((key, row))
        if row in self.wrong:
            raise Failure("WrongResult: wrong result")
        return 0.001

    def screen(self, _task: Task, row: rules.Row, _stop_above: float) -> Screening:
        """By the same formula."""
        return Screening(self.us(row), 3, False)

    def race(
        self, key: rules.Key, batch: Batch, rows: Sequence[rules.Row], rounds: int
    ) -> tuple[list[list[float]], int]:
        """Half as long on a batch of a row a segment; a sample in three is off."""
        self.before_race()
        if {*rows} & {*self.crashing}:
            raise Failure("crashed with exit status -11")
        self.raced.append((key, batch, tuple(rows)))
        times = [self.us(row) * (0.5 if batch.tokens == 32 else 1.0) for row in rows]
        return [[us, 1.5 * us, us / 1.5] * (rounds // 3) for us in times], 8

    @staticmethod
    def us(row: rules.Row) -> float:
        """Microseconds on the fullest batch."""
        named = dict(zip(rules.FIELD_NAMES["shrink"], row))
        return 10.0 * (named["num_stages"] or 0) + (named["num_warps"] or 0)
