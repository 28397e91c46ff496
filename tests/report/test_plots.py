"""Plots for papers: in every format, the same file for the same run."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.report.plots import draw_curve, draw_front, write_plots
from pruner_zero.report.read import SearchRun, read_result
from tests.report.conftest import write_search

BEGINS = {".pdf": b"%PDF", ".svg": b"<?xml", ".png": b"\x89PNG"}


@pytest.fixture
def search(run: Path) -> SearchRun:
    found = read_result(run)
    assert isinstance(found, SearchRun)
    return found


def test_both_plots_in_all_formats(search: SearchRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = write_plots([search], tmp_path / "plots")
    assert [file.name for file in files] == [
        f"{name}{suffix}" for name in ("front", "curve") for suffix in (".pdf", ".svg", ".png")
    ]
    assert sorted(files) == sorted((tmp_path / "plots").iterdir())
    for file in files:
        assert file.read_bytes().startswith(BEGINS[file.suffix])
    ElementTree.parse(tmp_path / "plots" / "front.svg")
    again = write_plots([search], tmp_path / "again")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]


def test_several_searches_are_numbered(search: SearchRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = {file.stem for file in write_plots([search, search], tmp_path)}
    assert names == {"front-1", "front-2", "curve-1", "curve-2"}


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    found = read_result(write_search(tmp_path / "run", judged=[]))
    assert isinstance(found, SearchRun)
    assert write_plots([found], tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


def test_an_unknown_format_is_one_line(search: SearchRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for draw in (draw_front, draw_curve):
        with pytest.raises(PrunerZeroError, match=r"end it in \.pdf, \.svg, \.png"):
            draw(search, tmp_path / "front.bmp")


def test_without_matplotlib_the_extra_is_named(
    search: SearchRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PrunerZeroError, match=r"pip install 'pruner-zero\[plots\]'"):
        draw_front(search, tmp_path / "front.pdf")
