"""The page in a real browser: its pictures load, its figures stand there, and nothing in the results runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from csgmv import cli
from fabricated import EXPAND, document, put, record, record_of

pytest.importorskip("jinja2")
image = pytest.importorskip("matplotlib.image")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --allow-file-access-from-files"
)
HOSTILE = "<img src=x onerror=\"parent.document.title='owned'\"><script>parent.document.title='owned'</script>"
WIDTHS = (1200, 380)
# What a page that holds the report in frames sees of it, once everything in it has loaded.
LOOK = """<!DOCTYPE html><title>looking</title><pre></pre><script>
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  return {
    images: [...page.images].map(image => [image.complete, image.naturalWidth, image.naturalHeight, image.width]),
    cards: Object.fromEntries([...page.querySelectorAll(".card")].map(
      card => [card.childNodes[1].textContent, card.querySelector("b").textContent])),
    headings: [...page.querySelectorAll("h2")].map(heading => heading.textContent),
    text: page.body.textContent,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    overflow: root.scrollWidth - root.clientWidth,
  };
}
window.onload = () => {
  const seen = [...document.querySelectorAll("iframe")].map(look);
  document.querySelector("pre").textContent = JSON.stringify({title: document.title, seen});
};
</script>"""


def chromium(folder: Path, address: Path, *more: str) -> str:
    """What the browser prints, with a profile of its own."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", *more, address.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A page on a few keys, among them strings that want to be HTML."""
    made = document(record(30.0, 20.0, failed={HOSTILE: 2}), record(30.0, 10.0, chunk_size=32))
    made["runs"][0] |= {"driver": HOSTILE, "l2": HOSTILE}
    put(tmp_path / "configs", "one.json", made)
    put(tmp_path / "configs", "two.json", document(record_of("expand", 5.0, 16, 8, 8), **EXPAND))
    assert cli.main(["report", "--configs", str(tmp_path / "configs"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out" / "report.html"


def test_pictures_and_figures_are_seen(report: Path, tmp_path: Path) -> None:
    """At the size that they are drawn in, on a wide screen and on a narrow one, which needs no scrolling sideways."""
    frames = "".join(f'<iframe src="{report.as_uri()}" width={width} height=900></iframe>' for width in WIDTHS)
    looking = tmp_path / "looking.html"
    looking.write_text(LOOK + frames, encoding="utf-8")
    dom = chromium(tmp_path, looking, "--dump-dom")
    found = re.search(r"<pre>(.+?)</pre>", dom, re.DOTALL)
    assert found, dom[:2000]
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert told["title"] == "looking"  # no string of the results has run
    pngs = list(report.parent.glob("*.png"))
    for seen, width in zip(told["seen"], WIDTHS):
        assert len(seen["images"]) == len(pngs) > 0
        assert all(loaded and across > 1000 and down > 100 for loaded, across, down, _ in seen["images"])
        assert all(shown >= 640 for *_, shown in seen["images"])  # narrower, their letters could not be read
        assert (seen["cards"]["keys"], seen["cards"]["rows baked"]) == ("3", "3")
        assert (seen["cards"]["median speed-up"], seen["cards"]["least speed-up"]) == ("2.25×", "1.50×")
        assert seen["headings"][:3] == ["At a glance", "Can it be trusted?", "Speed-up over the default"]
        assert seen["text"].count(HOSTILE) == 3
        assert [name for name in seen["requests"] if not name.startswith("data:")] == []
        assert seen["overflow"] <= 0, width


def test_a_screenshot_shows_the_page(report: Path, tmp_path: Path) -> None:
    """The cards' edge and the dots' colours are among its pixels, and most of it is no blank."""
    shot = tmp_path / "shot.png"
    chromium(tmp_path, report, f"--screenshot={shot}", "--window-size=1200,1400")
    pixels = (image.imread(shot)[:, :, :3] * 255).round().astype(int).reshape(-1, 3)
    assert len(pixels) == 1200 * 1400
    accent, line = (31, 111, 139), (192, 57, 43)
    for colour in (accent, line):
        assert (abs(pixels - colour).max(axis=1) <= 2).sum() > 300
    assert len({tuple(pixel) for pixel in pixels[::7].tolist()}) > 100
