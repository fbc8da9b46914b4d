"""What a measurement depends on beside its key: the GPU, the software, the kernels' source."""

from __future__ import annotations

import datetime
import subprocess

import torch

import csgmv
from csgmv import measure
from csgmv.kernel_hash import kernel_hash
from csgmv.tuning.record import Run


def current_run(device: torch.device, seed: int) -> Run:
    """The run that records of today on this device belong to."""
    properties = torch.cuda.get_device_properties(device)
    return Run(
        compute_capability=f"{properties.major}.{properties.minor}",
        sm_count=properties.multi_processor_count,
        driver=_driver(),
        cuda=str(torch.version.cuda or torch.version.hip),
        torch=torch.__version__,
        csgmv=csgmv.__version__,
        kernel_hash=kernel_hash(),
        seed=seed,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        l2=measure.METHOD,
    )


def _driver() -> str:
    """The driver's version; 'unknown' where no tool tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return output.splitlines()[0].strip() if output.strip() else "unknown"
