"""Trees: every node is drawn once, and none overlaps another."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations

from hypothesis import given

from pruner_zero.metric import Expression, parse
from pruner_zero.report.tree import draw_tree
from tests.metric.strategies import expressions
from tests.report.html import SVG

Box = tuple[float, float, float, float]


def boxes(svg: ElementTree.Element) -> list[Box]:
    def number(element: ElementTree.Element, name: str) -> float:
        return float(element.get(name, "nan"))

    return [
        (
            number(rectangle, "x"),
            number(rectangle, "y"),
            number(rectangle, "width"),
            number(rectangle, "height"),
        )
        for rectangle in svg.iter(f"{SVG}rect")
    ]


def apart(first: Box, second: Box) -> bool:
    return any(
        first[axis] + first[axis + 2] <= second[axis]
        or second[axis] + second[axis + 2] <= first[axis]
        for axis in (0, 1)
    )


@given(expressions())
def test_all_nodes_are_drawn_apart_and_inside_the_picture(expression: Expression) -> None:
    svg = ElementTree.fromstring(draw_tree("a tree", expression))
    rectangles = boxes(svg)
    assert len(rectangles) == expression.size
    assert len(list(svg.iter(f"{SVG}line"))) == expression.size - 1
    assert all(apart(first, second) for first, second in combinations(rectangles, 2))
    width, height = map(float, svg.get("viewBox", "").split()[2:])
    for x, y, wide, high in rectangles:
        assert x >= 0
        assert y >= 0
        assert x + wide <= width + 1
        assert y + high <= height + 1


def test_signs_for_arithmetic_and_names_for_the_rest() -> None:
    svg = ElementTree.fromstring(draw_tree("a tree", parse("mms(W) * X + 2")))
    assert [element.text for element in svg.iter(f"{SVG}text")] == ["W", "mms", "X", "×", "2", "+"]
    assert [element.text for element in svg.iter(f"{SVG}title")] == [
        "W",
        "mms",
        "X",
        "mul",
        "2.0",
        "add",
    ]
