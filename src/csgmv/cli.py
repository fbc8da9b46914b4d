"""The `csgmv` command: finds the chosen subcommand's module and runs it.

A subcommand's module has `add_arguments(parser)`, `run(args) -> exit status` and what `help_page` asks for, and is
imported only when chosen, so that `csgmv --help` need not wait for torch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from csgmv import help_page
from csgmv._version import __version__

USER_ERROR = 2  # argparse's own exit status for a bad command line
INTERRUPTED = 130
BROKEN_PIPE = 141
EXAMPLES = {
    "csgmv demo": "See the kernels run and check themselves, with or without a GPU.",
    "csgmv coverage --model llama-3.1-8b": "Which of a model's launches have configs of their own in this wheel.",
    "csgmv tune --model llama-3.1-8b --rank 16": "Find the others on this GPU.",
    "csgmv COMMAND --help": "What a command does, its options, examples and exit statuses.",
}
STATUSES = {INTERRUPTED: "interrupted", BROKEN_PIPE: "whoever read the output went away"}
# What csgmv itself needs; extras name themselves where they are missing.
_REQUIREMENTS = ("torch", "triton")


class _Command(NamedTuple):
    module: str
    help: str
    interpreted: bool = False  # works without a GPU, if Triton interprets the kernels


COMMANDS = {
    "tune": _Command("csgmv.tuning.command", "find the fastest configs on this GPU; write them as raw results"),
    "merge": _Command("csgmv.merge", "put several people's raw results into one folder, the better record of each key"),
    "agree": _Command("csgmv.tuning.agreement", "time the winners of two tuning runs side by side on this GPU"),
    "cross": _Command("csgmv.tuning.cross", "time at every tuned key the rows that other keys would lend it"),
    "spot-check": _Command(
        "csgmv.tuning.spot_check", "judge the table by keys of untuned models, each searched afresh on this GPU"
    ),
    "warmup": _Command(
        "csgmv.warmup_command", "compile every kernel that a model's layers can need, before the first launch"
    ),
    "bench": _Command("csgmv.bench", "time the default config against the table's, and both against the memory"),
    "report": _Command("csgmv.reporting.command", "write an HTML page by which to judge raw results"),
    "show": _Command("csgmv.show", "print the table of tuned configs"),
    "explain": _Command("csgmv.lookup", "say which config a launch gets, and why", interpreted=True),
    "coverage": _Command(
        "csgmv.coverage", "say which of a model's launches have tuned configs, and what the rest lose"
    ),
    "demo": _Command("csgmv.demo", "run layers with many adapters and check them, GPU or not", interpreted=True),
    "completion": _Command("csgmv.completion", "print what makes a shell complete this command line"),
}


class _CommandParser(argparse.ArgumentParser):
    """A subcommand's parser, which asks the subcommand's module for its arguments when it is first used."""

    command: _Command | None = None

    def load(self) -> None:
        """Have description, arguments and examples of the subcommand's module, which this imports."""
        command, self.command = self.command, None
        if command is None:
            return
        if command.interpreted:
            interpret_without_gpu()
        module = importlib.import_module(command.module)
        self.description = inspect.getdoc(module)
        self.epilog = help_page.epilog(getattr(module, "EXAMPLES", {}), getattr(module, "STATUSES", {}))
        module.add_arguments(self)
        self.set_defaults(run=module.run)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        self.load()
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # said here, with this command's usage, not by the parser of all commands
            near = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            self.error(f"unknown: {' '.join(unknown)}{f' (did you mean {near[0]}?)' if near else ''}")
        return found, unknown


def interpret_without_gpu() -> None:
    """Set TRITON_INTERPRET where no GPU is there; triton reads it when it is imported, so this comes first."""
    if "TRITON_INTERPRET" in os.environ:
        return
    import torch

    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="csgmv",
        description="Multi-LoRA kernels in Triton, with configs tuned offline and built into the package.",
        epilog=help_page.epilog(EXAMPLES, STATUSES),
        formatter_class=help_page.Formatter,
    )
    top.add_argument("--version", action="version", version=f"csgmv {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser)
    for name, command in COMMANDS.items():
        subcommand = commands.add_parser(name, help=command.help, formatter_class=help_page.Formatter)
        subcommand.command = command
    return top


def subcommands(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each subcommand of a `parser()` with its own parser, whose module is imported for it."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subcommand in action.choices.items():
                assert isinstance(subcommand, _CommandParser)
                subcommand.load()
                yield name, subcommand


def _ours(error: BaseException) -> bool:
    """Whether csgmv itself raised the error: what comes out of torch or triton is a fault to see whole."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "csgmv"


def _printable() -> None:
    """Let arrows and micro signs become question marks where standard output or error cannot encode them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _missing(error: ImportError) -> str:
    """What to do about a module that is not there, where it is one that every installation should have."""
    if error.name in _REQUIREMENTS:
        return f"this command needs {error.name}, which is not installed: pip install {error.name}"
    return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0 all well, 1 the command found something wrong, 2 bad input."""
    _printable()
    try:
        argv = sys.argv[1:] if argv is None else argv
        if not argv:
            parser().print_help(sys.stderr)
            return USER_ERROR
        if not argv[0].startswith("-") and argv[0] not in COMMANDS:
            near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "`csgmv --help` lists them"
            raise ValueError(f"{argv[0]}: expected a command, got none of this name; {hint}")
        args = parser().parse_args(argv, argparse.Namespace(command_line=shlex.join(["csgmv", *argv])))
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing more to say, and Python must not try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("csgmv: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, ImportError, OSError) as error:
        if not isinstance(error, OSError) and not _ours(error):
            raise
        told = str(error)
        if isinstance(error, ImportError):
            told = _missing(error)
        elif isinstance(error, OSError) and error.filename is not None and error.strerror:
            told = f"{os.fsdecode(error.filename)}: {error.strerror}"
        print(f"csgmv: error: {told}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
