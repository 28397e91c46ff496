"""Paragraphs of the pages can be read: no more than a few figures stand in one.

Figures belong into tables and into the pages under benchmarks/. A figure is a number with a
decimal point, one in per cent, or an amount of time or memory; of "12, 23 and 10 %" each counts.
Not counted are code, tables, addresses, versions such as 0.19.1, and numbers of papers.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.hooks import DOCS, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
MOST = 3

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_UNIT = r"(?:%|(?:seconds?|minutes?|hours?|MB|GB|GiB|nats|points)\b)"
_MEASURED = re.compile(rf"{_NUMBER}(?:(?:, | and | or | to )?{_NUMBER})*[ -]?{_UNIT}")
_DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
_OTHER = re.compile(
    r"`[^`]*`|\]\([^)]*\)|https?://\S+|v?\d+\.\d+\.\d+|\b\d{4}\.\d{4,5}\b|<!--.*-->"
)
# A new paragraph without a blank line before it: an item of a list, or of a definition.
_ITEM = re.compile(r"(?:[-*:]|\d+\.) ")


def figures(text: str) -> list[str]:
    """The figures in a paragraph."""
    text = _OTHER.sub(" ", " ".join(text.split()))
    measured = [number for part in _MEASURED.findall(text) for number in re.findall(_NUMBER, part)]
    return measured + _DECIMAL.findall(_MEASURED.sub(" ", text))


def paragraphs(page: str) -> Iterator[str]:
    """The paragraphs and items of a page, without code and tables."""
    page = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    lines: list[str] = []
    for line in [*page.splitlines(), ""]:
        apart = not line.strip() or line.startswith(("|", "#"))
        if lines and (apart or _ITEM.match(line.lstrip())):
            yield "\n".join(lines)
            lines = []
        if not apart:
            lines.append(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_paragraph_has_more_than_three_figures(page: Path) -> None:
    crowded = {
        text: found for text in paragraphs(page.read_text()) if len(found := figures(text)) > MOST
    }
    assert not crowded, "move the figures to a table or to benchmarks/, and link to it"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12, 23 and 10 % lower, and 75 %", 4),
        ("a perplexity of 43.3 to 43.6 at 50 %", 3),
        ("70 to 85 minutes of two threads and 7.4 GiB", 3),
        ("Python 3.11, `--sparsity 0.5`, [a paper](https://arxiv.org/abs/2309.17453), v0.19.1", 1),
        ("four passes over 192 windows of 256 tokens", 0),
    ],
)
def test_what_counts_as_a_figure(text: str, count: int) -> None:
    assert len(figures(text)) == count


def test_items_and_text_around_tables_are_paragraphs_of_their_own() -> None:
    page = "a\nb\n- c\n  d\n1. e\n\n| f |\n|---|\n\ng\n```text\nh\n```\n"
    assert list(paragraphs(page)) == ["a\nb", "- c\n  d", "1. e", "g"]
