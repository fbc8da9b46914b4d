"""What `--help` prints: every command explains itself, in any terminal, and its examples run."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from csgmv import cli, help_page


def shown(name: str, monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    """The help of a command in a terminal of so many columns; "" is csgmv itself."""
    monkeypatch.setenv("COLUMNS", str(columns))
    top = cli.parser()
    parsers: dict[str, argparse.ArgumentParser] = dict(cli.subcommands(top))
    return {"": top, **parsers}[name].format_help()


@pytest.fixture
def parsers() -> dict[str, argparse.ArgumentParser]:
    return dict(cli.subcommands(cli.parser()))


def example_lines(text: str) -> list[str]:
    """Command lines under 'examples:', joined again where they were folded."""
    examples = text.split("\nexamples:\n")[1].partition("\n\n")[0].replace(" \\\n", " ")
    return re.findall(r"^  \$ (.*)$", examples, re.MULTILINE)


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_a_page_says_what_how_and_with_which_outcome(name, monkeypatch):
    """A sentence, an example of this very command, exit statuses; and by itself: no 'see the README'."""
    text = shown(name, monkeypatch, 100)
    _, description = text.split("\n\n", 2)[:2]
    assert re.match(r"[A-Z].*[.:,]", description, re.DOTALL)
    commands = example_lines(text)
    assert commands
    assert all(command.startswith(f"csgmv {name}".rstrip()) for command in commands)
    assert re.search(r"^exit status:\n +0  \w", text, re.MULTILINE)
    assert "README" not in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_examples_are_command_lines_that_parse(name, monkeypatch):
    """With the command's own options, up to what the shell would take for itself; folded ones when pasted again."""
    for line in example_lines(shown(name, monkeypatch, 60)):
        argv = [word for word in shlex.split(line.split(" && ")[0].split(" > ")[0]) if word != "…"]
        assert isinstance(cli.parser().parse_args(argv[1:]), argparse.Namespace)


@pytest.mark.parametrize("columns", [60, 100, 300])
def test_pages_fit_the_terminal(columns, monkeypatch):
    """Whatever its width; a wider one than can be read with ease is not used up."""
    for name in ("", *cli.COMMANDS):
        lines = shown(name, monkeypatch, columns).splitlines()
        assert [line for line in lines if len(line) > min(columns, 100)] == [], name


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_says_what_it_is(name, parsers):
    """A text of its own, with the default wherever there is one, and a metavar or choices for every value."""
    formatter = help_page.Formatter("csgmv")
    for action in parsers[name]._actions:
        text = formatter._expand_help(action)
        assert len(text) > 3, action
        if action.default not in (None, False, 0, (), argparse.SUPPRESS) and action.default != []:
            assert "default" in text, action
        if action.nargs != 0:
            assert action.metavar or action.choices, action


def test_defaults_are_told_once():
    """Lists as they are typed; nothing of nothing, nor where the text tells it in its own words."""
    parser = argparse.ArgumentParser(formatter_class=help_page.Formatter)
    parser.add_argument("--many", nargs="+", default=(16, 32), help="sizes")
    parser.add_argument("--share", default="5%", help="of it")
    parser.add_argument("--own", default="x", help="a letter (default: %(default)s)")
    parser.add_argument("--none", help="nothing")
    parser.add_argument("--flag", action="store_true", help="a flag")
    text = parser.format_help()
    for wanted in (
        "sizes (default: 16 32)\n",
        "of it (default: 5%)\n",
        "a letter (default: x)\n",
        "nothing\n",
        "flag\n",
    ):
        assert wanted in text


def test_folded_commands_can_be_pasted():
    """A backslash ends each line but the last, and none breaks what is quoted."""
    command = "csgmv explain --gpu 'a name of more than one word' --input-dim 1024 --slice-widths 2048"
    parser = argparse.ArgumentParser(formatter_class=lambda prog: help_page.Formatter(prog, width=40))
    parser.epilog = help_page.epilog({command: "What it does, in more words than one line has."}, {})
    typed = parser.format_help().split("  $ ")[1].split("\n      What")[0]
    assert typed.count(" \\\n") == 3
    assert shlex.split(typed.replace("\\\n", "")) == shlex.split(command)


def test_statuses_replace_the_usual_ones():
    """In order, and hanging."""
    text = help_page.epilog({}, {3: "some borrow", 0: "every key is tuned"})
    assert re.findall(r"^ +(\d+)  (.*)$", text, re.MULTILINE) == [
        ("0", "every key is tuned"),
        ("2", help_page.STATUSES[2]),
        ("3", "some borrow"),
    ]
