"""A table of values as shades."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from pruner_zero.markup import element
from pruner_zero.report.svg import figure

_WIDTH, _HEIGHT = 820, 24
_NARROWEST, _WIDEST, _READABLE = 14.0, 52.0, 46.0
_LETTER = 7.6
_PALE, _FULL = 0.08, 0.9


def heat_map(
    label: str,
    rows: Sequence[str],
    columns: Sequence[str],
    value: Callable[[int, int], float | None],
    shown: Callable[[float], str],
) -> Markup:
    """A cell for each row and column, of stronger colour for higher values; None leaves a gap.

    shown: how a value is written, in the cell where there is room and in its tooltip. Below
    stands what the palest and the strongest colour mean.
    """
    left = 10 + _LETTER * max(map(len, rows))
    width = min(_WIDEST, max(_NARROWEST, (_WIDTH - left) / len(columns)))
    found = {
        (row, column): one
        for row in range(len(rows))
        for column in range(len(columns))
        if (one := value(row, column)) is not None
    }
    low, high = min(found.values()), max(found.values())
    parts = [_name(name, left - 8, row * _HEIGHT + 16, "end") for row, name in enumerate(rows)]
    foot = len(rows) * _HEIGHT + 16
    every = math.ceil(26 / width)
    last = len(columns) - 1
    for column, name in enumerate(columns):
        if column == last or (column % every == 0 and column <= last - every):
            parts.append(_name(name, left + (column + 0.5) * width, foot, "middle"))
    for (row, column), one in found.items():
        share = (one - low) / (high - low) if high > low else 0.5
        place = left + column * width, row * _HEIGHT, width
        title = f"{rows[row]}, {columns[column]}: {shown(one)}"
        parts += _cell(share, title, shown(one) if width >= _READABLE else "", *place)
    parts += _legend(left, foot + 14, shown(low), shown(high)) if high > low else []
    return figure(label, left + width * len(columns) + 2, foot + 42, *parts)


def _cell(
    share: float, title: str, text: str, left: float, top: float, width: float
) -> list[Markup]:
    box = {"x": left + 0.5, "y": top + 0.5, "width": width - 1, "height": _HEIGHT - 1}
    strength = _PALE + (_FULL - _PALE) * share
    parts = [element("rect", element("title", title), class_="cell", fill_opacity=strength, **box)]
    if text:
        kind = "strong" if share > 0.75 else "pale"
        parts.append(_name(text, left + width / 2, top + 16, "middle", kind))
    return parts


def _legend(left: float, top: float, low: str, high: str) -> list[Markup]:
    start = left + _LETTER * len(low) + 10
    swatches = [
        part
        for step in range(5)
        for part in _cell(step / 4, "", "", start + step * _HEIGHT, top, _HEIGHT)
    ]
    end = start + 5 * _HEIGHT + 10
    return [_name(low, left, top + 16, "start"), *swatches, _name(high, end, top + 16, "start")]


def _name(text: str, x: float, y: float, anchor: str, kind: str = "label") -> Markup:
    return element("text", text, class_=kind, x=x, y=y, text_anchor=anchor)
