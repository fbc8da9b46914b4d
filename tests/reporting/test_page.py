"""One file of HTML: nothing from outside, nothing from the results that is taken for HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from csgmv.reporting import page
from csgmv.reporting.canvas import Picture
from csgmv.reporting.elements import Card, Section, Table, Verdict

pytest.importorskip("jinja2")

HOSTILE = "\"'><script>alert(1)</script><img src=http://evil.test/x onerror=alert(2)>{{ 7 * 7 }}&amp;"
HARMLESS = "a" * len(HOSTILE)
SOURCE = page.Source(HOSTILE, "sha256:00", "sha256:11", "0.1")


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag with its attributes."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Text, unescaped."""
        self.text += data


def everywhere(text: str) -> page.Part:
    """A part that has the text in every place that there is."""
    section = Section(
        text,
        text,
        [Card(text, text, text)],
        [Verdict(True, text), Verdict(False, text)],
        [Picture("name.png", text, b"\x89PNG", (10, 20))],
        [Table(text, [text], [[text]]), Table(text, [text], [[text]], folded=True)],
    )
    return page.Part(text, [section])


def test_strings_stay_text_wherever_they_stand() -> None:
    """No tag and no attribute comes of them, and a reader sees them as they are."""
    hostile, harmless = (Parsed(page.render([everywhere(text)], SOURCE)) for text in (HOSTILE, HARMLESS))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attributes) for _, attributes in hostile.tags] == [sorted(names) for _, names in harmless.tags]
    assert hostile.text == harmless.text.replace(HARMLESS, HOSTILE)
    assert {attributes["alt"] for tag, attributes in hostile.tags if tag == "img"} == {HOSTILE}


def test_the_page_asks_for_nothing() -> None:
    """Pictures are in it, links stay on it, there is no script, and its policy forbids the rest."""
    tags = Parsed(page.render([everywhere("text")], SOURCE)).tags
    targets = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert targets
    assert all(target and target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tags}
    policy = next(attributes["content"] for tag, attributes in tags if tag == "meta" and "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_links_lead_to_the_sections() -> None:
    """Of their own chapter."""
    tags = Parsed(page.render([everywhere("one"), everywhere("two")], SOURCE)).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links == ["#s1-1", "#s2-1"]
    assert [f"#{attributes['id']}" for tag, attributes in tags if tag == "section"] == links


def test_numbers_stand_to_the_right_and_dimensions_do_not() -> None:
    """A whole column alike."""
    table = Table("", ["layer", "µs", "name"], [["1024 → 64", "3.25", "a"], ["64 → 1", "-", "b"]])
    html = page.render([page.Part("", [Section("", "", tables=[table])])], SOURCE)
    assert '<td>1024 → 64</td><td class="right">3.25</td><td>a</td>' in html


@pytest.mark.parametrize(("digest", "said"), [("sha256:11", "made from these."), ("sha256:00", "made from sha256:11.")])
def test_the_digests_are_compared(digest: str, said: str) -> None:
    """The results' with the installed table's."""
    assert said in Parsed(page.render([], SOURCE._replace(digest=digest))).text
