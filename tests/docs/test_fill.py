"""The generated parts of the pages are those that the program and its result files make."""

import json
import re
from pathlib import Path

import pytest

from tests.docs.hooks import ROOT, load_hook

fill = load_hook("fill")

RESULTS = ROOT / "benchmarks" / "results"


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


def test_a_mark_that_is_wrong_is_refused() -> None:
    with pytest.raises(KeyError):
        fill.fill("<!-- fill unknown -->\n<!-- end -->\n")


def test_every_row_of_readme_is_a_measured_cell() -> None:
    measured_rows = set()
    for file in (RESULTS / "proof").glob("*/*.json"):
        texts = json.loads(file.read_text())["texts"]
        values = (texts[name]["perplexity"] for name in ("wikitext", "pydoc", "news"))
        measured_rows.add(tuple(f"{value:.1f}" for value in values))
    shown = re.findall(
        r"^\|.*\| \**([\d.]+)\** \| \**([\d.]+)\** \| \**([\d.]+)\** \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(shown) == 9
    assert set(shown) <= measured_rows


def test_result_files_name_no_path_of_the_machine() -> None:
    for file in (path for path in RESULTS.iterdir() if path.is_file()):
        assert not re.findall(r'"(?:/|[A-Z]:\\)[^"\s]*/[^"\s]*"', file.read_text()), file
