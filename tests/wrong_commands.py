"""Wrong options of every command: what is added to a command line that is right, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Line = tuple[Sequence[str], str]  # what is added; what the last line of stderr has, as a regular expression

# A command line that each command takes; only tune, show, explain and coverage run it where there is no GPU.
GOOD: Mapping[str, Sequence[str]] = {
    "tune": ["--layer", "q:64:32", "--rank", "8", "--tokens", "8", "--dry-run"],
    "merge": ["results", "--out", "merged"],
    "agree": ["results", "results"],
    "cross": ["--configs", "results", "--dry-run"],
    "spot-check": ["--dry-run", "--models", "Qwen/Qwen3-0.6B", "--gpu", "NVIDIA H200", "--keys", "2"],
    "warmup": ["--layer", "q:64:32", "--rank", "8", "--max-tokens", "8", "--max-loras", "2"],
    "bench": [],
    "report": ["--configs", "results"],
    "show": [],
    "explain": ["--rank", "8", "--input-dim", "64", "--slice-widths", "32", "--chunk-size", "16", "--segments", "4"],
    "coverage": ["--layer", "q:64:32", "--rank", "8", "--gpu", "NVIDIA H200"],
    "demo": [],
    "completion": ["bash"],
}
# Of these any value is right, or argparse says what is wrong by itself (an unknown choice, no number, a flag's value).
ANY: Mapping[str, set[str]] = {
    "tune": {"--dtype", "--ops", "--trust-remote-code", "--stale", "--force", "--then-load", "--dry-run"}
    | {"--ray"},  # Ray's to say
    "cross": {"--dry-run"},
    "spot-check": {"--ops", "--dtype", "--dry-run", "--all", "--json", "--markdown"},
    "warmup": {"--dtype", "--ops", "--trust-remote-code", "--padded", "--batch-invariant"},
    "bench": {"--distribution", "--dtype", "--ops", "--batch-invariant", "--markdown", "--e2e"},
    # Rows that there are not are found to be none, with exit status 1.
    "show": {"--all", "--gpu", "--triton", "--op", "--input-dim", "--slice-widths", "--rank", "--slices", "--dtype"}
    | {"--chunk-size", "--json"},
    "explain": {"--op", "--dtype", "--batch-invariant", "--gpu"},
    "coverage": {"--dtype", "--ops", "--trust-remote-code", "--all", "--json", "--markdown"},
}
_MISSING = "/no/such: No such file or directory|/no/such: expected raw results, got no such file or folder"


def _number(option: str, *wrong: str, wanted: str = "expected .*, got") -> list[Line]:
    name = option.strip("-").replace("-", "[-_]")
    return [([option, each], f"{name}.*: {wanted} '?{re.escape(each)}") for each in wrong]


def _layers() -> dict[str, list[Line]]:
    """Of the options that say which layers."""
    known = ["--model", "Qwen/Qwen3-0.6B"]
    return {
        "--model": [(["--model", "/no/such"], "^csgmv: error: model: expected a hub name, a folder .*, got no folder")],
        "--layer": [
            (["--layer", "q"], r"^csgmv: error: layer: expected NAME:INPUT_DIM:W1\+W2\+W3 .*; got 'q'"),
            (["--layer", "q:0:8"], "^csgmv: error: layer: expected .*; got 'q:0:8'"),
            (["--layer", "q:8:1+2+3+4+5"], "^csgmv: error: layer: expected .*; got "),
        ],
        "--adapter": [
            (["--adapter", "/no/such"], r"^csgmv: error: adapter: expected a folder with an adapter_config\.json, got")
        ],
        "--rank": _number("--rank", "0", "257"),
        "--tp": [
            *_number("--tp", "0"),
            ([*known, "--tp", "5"], "^csgmv: error: tp: expected a number that divides .*, got 5"),
        ],
    }


WRONG: Mapping[str, Mapping[str, Sequence[Line]]] = {
    "tune": {
        **_layers(),
        "--chunk-sizes": _number("--chunk-sizes", "0"),
        "--tokens": _number("--tokens", "0"),
        "--adapters": _number("--adapters", "0"),
        "--from-misses": [
            (["--from-misses", "misses.json"], "--from-misses: expected no other option on what to tune, got --layer"),
        ],
        "--noisy": [
            *_number("--noisy", "-1", "nan"),
            (["--noisy", "10"], "--noisy: expected no other option on what to tune, got --layer"),
        ],
        "--out": [(["--out", "a-file"], "^csgmv: error: --out: expected a folder, got a-file")],
        "--time-budget": _number("--time-budget", "-1", "nan", "inf"),
        "--processes": _number("--processes", "0"),
        "--seed": _number("--seed", "-1", str(2**63)),
    },
    "merge": {
        "paths": [(["/no/such"], _MISSING), (["a-file"], "a-file: .*expected only .json files")],
        "--out": [(["--out", "a-file"], "^csgmv: error: --out: expected a folder, got a-file")],
    },
    "agree": {
        "first": [(["/no/such"], _MISSING)],
        "second": [(["/no/such"], _MISSING)],
        "--within": _number("--within", "-1", "nan", "inf"),
        "--least": _number("--least", "-1", "101", "nan"),
        "--processes": _number("--processes", "0"),
    },
    "cross": {
        "--configs": [(["--configs", "/no/such"], _MISSING), (["--configs", "a-file"], "expected only .json files")],
        "--time-budget": _number("--time-budget", "-1", "nan", "inf"),
        "--processes": _number("--processes", "0"),
        "--seed": _number("--seed", "-1", str(2**63)),
    },
    "spot-check": {
        "--models": [(["--models", "/no/such"], "^csgmv: error: --models: expected some .*, got none")],
        "--ranks": _number("--ranks", "0", "257"),
        "--tp": [*_number("--tp", "0"), (["--tp", "5"], "^csgmv: error: --models: expected some .*, got none")],
        "--keys": _number("--keys", "0"),
        "--seed": _number("--seed", "-1", str(2**63)),
        "--out": [(["--out", "a-file"], "^csgmv: error: --out: expected a folder, got a-file")],
        "--tell": [(["--tell"], "^csgmv: error: --tell: expected without --dry-run")],
        "--time-budget": _number("--time-budget", "-1", "nan", "inf"),
        "--processes": _number("--processes", "0"),
        "--gpu": [(["--gpu", "nothing"], "--gpu: expected one of the table's, .*; got nothing")],
        "--triton": [(["--triton", each], "--triton: expected a version such as") for each in ("new", "", "3.²")],
        "--median": _number("--median", "-1", "nan"),
        "--percentile-95": _number("--percentile-95", "-1", "nan"),
        "--into": [(["--into", "README.md"], "^csgmv: error: --into: expected together with --markdown")],
    },
    "warmup": {
        **_layers(),
        "--max-tokens": _number("--max-tokens", "0"),
        "--max-loras": _number("--max-loras", "-1"),
        "--chunk-sizes": _number("--chunk-sizes", "0"),
        "--threads": _number("--threads", "0"),
        "--apart": [(["--apart", "x"], "--apart: invalid choice: 'x'")],
    },
    "bench": {
        "--model": [(["--model", "/no/such"], "^csgmv: error: model: expected a hub name, a folder .*, got no folder")],
        "--layer": [(["--layer", "q"], "--layer: .*expected NAME")],
        "--rank": _number("--rank", "0", "257", "0,8"),
        "--host": [(["--host", "--markdown"], "^csgmv: error: --host: expected without --markdown and --json")],
        "--into": [
            (["--into", "README.md"], "^csgmv: error: --into: expected together with --markdown"),
            (["--markdown", "--into", "/no/such"], "/no/such: No such file or directory"),
            (["--markdown", "--into", "a-file"], "--into: expected one <!-- bench:begin -->"),
        ],
        "--block": [
            (["--block", "l4"], "^csgmv: error: --block: expected together with --into"),
            (["--markdown", "--into", "a-file", "--block", "l4"], "--into: expected one <!-- l4:begin -->"),
        ],
        "--json": [(["--json", "results"], "^csgmv: error: --json: expected a file, got the folder results")],
        "--peers": [(["--peers", "/no/such"], "/no/such"), (["--peers", "a-file"], "a-file: .*")],
        "--measured-on": [(["--measured-on", "a GPU"], "^csgmv: error: --measured-on: expected together with --peers")],
        "--plot": [(["--plot", "x.svg"], "^csgmv: error: --plot: expected together with --peers")],
        "--batches": [
            (["--batches", "8x8"], "^csgmv: error: --batches: expected together with --e2e and --model"),
            (
                ["--e2e", "--model", "qwen3-0.6b", "--batches", "0x8"],
                "--batches: expected ROWSxTOKENS.*'0x8'",
            ),
        ],
        "--layers": [
            *_number("--layers", "0"),
            (["--layers", "3"], "^csgmv: error: --layers: expected together with --e2e and --model"),
        ],
        **{name: _number(name, "0") for name in ("--tp", "--tokens", "--adapters", "--chunk-sizes")},
    },
    "report": {
        "--configs": [(["--configs", "/no/such"], _MISSING), (["--configs", "a-file"], "expected only .json files")],
        "--out": [(["--out", "a-file"], "^csgmv: error: --out: expected a folder, got a-file")],
        "--gpu": [(["--gpu", "nothing"], "--gpu: expected .*, got 'nothing'")],
        "--bandwidth": [(["--bandwidth", each], r"--bandwidth: expected TB/s, .*, got") for each in ("0", "nan", "x")],
        "--bench": [(["--bench", "/no/such"], "/no/such"), (["--bench", "a-file"], "a-file")],
        "--e2e": [(["--e2e", "/no/such"], "/no/such"), (["--e2e", "a-file"], "a-file")],
    },
    "show": {"--segments": _number("--segments", "0")},
    "explain": {
        "--input-dim": _number("--input-dim", "0", "-1"),
        "--slice-widths": [(["--slice-widths", "-1"], r"slice_widths: expected 1 non-negative widths.*, got \[-1\]")],
        "--slices": [
            (["--slices", "2"], "^csgmv: error: --slices: only for shrink"),
        ],
        "--rank": _number("--rank", "0", "257"),
        "--chunk-size": _number("--chunk-size", "0"),
        "--segments": _number("--segments", "0"),
        "--architecture": [
            (["--gpu", "new", "--architecture", each], "--architecture: expected X.Y, such as")
            for each in ("sm_90", "9", "")
        ],
        "--sm-count": _number("--sm-count", "-1"),
        "--triton": [(["--triton", each], "--triton: expected a version such as") for each in ("new", "", "3.²")],
    },
    "coverage": {
        **_layers(),
        "--chunk-sizes": _number("--chunk-sizes", "0"),
        "--gpu": [(["--gpu", "nothing"], "--gpu: expected one of the table's, .*; got nothing")],
        "--triton": [(["--triton", each], "--triton: expected a version such as") for each in ("new", "", "3.²")],
        "--max-loss": _number("--max-loss", "-1", "nan"),
        "--into": [
            (["--into", "README.md"], "^csgmv: error: --into: expected together with --markdown"),
            (["--markdown", "--into", "/no/such"], "/no/such: No such file or directory"),
        ],
    },
    "demo": {},
    "completion": {"shell": [(["nosh"], "argument shell: invalid choice: 'nosh'")]},
}
