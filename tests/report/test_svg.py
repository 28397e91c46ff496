"""Axes and marks: round ticks, places inside the figure, words for those who do not see it."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.report.svg import Axis, Plot
from tests.report.html import SVG

numbers = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-3)


@given(st.lists(numbers, min_size=1, max_size=5))
def test_an_axis_holds_its_values_and_has_a_few_round_ticks(values: list[float]) -> None:
    axis = Axis.over("x", values)
    assert axis.low < min(values) <= max(values) < axis.high
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert 2 <= len(axis.ticks) <= 9


def test_ticks_are_what_one_would_write() -> None:
    assert Axis("x", 3.7, 14.2).ticks == [4, 6, 8, 10, 12, 14]
    assert Axis("x", 0, 0.5).ticks == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_points_stand_where_the_axes_say() -> None:
    plot = Plot(Axis("x", 0, 10), Axis("y", 0, 1))
    left, bottom = plot.at((0, 0))
    right, top = plot.at((10, 1))
    assert left < right
    assert top < bottom
    assert plot.at((5, 0.5)) == pytest.approx(((left + right) / 2, (top + bottom) / 2))


def test_a_figure_tells_what_it_shows() -> None:
    plot = Plot(Axis("nodes & more", 0, 10), Axis("loss", 0, 1))
    marks = plot.dot((1, 1), "best", "<the best>"), plot.steps([(1, 1), (5, 0.5)], "front")
    svg = ElementTree.fromstring(plot.draw("a <figure>", *marks))
    assert svg.tag == f"{SVG}svg"
    assert (svg.get("role"), svg.get("aria-label")) == ("img", "a <figure>")
    assert [one.text for one in svg.iter(f"{SVG}title")] == ["<the best>"]
    assert {"nodes & more", "loss", "10", "0.4"} <= {one.text for one in svg.iter(f"{SVG}text")}


def test_a_line_of_steps_keeps_each_value_until_the_next() -> None:
    plot = Plot(Axis("x", 0, 10), Axis("y", 0, 10))
    (x, y), (end, low) = plot.at((0, 10)), plot.at((10, 0))
    path = ElementTree.fromstring(plot.steps([(0, 10), (10, 0)], "front")).get("d")
    assert path == f"M{x:.1f} {y:.1f}H{end:.1f}V{low:.1f}"


def test_a_word_stays_inside_the_figure() -> None:
    plot = Plot(Axis("x", 0, 10), Axis("y", 0, 10))
    edge, middle = (
        ElementTree.fromstring(plot.note(point, "knee")).get("text-anchor")
        for point in ((0, 5), (5, 5))
    )
    assert (edge, middle) == ("start", "end")
