"""A heat map: a cell a value, stronger for more."""

import xml.etree.ElementTree as ElementTree

from pruner_zero.report.heat_map import heat_map
from tests.report.html import SVG

Values = list[list[float | None]]

VALUES: Values = [[0.25, 0.5], [0.75, None]]


def drawn(columns: int, shade: Values) -> ElementTree.Element:
    names = [str(column) for column in range(columns)]
    return ElementTree.fromstring(
        heat_map(
            "zeros", ["q", "up"], names, lambda row, column: shade[row][column], lambda x: f"{x:g}"
        )
    )


def test_a_cell_for_each_value_that_is_there() -> None:
    svg = drawn(2, VALUES)
    titled = {
        cell[0].text: float(cell.get("fill-opacity", 0))
        for cell in svg.iter(f"{SVG}rect")
        if cell[0].text
    }
    assert list(titled) == ["q, 0: 0.25", "q, 1: 0.5", "up, 0: 0.75"]
    assert sorted(titled.values()) == list(titled.values())
    assert len(set(titled.values())) == 3


def test_values_are_written_where_there_is_room() -> None:
    texts = [one.text for one in drawn(2, VALUES).iter(f"{SVG}text")]
    assert {"q", "up", "0", "1", "0.25", "0.5", "0.75"} <= set(texts)
    many: Values = [[0.5 + column / 200 for column in range(60)]] * 2
    svg = drawn(60, many)
    texts = [one.text for one in svg.iter(f"{SVG}text")]
    assert "0.55" not in texts
    assert "59" in texts
    assert float(svg.get("width", 0)) < 1100


def test_equal_values_need_no_scale() -> None:
    even: Values = [[0.5, 0.5]] * 2
    svg = drawn(2, even)
    assert len(list(svg.iter(f"{SVG}rect"))) == 4
    assert len({cell.get("fill-opacity") for cell in svg.iter(f"{SVG}rect")}) == 1
