"""Tables of the documentation show the values of the result files, and no value without a file."""

import json
import re
from pathlib import Path

import pytest

from tests.docs.hooks import ROOT, load_hook

fill = load_hook("fill")

RESULTS = ROOT / "benchmarks" / "results"


def test_a_table_is_taken_from_below_its_heading(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n| a |\n|---|\n\n## B 50 %\n\ntext\n\n| b |\n|---|\n| 1 |\nend\n")
    assert fill.table_of(page) == "| a |\n|---|"
    assert fill.table_of(page, "B 50 %") == "| b |\n|---|\n| 1 |"
    with pytest.raises(ValueError, match="no heading 'C'"):
        fill.table_of(page, "C")


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
