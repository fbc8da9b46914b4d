"""Which of the keys in a folder of raw results are to be measured again, each on the batches that its record has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import triton

from csgmv import kernel_hash, records
from csgmv.baking.choose import choose
from csgmv.baking.collect import collect
from csgmv.tuning.plan import Batch, Keys, Task
from csgmv.tuning.record import check_places


def stale(folder: Path) -> Keys:
    """The keys whose results are of other kernels.

    Raises:
        ValueError: there are none, or a file of raw results is broken or not where the tuner puts it.
    """
    today = kernel_hash.kernel_hash()
    return _keys(
        "--stale", "of other kernels", folder, lambda result: not kernel_hash.same_kernels(result.kernel_hash, today)
    )


def noisy(folder: Path, percent: float) -> Keys:
    """The keys whose default, or winner where that cannot run, varied by more than so many percent of its time.

    Raises:
        ValueError: as for `stale`.
    """

    def varied(result: records.Result) -> bool:
        reference = result.default or records.winner(result)
        return reference is not None and 100 * result.noise_us > percent * reference.p50_us

    return _keys("--noisy", f"with noise of more than {percent:g} %", folder, varied)


def _keys(option: str, what: str, folder: Path, wanted: Callable[[records.Result], bool]) -> Keys:
    """Those of results, of this GPU and Triton version, that are wanted; without a GPU of any."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    collected = collect(folder)
    if gpu is not None:  # a record in another file would stay beside the new one
        check_places(folder, collected, (gpu, triton.__version__))
    results = choose(collected.found).results
    here = [result for result in results if gpu is None or (result.gpu, result.triton) == (gpu, triton.__version__)]
    found = [result for result in here if wanted(result)]
    if not found:
        raise ValueError(
            f"{option}: expected results {what} in {folder}, got none among {len(here)} of "
            f"{'all GPUs' if gpu is None else f'{gpu} under Triton {triton.__version__}'}"
        )
    return Keys([result.key for result in found], {result.key: _task(result) for result in found})


def _task(result: records.Result) -> Task:
    return Task(result.key, tuple(Batch(*times[:3]) for times in result.batches), result.tuned_on)
