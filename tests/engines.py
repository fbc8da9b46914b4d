"""Engines to install into: sglang in its two layouts and vLLM, laid into sys.modules with functions that answer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

OLD, NEW = "sglang.srt.lora.triton_ops", "sglang.kernels.ops.lora.dense"
BACKEND = "sglang.srt.lora.backend.chunked_backend"
VERSIONS = {OLD: "0.5.11", NEW: "0.5.23"}


def _chunked_sgmv_lora_shrink_forward(x, weights, batch_info, num_slices):
    return "sglang's shrink", x, weights, batch_info, num_slices


def _chunked_sgmv_lora_expand_forward(x, weights, batch_info, slice_offsets, max_slice_size, base_output):
    return "sglang's expand", x, weights, batch_info, slice_offsets, max_slice_size, base_output


SHRINK, EXPAND = "chunked_sgmv_lora_shrink_forward", "chunked_sgmv_lora_expand_forward"
SGLANGS_OWN = {SHRINK: _chunked_sgmv_lora_shrink_forward, EXPAND: _chunked_sgmv_lora_expand_forward}


@contextlib.contextmanager
def only(*engines: str) -> Iterator[None]:
    """No module of these packages is loaded; those that get loaded are gone afterwards."""

    def loaded() -> dict[str, ModuleType]:
        return {name: each for name, each in sys.modules.items() if name.partition(".")[0] in engines}

    before = loaded()
    for name in before:
        del sys.modules[name]
    yield
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)


def lay(name: str, **attributes: Any) -> ModuleType:
    """A module of this name, with the packages that it is in."""
    package, _, last = name.rpartition(".")
    module = ModuleType(name)
    module.__path__ = []  # a package, of which nothing more is found
    vars(module).update(attributes)
    sys.modules[name] = module
    if package:
        setattr(sys.modules.get(package) or lay(package), last, module)
    return module


class Backend:
    """What 0.5.11 does with a batch for a graph: segments past the batch's own stay as they were."""

    def prepare_lora_batch(self, batch_info: Any, *, indptr: list[int]) -> str:
        """Refills a static batch, or takes a new one as it is."""
        if batch_info.use_cuda_graph:
            batch_info.num_segments = len(indptr) - 1
            batch_info.seg_indptr[: len(indptr)] = torch.tensor(indptr)
        self.batch_info = batch_info
        return "prepared"


def lay_sglang(layout: str, *, backend: bool = True, **changed: Any) -> None:
    """sglang's functions in their homes, in the package that imports them in 0.5.11, and in the backend."""
    functions = SGLANGS_OWN | changed
    lay("sglang", __version__=VERSIONS[layout])
    lay(layout)
    lay(f"{layout}.chunked_sgmv_shrink", **{SHRINK: functions[SHRINK]})
    lay(f"{layout}.chunked_sgmv_expand", **{EXPAND: functions[EXPAND]})
    if layout == OLD:
        vars(sys.modules[layout]).update(functions)
    if backend:
        lay(BACKEND, ChunkedSgmvLoRABackend=type("ChunkedSgmvLoRABackend", (Backend,), {}), **functions)


VLLM_SCHEMAS = {
    "lora_shrink": "Tensor inputs, Tensor[] lora_a_weights, Tensor(a!) output_tensor, {meta}, float scaling",
    "lora_expand": "Tensor inputs, Tensor[] lora_b_weights, Tensor(a!) output_tensor, {meta}, SymInt offset_start=0, "
    "bool add_inputs=False",
}
_META = (
    "Tensor token_lora_mapping, Tensor token_indices_sorted_by_lora_ids, Tensor num_tokens_per_lora, "
    "Tensor lora_token_start_loc, Tensor lora_ids, Tensor no_lora_flag_cpu, Tensor num_active_loras"
)


def _fill_with_7(*given: Any, **_: Any) -> None:
    given[2].fill_(7)


@contextlib.contextmanager
def vllm_laid(version: str = "0.33.0", *, batch_invariant: bool = False, **schemas: str) -> Iterator[None]:
    """vLLM with its operators, as it registers them, for the device of the tests; its own set all outputs to 7."""
    library = torch.library.Library("vllm", "FRAGMENT")
    key = "CUDA" if torch.cuda.is_available() else "CPU"
    with only("vllm"):
        lay("vllm", __version__=version)
        lay("vllm.platforms", current_platform=SimpleNamespace(dispatch_key=key))
        lay("vllm.envs", VLLM_BATCH_INVARIANT=batch_invariant)
        lay("vllm.lora.ops.triton_ops")
        for name, schema in (VLLM_SCHEMAS | schemas).items():
            if schema:
                library.define(f"{name}({schema.format(meta=_META)}) -> ()")
                library.impl(name, _fill_with_7, key)
                torch.library.register_fake(f"vllm::{name}", lambda *_, **__: None, lib=library)
        try:
            yield
        finally:
            library._destroy()
