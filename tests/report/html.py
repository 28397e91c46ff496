"""Reading a page as strictly as a test can: every element closed, nothing fetched."""

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
    def figures(self) -> list[ElementTree.Element]:
        """Its figures, which are well-formed XML each."""
        return [
            ElementTree.fromstring(svg)
            for svg in re.findall(r"<svg.*?</svg>", self.html, re.DOTALL)
        ]

    @property
    def commands(self) -> list[str]:
        """The text of its <pre> elements, as a reader copies it."""
        pieces = re.findall(r"<pre>(.*?)</pre>", self.html, re.DOTALL)
        return [unescape(piece) for piece in pieces]


def check_self_contained(page: Page) -> None:
    """Nothing is fetched, nothing runs, nothing is linked but an empty icon."""
    for tag, attributes in page.elements:
        if (tag, attributes) == ("link", {"rel": "icon", "href": "data:,"}):
            continue
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "image"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"src", "xlink:href"}, (tag, name)
            # A mark of a figure is drawn once and used by its name within the page.
            assert name != "href" or (tag == "use" and (value or "").startswith("#")), (tag, value)
            if value and "://" in value:
                assert name == "xmlns", (tag, name, value)
    assert "@import" not in page.html
    assert "url(" not in page.html
