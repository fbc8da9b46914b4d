"""Print the script by which a shell completes csgmv's commands, options and file names.

The script is made once and asks nothing of Python while one types. Make it again after an update of csgmv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from csgmv import cli

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = {
    "csgmv completion bash > ~/.local/share/bash-completion/completions/csgmv": "For bash, with its package "
    "bash-completion; without that, source the file in ~/.bashrc.",
    "csgmv completion zsh > ~/.zfunc/_csgmv": "For zsh, where ~/.zshrc has `fpath+=~/.zfunc` before `compinit`.",
    "csgmv completion fish > ~/.config/fish/completions/csgmv.fish": "For fish.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `csgmv completion`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def script(shell: str) -> str:
    """The script for a shell, one of SHELLS.

    Raises:
        ValueError: shtab, the extra `completion`, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ValueError("completion: needs shtab: pip install 'csgmv[completion]'") from None
    top = cli.parser()
    for _, subcommand in cli.subcommands(top):
        for action in subcommand._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    made: str = shtab.complete(top, shell)
    return made


def run(args: argparse.Namespace) -> int:
    """Print the script; exit status 0."""
    print(script(args.shell))
    return 0
