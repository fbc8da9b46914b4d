"""The README's promises: its code runs, its commands parse, CI and bench find their blocks."""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex

import pytest
import torch

from csgmv import bench, cli, coverage, peer_report, readme_block
from csgmv.e2e import options as e2e_options
from csgmv.tuning import spot_check

README = pathlib.Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_the_two_commands_stand_under_set_up():
    """.ci/run takes them from there: a newcomer types what CI runs."""
    section = TEXT.split("\n## Set up\n")[1].split("\n## ")[0]
    assert section.count("```bash\n") == len(blocks("bash")) == 2


def test_the_example_runs():
    """As printed on a GPU; elsewhere on the CPU, in fp16. The third sequence has no adapter and keeps its bits."""
    code, _ = blocks("python")
    if not torch.cuda.is_available():
        code = code.replace('"cuda"', '"cpu"').replace("bfloat16", "float16")
    head, call = code.rsplit("\nadd_lora", 1)
    scope: dict[str, torch.Tensor] = {}
    exec(head, scope)
    before = scope["qkv"].clone()
    exec("add_lora" + call, scope)
    changed = (scope["qkv"] != before).any(dim=1).tolist()
    assert changed == [True] * 5 + [False] * 2


@pytest.mark.parametrize("line", re.findall(r"^\$ (csgmv .*?)(?:\s+#.*)?$|`(csgmv \w+ --\w.*?)`", TEXT, re.MULTILINE))
def test_commands_parse(line):
    """Every csgmv command of the README has options that exist."""
    argv = shlex.split("".join(line).replace("\n", " "))[1:]
    if argv[-1] == "--help":
        return
    assert isinstance(cli.parser().parse_args(argv), argparse.Namespace)


def test_commands_find_their_blocks():
    """`--into README.md` has a place to write to, for each kind of figures."""
    for name in (bench.MARKER, peer_report.MARKER, spot_check.MARKER, e2e_options.MARKER):
        assert "| new |" in readme_block.between_markers(TEXT, "| new |", name)
    results = (README.parent / "configs" / "README.md").read_text(encoding="utf-8")
    assert "| new |" in readme_block.between_markers(results, "| new |", coverage.MARKER)


def test_every_module_is_on_the_map():
    """A module that is added is put where its data flows."""
    package = pathlib.Path(cli.__file__).parent
    for module in (*package.glob("*.py"), *(folder for folder in package.iterdir() if folder.is_dir())):
        if not module.name.startswith("_"):
            assert module.name in TEXT, module.name


def between(start: str, end: str) -> str:
    return TEXT.split(start, 1)[1].split(end, 1)[0]


def test_what_the_text_says_of_figures_the_tables_say():
    """On the first screen and under Limits: of mixed batches, decoding, a whole model, and what is borrowed."""
    first, h100 = (
        between("# csgmv\n", "\n## ").replace("\n", " "),
        between("<!-- peers-h100:begin -->", "<!-- peers-h100:end -->"),
    )
    ahead = [
        round(float(re.search(r"best peer ÷ csgmv: geometric mean ([\d.]+)", part)[1]))
        for part in (h100.split("**Mixed")[1], h100.split("**Decode")[1])
    ]
    assert "about a quarter of the time of the faster of sglang's and vLLM's for mixed batches" in first
    assert "about half of it for decoding" in first
    assert ahead == [4, 2]
    shares = re.findall(r"^\| \d+ × \d+ \| [\d.]+ \| [\d.]+ \(([\d.]+)×\)", h100.split("**End to end")[1], re.MULTILINE)
    eager = between("<!-- e2e:begin -->", "**What the table is worth**")
    shares += re.findall(r"^\| \d+ × \d+ \| [\d.]+ \| [\d.]+× \| [\d.]+ \(([\d.]+)×\)", eager, re.MULTILINE)
    assert len(shares) == 6
    percents = re.search(r"takes (\d+) to (\d+) % longer with eight adapters", first)
    slower = [round(100 * (float(share) - 1)) for share in shares]
    assert [min(slower), max(slower)] == [int(percents[1]), int(percents[2])]
    keys, worst = re.search(r"\| all \| (\d+) \| .* \| ([\d.]+) % \| \d+ \|", TEXT).groups()
    borrowed = re.search(r"borrowed lost up to (\d+) % at one of (\d+) keys", TEXT)
    assert (borrowed[1], borrowed[2]) == (str(round(float(worst))), keys)


def test_how_well_two_runs_of_the_tuner_agree_is_what_agree_said():
    """Its output is kept beside other measurements."""
    said = (README.parent / "tests" / "measured" / "h100-agree.txt").read_text(encoding="utf-8")
    percent = re.search(r"above agreed within 2 % of time at ([\d.]+) % of the keys", TEXT.replace("\n", " "))
    assert f"({percent[1]}%) agree within 2.0%" in said
