"""`pruner-zero report` writes one page from the results of the other verbs."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.report.conftest import write_comparison, write_prune, write_search


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    """A search, a prune and a comparison."""
    table = write_comparison(tmp_path / "table.json")
    return [write_search(tmp_path / "run"), write_prune(tmp_path / "pruned"), table]


def test_a_page_in_the_first_folder(cli: Cli, results: list[Path]) -> None:
    done = cli("report", *results)
    assert (done.code, done.out, done.err) == (0, f"{results[0] / 'report.html'}\n", "")
    assert (results[0] / "report.html").read_text().rstrip().endswith("</html>")


def test_a_page_at_a_chosen_path(cli: Cli, results: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    assert cli("report", results[2], "-o", page).out == f"{page}\n"
    assert page.is_file()


def test_a_path_without_a_result_is_refused_in_one_line(
    cli: Cli, results: list[Path], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    error = cli("report", results[0], missing).error
    assert error == f"{missing} does not exist: give a folder or file of results"
    assert not (results[0] / "report.html").exists()
    assert "give the folder that search, prune or recover wrote" in cli("report", tmp_path).error


def test_a_page_that_cannot_be_written_is_refused_in_one_line(
    cli: Cli, results: list[Path], tmp_path: Path
) -> None:
    assert "name a file" in cli("report", results[0], "-o", tmp_path).error
    assert "not a folder" in cli("report", results[0], "-o", results[2] / "page.html").error


def test_no_result_at_all(cli: Cli) -> None:
    assert "Missing argument 'RUN...'" in cli("report").error
