"""Compiles the kernels for a GPU that need not be there, and tells what became of their memory accesses.

Run as a program, in a process of its own, since the tests' process interprets kernels where there is no GPU:

    python tests/ahead_of_time.py '[["shrink", {"BLOCK_M": 64, …}, {"num_warps": 4}], …]'

prints for each kernel, as JSON: how many global accesses of each width its PTX has, its shared memory, and the
registers and spilled bytes that ptxas reports; how many dots of tensor cores it has, how many of these take float32 for
TF32, and how many atomic operations. Of the constants, "dtype" is that of x, weights and base, and "h" that of h.
"""

from __future__ import annotations

import collections
import json
import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from csgmv import expand, shrink
from csgmv.integrations import vllm_metadata
from csgmv.tuning.target import resources

ACCESS = re.compile(r"\b(cp\.async\.c[ag]\.shared\.global|(?:ld|st)\.global[\w.:]*)([^;\n]*)")
INDICES = ["permutation", "seg_indptr", "weight_indices", "lora_ranks"]
INDICES += ["num_tokens_per_lora", "lora_token_start_loc", "lora_ids"]
COUNTS = ["num_slices", "positions", "num_segments", "group", "row_tiles", "column_programs"]
COUNTS += ["split_k", "splits", "column_tiles", "groups", "num_loras", "rank", "chunk_size"]
KERNELS = {"shrink": shrink._shrink_kernel, "expand": expand._expand_kernel, "cut": vllm_metadata._cut_kernel}


def _bytes(instruction: str, operands: str) -> int:
    """How many bytes one thread moves by one access."""
    if instruction.startswith("cp.async"):
        return int(operands.split(",")[2], 0)
    vector = re.search(r"\.v(\d)", instruction)
    scalar = re.search(r"\.[bfsu](\d+)$", instruction)
    assert scalar, instruction
    return (int(vector[1]) if vector else 1) * int(scalar[1]) // 8


def _left_out(names: list[str], constants: dict) -> list[str]:
    """Arguments that a kernel is compiled without: those of further slices, unless they are apart."""
    flags = {"lora_a": "A_APART_BY", "lora_b": "B_APART", "base_output": "BASE_APART", "base_stride": "BASE_APART"}
    flags["h"] = "H_APART_BY" if "H_APART_BY" in names else "H_APART"
    further = [name for name in names if name[-1] in "123" and name[:-1] in flags]
    absent = [name for name in further if not constants.get(flags[name[:-1]])]
    return [*absent, *["b_stride"] * bool(constants.get("B_APART"))]


def compile_kernel(name: str, constants: dict, options: dict, arch: int = 90) -> dict:
    """One kernel; pointers are 16-byte aligned, sizes multiples of 16 as in real layers, or of 8 with BY_8."""
    kernel = KERNELS[name]
    like = constants.pop("dtype", "*bf16")
    h_type = constants.pop("h", like)
    signature, attributes = {}, {}
    pointers = {**dict.fromkeys(("x", "lora_a", "lora_b", "base_output"), like), "h": h_type}
    pointers |= dict.fromkeys(INDICES, "*i32") | {"scalings": "*fp32"}
    constants |= dict.fromkeys(_left_out(kernel.arg_names, constants))
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        signature[argument] = pointers.get(argument.rstrip("123"), "i32")
        by_16 = signature[argument] != "i32" or not constants.get("BY_8")
        if by_16 and argument not in COUNTS:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    widths = collections.Counter(
        f"{kind[:2]} {_bytes(kind, operands)}" for kind, operands in ACCESS.findall(compiled.asm["ptx"])
    )
    dots = re.findall(r"\b(?:wg)?mma\.\w*sync\.[\w.:]*", compiled.asm["ptx"])
    return {
        "accesses": widths,
        "dots": len(dots),
        "tf32": sum("tf32" in dot for dot in dots),
        "atomics": len(re.findall(r"^\s*(?:@\S+\s+)?(?:atom|red)\.", compiled.asm["ptx"], re.MULTILINE)),
        "shared": compiled.metadata.shared,
        **resources(compiled.asm["cubin"])._asdict(),
    }


if __name__ == "__main__":
    print(json.dumps([compile_kernel(*case) for case in json.loads(sys.argv[1])]))
