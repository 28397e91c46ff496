"""`report` as a Python function: where the page goes, and what is refused."""

import os
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.report import report
from tests.report.conftest import write_search


def test_the_page_lies_in_the_first_folder(run: Path, pruned: Path, table: Path) -> None:
    assert report([table, pruned, run]) == pruned / "report.html"
    assert report(run) == run / "report.html"
    assert report(str(table)) == table.parent / "report.html"


def test_a_page_is_written_again_alike(run: Path, tmp_path: Path) -> None:
    first = report(run, tmp_path / "new" / "page.html")
    assert first.read_bytes() == report([run, run], tmp_path / "other.html").read_bytes()
    before = first.read_bytes()
    report(run, first)
    assert first.read_bytes() == before


def test_a_name_that_has_no_encoding(tmp_path: Path) -> None:
    run = write_search(tmp_path / os.fsdecode(b"run\xff"))
    report(run, tmp_path / "page.html").read_bytes().decode()


def test_nothing_to_report_on() -> None:
    with pytest.raises(PrunerZeroError, match="at least one"):
        report([])


def test_a_page_in_the_place_of_a_folder_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PrunerZeroError, match="is a folder: name a file"):
        report(run, tmp_path)
