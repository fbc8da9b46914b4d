"""Whether the kernels of another revision make the same binaries as those of this tree, for every row of the table.

    python tests/same_binaries.py REVISION

A kernel that gets one more variant has another source, and `kernel_hash` says so, but what was measured before still
holds where the PTX is the same to the byte. Both revisions compile every row of this tree's table for compute
capability 9.0, as their own operations launch it; no GPU is needed, but the Triton version that the rows are of. Where
all are the same, what is printed belongs into `kernel_hash.SAME_BINARIES`; otherwise the exit status is 1.

    python tests/same_binaries.py --list ROWS.json

prints for each of these rows the hashes of what the csgmv on the path compiles.
"""

from __future__ import annotations

import contextvars
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CAPABILITY = 90


def _become_a_gpu() -> None:
    """From now on kernels are compiled for a GPU that is not there, down to PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend

    from csgmv import arguments, launch

    driver = SimpleNamespace(
        get_current_device=lambda: -1,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", CAPABILITY, 32),
        launcher_cls=lambda *_: lambda *_: None,
        utils=SimpleNamespace(),
    )
    triton.runtime.driver.set_active(driver)
    CUDABackend.make_cubin = lambda *_: b""  # half of the time, and it decides nothing that PTX does not say
    arguments._check_rows = lambda *_: None  # it refuses tensors on the CPU
    launch._current_device, launch._current_stream = (lambda: -1), (lambda _: 0)


def hashes(rows: list[Any]) -> list[list[str]]:
    """Of the PTX of every kernel of every row: its key's fields and the config's."""
    import torch

    from csgmv import binaries, config, launch
    from csgmv.models import LayerShape

    _become_a_gpu()
    listed, cpu = [], torch.device("cpu")
    for (op, input_dim, widths, rank, num_slices, dtype, chunk_size, bucket), row in rows:
        shape = LayerShape("", input_dim or 1024, tuple(widths) or (1024,) * num_slices)
        batch = binaries._without_rows(chunk_size, bucket, cpu)
        how = {"config": config.from_row(op, tuple(row))}
        (call,) = binaries._calls(shape, rank, getattr(torch, dtype), [op], [batch], cpu, how)
        found: list[Any] = []
        context = contextvars.copy_context()
        context.run(launch.compiled.set, found)
        context.run(call)
        assert found, f"nothing is launched for {op}, {row}"
        listed.append([_hash(one) for one in found])
    return listed


def _hash(compiled: Any) -> str:
    """Of the PTX, and of what else a launch takes."""
    its = compiled.metadata
    launched = its.name, its.shared, its.num_warps, its.num_ctas, getattr(its, "launch_pdl", None)
    return hashlib.sha256(f"{launched}\n{compiled.asm['ptx']}".encode()).hexdigest()


def _of(source: Path, rows: Path, cache: Path) -> subprocess.Popen[str]:
    """The same in a process whose csgmv is that of a source folder."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(source), "TRITON_CACHE_DIR": str(cache), "TRITON_DISABLE_LINE_INFO": "1"}
    command = [sys.executable, __file__, "--list", str(rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def main(revision: str) -> int:
    """Compare, and tell; 0 if all binaries are the same."""
    sys.path[:0] = [str(ROOT / "src")]
    from csgmv import dispatch, fallback, kernel_hash

    table = dispatch.tables().rows
    rows = [[key, row] for each in table.values() for key, row in fallback.flat(each).items() if row is not None]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        listed = place / "rows.json"
        listed.write_text(json.dumps(rows), encoding="utf-8")
        archive = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        there = place / "src"
        running = [_of(there, listed, place / "theirs"), _of(ROOT / "src", listed, place / "ours")]
        theirs, ours = (json.loads(process.communicate()[0]) for process in running)
        before, today = kernel_hash.kernel_hash(there / "csgmv"), kernel_hash.kernel_hash()
    differ = [row for row, one, other in zip(rows, theirs, ours) if one != other]
    for key, row in differ:
        print(f"differs: {row} at {key}")
    distinct = len({each for one in ours for each in one})
    print(f"{len(rows)} rows, {distinct} kernels, {len(differ)} rows differ from those of {revision}")
    if not differ:
        print(f'"{before}": "{today}",')
    return 1 if differ else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 and sys.argv[1:2] != ["--list"]:
        sys.exit(__doc__)
    if sys.argv[1] == "--list":
        print(json.dumps(hashes(json.loads(Path(sys.argv[2]).read_text("utf-8")))))
    else:
        sys.exit(main(sys.argv[1]))
