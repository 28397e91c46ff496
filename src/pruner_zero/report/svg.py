"""Figures as inline SVG: axes and marks on them. No scripts; colours are the page's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pruner_zero.markup import element

Point = tuple[float, float]

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 46


@dataclass(frozen=True)
class Axis:
    """A labelled range with round ticks."""

    label: str
    low: float
    high: float

    @classmethod
    def over(cls, label: str, values: Sequence[float], margin: float = 0.06) -> "Axis":
        """The range of finite `values`, wider by a share `margin` on both sides."""
        low, high = min(values), max(values)
        # Values that differ by rounding alone are one value.
        differ = high - low > 1e-9 * max(abs(low), abs(high))
        wider = margin * (high - low) if differ else max(margin * abs(low), 0.5)
        return cls(label, low - wider, high + wider)

    @property
    def ticks(self) -> list[float]:
        """Three to nine multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 8
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(number * step, 12) for number in range(first, last + 1)]

    def place(self, value: float, start: float, end: float) -> float:
        """Where `value` lies between `start` and `end`."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)


@dataclass(frozen=True)
class Plot:
    """Two axes to put marks on; `draw` gives the figure."""

    x: Axis
    y: Axis

    def at(self, point: Point) -> Point:
        """The place of a point in the figure."""
        return (
            self.x.place(point[0], _LEFT, _WIDTH - _RIGHT),
            self.y.place(point[1], _HEIGHT - _BOTTOM, _TOP),
        )

    def dot(self, point: Point, kind: str, title: str | None = None, radius: float = 3) -> Markup:
        """A mark of the class `kind`, and what a pointer that rests on it is told."""
        x, y = self.at(point)
        told = [element("title", title)] if title else []
        return element("circle", *told, class_=kind, cx=x, cy=y, r=radius)

    def steps(self, points: Sequence[Point], kind: str) -> Markup:
        """A line that keeps each value until the next point."""
        x, y = self.at(points[0])
        path = f"M{x:.1f} {y:.1f}" + "".join(
            f"H{x:.1f}V{y:.1f}" for x, y in map(self.at, points[1:])
        )
        return element("path", class_=kind, d=path)

    def note(self, point: Point, text: str) -> Markup:
        """A word at a point of a falling front: below it to the left, else where there is room."""
        x, y = self.at(point)
        room = x - _LEFT > 8 * len(text) + 12
        anchor, across, down = ("end", -8, 15) if room else ("start", 8, -8)
        place = {"x": x + across, "y": y + down, "text_anchor": anchor}
        return element("text", text, class_="note", **place)

    def draw(self, label: str, *marks: Markup) -> Markup:
        """The figure; label: what it shows, for those who do not see it."""
        bottom, right, middle = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, (_TOP + _HEIGHT - _BOTTOM) / 2
        parts = []
        for tick in self.y.ticks:
            y = self.y.place(tick, bottom, _TOP)
            parts.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=y, y2=y))
            parts.append(element("text", _tick(tick), x=_LEFT - 8, y=y + 4, text_anchor="end"))
        for tick in self.x.ticks:
            x = self.x.place(tick, _LEFT, right)
            parts.append(element("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4))
            parts.append(element("text", _tick(tick), x=x, y=bottom + 18, text_anchor="middle"))
        parts.append(element("line", class_="axis", x1=_LEFT, x2=right, y1=bottom, y2=bottom))
        name = {"class_": "label", "text_anchor": "middle"}
        parts.append(element("text", self.x.label, x=(_LEFT + right) / 2, y=_HEIGHT - 8, **name))
        turned = f"rotate(-90 13 {middle:.0f})"
        parts.append(element("text", self.y.label, x=13, y=middle, transform=turned, **name))
        return figure(label, _WIDTH, _HEIGHT, *parts, *marks)


def figure(label: str, width: float, height: float, *parts: Markup) -> Markup:
    """The <svg> around `parts`, of so many units; label: what it shows, for the blind."""
    return element(
        "svg",
        *parts,
        role="img",
        aria_label=label,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        xmlns="http://www.w3.org/2000/svg",
    )


def _tick(value: float) -> str:
    return f"{value:,.6g}".replace("-", "−")
