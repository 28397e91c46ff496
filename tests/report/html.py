"""Reading a page as strictly as a test can: every element closed, nothing fetched."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """A page's elements and texts. Raises AssertionError where one is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text of the page, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def figures(self) -> dict[str, ElementTree.Element]:
        """Its figures by their text alternatives, which are well-formed XML each."""
        return {
            str(attributes["alt"]): read_image(str(attributes["src"]))
            for tag, attributes in self.elements
            if tag == "img"
        }

    @property
    def leads(self) -> list[str]:
        """The sentences at its top, in which code is between backticks."""
        sentences = re.findall(r'<p class="lead">(.*?)</p>', self.html, re.DOTALL)
        marked = (re.sub("</?code>", "`", sentence) for sentence in sentences)
        return [" ".join(unescape(sentence).split()) for sentence in marked]

    @property
    def commands(self) -> list[str]:
        """Its commands, as a reader copies them."""
        before = self.html.partition("<h2>Provenance</h2>")[0]
        pieces = re.findall(r"<pre>(.*?)</pre>", before, re.DOTALL)
        return [unescape(piece) for piece in pieces]


def read_image(source: str) -> ElementTree.Element:
    """The SVG in the source of an image, which is of no other kind."""
    kind, _, data = source.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(data))


def check_self_contained(page: Page) -> None:
    """Nothing is fetched, nothing runs, images hold their data, the only link is an empty icon."""
    for tag, attributes in page.elements:
        if (tag, attributes) == ("link", {"rel": "icon", "href": "data:,"}):
            continue
        assert tag not in {"script", "link", "iframe", "object", "embed", "image", "svg"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"href", "xlink:href"}, (tag, name)
            if name == "src":
                assert tag == "img"
                read_image(value or "")
            if value and "://" in value:
                assert name == "xmlns", (tag, name, value)
    assert "@import" not in page.html
    assert "url(" not in page.html
