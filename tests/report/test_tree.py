"""Trees: every node once, nothing over anything else."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations

from hypothesis import given

from pruner_zero.metric import Expression, parse
from pruner_zero.report.tree import draw_tree
from tests.metric.strategies import expressions
from tests.report.html import SVG

Box = tuple[float, float, float, float]


def boxes(svg: ElementTree.Element) -> list[Box]:
    def number(one: ElementTree.Element, name: str) -> float:
        return float(one.get(name, "nan"))

    return [
        (number(one, "x"), number(one, "y"), number(one, "width"), number(one, "height"))
        for one in svg.iter(f"{SVG}rect")
    ]


def apart(one: Box, other: Box) -> bool:
    return any(
        one[axis] + one[axis + 2] <= other[axis] or other[axis] + other[axis + 2] <= one[axis]
        for axis in (0, 1)
    )


@given(expressions())
def test_nodes_are_all_there_and_apart_and_inside(expression: Expression) -> None:
    svg = ElementTree.fromstring(draw_tree("a tree", expression))
    found = boxes(svg)
    assert len(found) == expression.size
    assert len(list(svg.iter(f"{SVG}line"))) == expression.size - 1
    assert all(apart(one, other) for one, other in combinations(found, 2))
    width, height = map(float, svg.get("viewBox", "").split()[2:])
    for x, y, wide, high in found:
        assert x >= 0
        assert y >= 0
        assert x + wide <= width + 1
        assert y + high <= height + 1


def test_signs_for_arithmetic_and_names_for_the_rest() -> None:
    svg = ElementTree.fromstring(draw_tree("a tree", parse("mms(W) * X + 2")))
    assert [one.text for one in svg.iter(f"{SVG}text")] == ["W", "mms", "X", "×", "2", "+"]
    assert [one.text for one in svg.iter(f"{SVG}title")] == ["W", "mms", "X", "mul", "2.0", "add"]
