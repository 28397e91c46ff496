"""Figures of results: their contents, and how a page includes them."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pruner_zero.evolution.study import Study
from pruner_zero.pruning.matrix import MatrixRecord
from pruner_zero.report import figures
from pruner_zero.report.results import ComparisonRun, read_result
from tests.report.conftest import (
    JUDGED,
    ROWS,
    WITH_SMALLER,
    Judged,
    Row,
    pruned_row,
    write_comparison,
    write_search,
)
from tests.report.html import SVG, read_image

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


def words(figure: Figure | None, label: str = "a figure") -> set[str | None]:
    """The words of a figure as the page includes it."""
    assert figure is not None
    source = re.search(r'src="([^"]*)"', figures.to_img(figure, label))
    assert source is not None
    return {text.text for text in read_image(source[1]).iter(f"{SVG}text")}


def test_the_front_is_a_line_through_its_candidates(tmp_path: Path) -> None:
    figure = figures.front(study(tmp_path))
    front, marks, best, knee = lines(figure)
    assert front == marks == [(1, 6.0), (4, 4.0), (9, 3.8)]
    assert (best, knee) == ([(9, 3.8)], [(4, 4.0)])
    assert {"best", "knee", "complexity", "loss on the search text, nats a token"} <= words(figure)


def test_the_worst_candidates_are_counted_and_not_drawn(tmp_path: Path) -> None:
    judged: list[Judged] = [("W", "row", {"all": 5.0}), ("W * G * X", "row", {"all": 3.0})]
    judged += [("W * G * X", "row", {"all": 4.0 + number / 100}) for number in range(100)]
    judged += [("W * G", "row", {"all": 50.0})] * 20
    figure = figures.front(study(tmp_path, judged))
    assert "20 candidates above" in words(figure)
    assert figure is not None
    drawn = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert len(drawn) == 102
    assert drawn[:, 1].max() == 5.0


def test_the_best_so_far_begins_where_it_would_not_compress_the_axis(tmp_path: Path) -> None:
    steps, marks = lines(figures.best_so_far(study(tmp_path / "a")))
    assert steps == [(1, 6.0), (2, 4.0), (4, 3.8), (5, 3.8)]
    assert marks == steps[:-1]
    high = study(tmp_path / "b", [("W * G", "row", {"all": 50.0}), *JUDGED])
    assert lines(figures.best_so_far(high))[1] == [(2, 6.0), (3, 4.0), (5, 3.8)]


def test_nothing_is_drawn_of_a_search_without_a_metric_that_works(tmp_path: Path) -> None:
    search = study(tmp_path, [("W", "row", {}), ("X * W", "row", {})])
    assert figures.front(search) is figures.best_so_far(search) is None


def records(blocks: int, up: int = 8) -> list[MatrixRecord]:
    return [
        MatrixRecord(f"layers.{block}.{kind}", block, (4, 8), zeros)
        for block in range(blocks)
        for kind, zeros in (("q", 16), ("up", up))
    ]


def shares(figure: Figure) -> NDArray[np.float64]:
    """The values of a heat map."""
    (mesh,) = figure.axes[0].collections
    return np.asarray(mesh.get_array())


def test_zeros_are_a_cell_for_each_kind_and_block_and_over_all() -> None:
    figure = figures.sparsity(records(2))
    assert shares(figure).tolist() == [[50, 50, 50], [25, 25, 25], [37.5, 37.5, 37.5]]
    assert {"q", "up", "all", "0", "1", "50.0", "25.0", "37.5"} <= words(figure)
    # A block that lacks a matrix has an empty cell.
    figure = figures.sparsity(records(2)[:-1])
    assert np.isnan(shares(figure)).tolist() == [[False] * 3, [False, True, False], [False] * 3]


@pytest.mark.parametrize("blocks", [1, 30, 80, 400])
def test_a_heat_map_fits_the_page_by_narrow_cells_without_numbers(blocks: int) -> None:
    """The page shows 928 pixels; a wider figure would lose its last columns."""
    figure = figures.sparsity(records(blocks))
    assert figure.get_figwidth() * 96 <= 928
    written = words(figure)
    assert {"0", "all"} <= written
    assert ({"50.0", "25.0", "37.5"} <= written) == (blocks == 1)


def test_names_of_matrices_are_words_and_no_formulas() -> None:
    with warnings.catch_warnings(action="error"):
        assert "层.$x_{$" in words(figures.sparsity([MatrixRecord("层.$x_{$", 0, (4, 8), 16)]))


def test_shares_that_are_nearly_equal_have_nearly_the_same_shade() -> None:
    shades = figures.sparsity(records(2, up=16)).axes[0].collections[0]
    assert shades.get_clim() == (47.5, 52.5)


def compared(folder: Path, *rows: Row) -> Figure | None:
    result = read_result(write_comparison(folder / "table.json", rows))
    assert isinstance(result, ComparisonRun)
    return figures.perplexities(result)


def test_the_methods_of_a_comparison_are_bars_the_smaller_models_last(tmp_path: Path) -> None:
    figure = compared(tmp_path, *WITH_SMALLER)
    assert figure is not None
    widths = [patch.get_width() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert widths == [50.0, 60.0, 30.0, 40.0]
    assert {"mine", "wanda", "60.00", "ria@channels"} <= words(figure)
    assert figure.axes[0].get_xscale() == "linear"
    assert lines(figure)[-1][0][0] == 20.0


def test_perplexities_far_apart_have_a_logarithmic_axis(tmp_path: Path) -> None:
    figure = compared(tmp_path, *ROWS, pruned_row("magnitude", "W", "row", 1e5))
    assert figure is not None
    assert figure.axes[0].get_xscale() == "log"
    assert compared(tmp_path, ROWS[0], ROWS[3]) is None


def test_a_figure_of_a_page_says_what_it_shows_in_the_same_text(run: Path) -> None:
    first, second = (figures.front(Study.open(run)) for _ in range(2))
    assert first is not None
    assert second is not None
    text = figures.to_img(first, "a <figure>")
    assert text.startswith('<img alt="a &lt;figure&gt;" src="data:')
    assert text == figures.to_img(second, "a <figure>")


@pytest.mark.parametrize(("format", "begin"), [("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_a_figure_is_saved_for_a_paper(
    format: str, begin: bytes, run: Path, tmp_path: Path
) -> None:
    figure = figures.front(Study.open(run))
    assert figure is not None
    figure.savefig(tmp_path / f"front.{format}")
    assert (tmp_path / f"front.{format}").read_bytes().startswith(begin)
