"""Figures of a search and of zeros: their contents, and how a page includes them."""

import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from pruner_zero.evolution import Study
from pruner_zero.pruning.matrix import MatrixRecord
from pruner_zero.report import figures
from tests.report.conftest import JUDGED, Judged, write_search
from tests.report.html import SVG

Points = list[tuple[float, float]]


def study(folder: Path, judged: Sequence[Judged] = JUDGED, batch: int = 2) -> Study:
    return Study.open(write_search(folder, judged, batch))


def lines(figure: Figure | None) -> list[Points]:
    """The points of every line of a figure."""
    assert figure is not None
    (axes,) = figure.axes
    return [
        [(float(x), float(y)) for x, y in np.column_stack(line.get_data())]
        for line in axes.get_lines()
    ]


def words(svg: ElementTree.Element) -> set[str | None]:
    return {text.text for text in svg.iter(f"{SVG}text")}


def tooltips(svg: ElementTree.Element) -> list[str | None]:
    return [title.text for title in svg.iter(f"{SVG}title")]


def drawn(figure: Figure | None, label: str = "a figure") -> ElementTree.Element:
    assert figure is not None
    return ElementTree.fromstring(figures.to_svg(figure, label))


def test_the_front_is_a_line_through_its_candidates(tmp_path: Path) -> None:
    figure = figures.front(study(tmp_path))
    front, *marks = lines(figure)
    assert front == [(1, 6.0), (4, 4.0), (9, 3.8)]
    assert marks == [[point] for point in front]
    svg = drawn(figure)
    assert {"best", "knee", "complexity", "loss on the search text, nats a token"} <= words(svg)
    assert tooltips(svg) == [
        "W @row: complexity 1, loss 6.0000",
        "W * X @row: complexity 4, loss 4.0000",
        "W * G * X @global: complexity 9, loss 3.8000",
    ]


def test_many_candidates_are_thinned_and_the_worst_left_out(tmp_path: Path) -> None:
    judged: list[Judged] = [("W", "row", {"all": 5.0}), ("W * G * X", "row", {"all": 3.0})]
    judged += [("W * G * X", "row", {"all": 4.0 + number / 2000}) for number in range(2000)]
    judged += [("W * G", "row", {"all": 50.0})] * 100
    dots = figures.dots(study(tmp_path, judged))
    assert figures.MOST_DOTS / 2 < len(dots) <= figures.MOST_DOTS
    values = [record.evaluation.value for record in dots]
    assert values == sorted(values)
    assert values[0] == 4.0
    assert values[-1] == pytest.approx(5.0, abs=0.01)


def test_the_best_so_far_by_evaluations(tmp_path: Path) -> None:
    steps, marks = lines(figures.best_by_evaluations(study(tmp_path)))
    assert steps == [(1, 6.0), (2, 4.0), (4, 3.8), (5, 3.8)]
    assert marks == steps[:-1]


def test_the_best_so_far_by_time(tmp_path: Path) -> None:
    figure = figures.best_by_time(study(tmp_path))
    assert lines(figure)[0] == [(10 / 60, 4.0), (20 / 60, 3.8), (30 / 60, 3.8)]
    assert "wall time, minutes" in words(drawn(figure))


def test_nothing_is_drawn_of_a_search_without_a_metric_that_works(tmp_path: Path) -> None:
    search = study(tmp_path, [("W", "row", {}), ("X * W", "row", {})])
    assert figures.front(search) is None
    assert figures.best_by_time(search) is figures.best_by_evaluations(search) is None


def records(blocks: int, up: int = 8) -> list[MatrixRecord]:
    return [
        MatrixRecord(f"layers.{block}.{kind}", block, (4, 8), zeros)
        for block in range(blocks)
        for kind, zeros in (("q", 16), ("up", up))
    ]


def test_zeros_are_a_cell_for_each_kind_and_block_and_over_all() -> None:
    figure = figures.sparsity(records(2))
    svg = drawn(figure)
    assert tooltips(svg) == [
        *("q, 0: 50.0 %", "q, all: 50.0 %", "all, 0: 37.5 %", "all, all: 37.5 %"),
        *("up, 0: 25.0 %", "up, all: 25.0 %", "q, 1: 50.0 %", "all, 1: 37.5 %", "up, 1: 25.0 %"),
    ]
    assert {"q", "up", "all", "0", "1", "50.0", "25.0", "37.5"} <= words(svg)
    strength = {patch.get_gid(): patch.get_alpha() or 0 for patch in figure.axes[0].patches}
    assert (
        strength["tooltip: up, 0: 25.0 %"]
        < strength["tooltip: all, 0: 37.5 %"]
        < strength["tooltip: q, 0: 50.0 %"]
    )


def test_cells_of_many_blocks_are_narrow_and_without_numbers() -> None:
    svg = drawn(figures.sparsity(records(80)))
    assert not {"50.0", "25.0", "37.5"} & words(svg)
    assert {"0", "all"} <= words(svg)
    assert float(svg.get("width", 0)) < 1300


def test_names_of_matrices_are_words_and_no_formulas() -> None:
    with warnings.catch_warnings(action="error"):
        svg = drawn(figures.sparsity([MatrixRecord("层.$x_{$", 0, (4, 8), 16)]))
    assert "层.$x_{$" in words(svg)


def test_equal_shares_are_one_shade() -> None:
    figure = figures.sparsity(records(2, up=16))
    assert len({patch.get_alpha() for patch in figure.axes[0].patches}) == 1


def test_a_figure_of_a_page_says_what_it_shows_and_has_the_colours_of_the_page(
    tmp_path: Path,
) -> None:
    figure = figures.front(study(tmp_path))
    svg = drawn(figure, "a <figure>")
    assert (svg.get("role"), svg.get("aria-label")) == ("img", "a <figure>")
    assert figure is not None
    text = figures.to_svg(figure, "a <figure>")
    assert "var(--accent)" in text
    assert "#0b5cad" not in text
    assert "url(" not in text


def test_the_same_figure_is_the_same_text_and_names_differ_between_figures(run: Path) -> None:
    def text(label: str) -> str:
        figure = figures.front(Study.open(run))
        assert figure is not None
        return figures.to_svg(figure, label)

    def names(svg: str) -> set[str]:
        return {element.get("id", "") for element in ElementTree.fromstring(svg).iter()} - {""}

    assert text("a") == text("a")
    assert names(text("a"))
    assert not names(text("a")) & names(text("b"))


@pytest.mark.parametrize(("format", "begin"), [("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_a_figure_is_saved_for_a_paper(
    format: str, begin: bytes, run: Path, tmp_path: Path
) -> None:
    figure = figures.front(Study.open(run))
    assert figure is not None
    figure.savefig(tmp_path / f"front.{format}")
    assert (tmp_path / f"front.{format}").read_bytes().startswith(begin)
