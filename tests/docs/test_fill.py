"""The generated parts of the pages are those that the program and its result files make."""

from pathlib import Path

import pytest

from tests.docs.hooks import ROOT, load_hook

fill = load_hook("fill")


@pytest.mark.parametrize("page", fill.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_committed_parts_of_a_page_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert fill.fill(text) == text, "run python docs/hooks/fill.py"


def test_a_part_is_made_anew_and_the_rest_of_the_page_stays() -> None:
    page = "a\n<!-- fill terminals -->\nold\n<!-- end -->\nb\n<!-- end -->\n"
    filled = fill.fill(page)
    assert filled.startswith("a\n<!-- fill terminals -->\n\n| terminal |")
    assert filled.endswith("|\n\n<!-- end -->\nb\n<!-- end -->\n")
    assert fill.fill(filled) == filled


@pytest.mark.parametrize(
    "mark", ["fill unknown", "fill include: README.md", "fill table: README.md#none"]
)
def test_a_mark_that_is_wrong_is_refused(mark: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        fill.fill(f"<!-- {mark} -->\n<!-- end -->\n")
