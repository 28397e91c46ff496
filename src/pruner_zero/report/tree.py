"""An expression drawn as a tree."""

from dataclasses import dataclass

from markupsafe import Markup

from pruner_zero.markup import element
from pruner_zero.metric import Call, Expression
from pruner_zero.report.figures import drawing

_SIGNS = str.maketrans("-*/", "−×÷")


def draw_tree(label: str, expression: Expression) -> Markup:
    """The expression as a tree, its root on top."""
    parts: list[Markup] = []

    def place(node: Expression, x: float, level: int) -> tuple[float, float]:
        room, y = _room(node), level * 54 + 18
        below = [
            place(operand, x + offset, level + 1)
            for operand, offset in zip(node.operands, room.offsets, strict=True)
        ]
        for to_x, to_y in below:
            line = {"x1": x, "y1": y + 14.0, "x2": to_x, "y2": to_y - 14.0}
            parts.append(element("line", class_="branch", **line))
        parts.append(_node(node, x, y))
        return x, y

    room = _room(expression)
    place(expression, room.left, 0)
    return drawing(label, room.left + room.right, (expression.depth - 1) * 54 + 36, *parts)


@dataclass(frozen=True)
class _Room:
    """The width that a node and its operands take on either side; the offsets of its operands."""

    left: float
    right: float
    offsets: tuple[float, ...]


def _room(node: Expression) -> _Room:
    half = _width(node) / 2 + 6
    places, end = [], 0.0
    for operand in node.operands:
        room = _room(operand)
        places.append(end + room.left)
        end += room.left + room.right
    middle = (places[0] + places[-1]) / 2 if places else 0.0
    offsets = tuple(place - middle for place in places)
    return _Room(max(half, middle), max(half, end - middle), offsets)


def _node(node: Expression, x: float, y: float) -> Markup:
    name, wide = _name(node), _width(node)
    kind = type(node).__name__.lower()
    title = node.operator.name if isinstance(node, Call) else str(node)
    box = {"x": x - wide / 2, "y": y - 14, "width": wide, "height": 28.0}
    return element(
        "g",
        element("title", title),
        element("rect", rx=6 if kind == "call" else 14, **box),
        element("text", name, x=x, y=y + 5, text_anchor="middle"),
        class_=kind,
    )


def _width(node: Expression) -> float:
    return 7.4 * len(_name(node)) + 18


def _name(node: Expression) -> str:
    if isinstance(node, Call):
        infix = node.operator.infix
        return infix[0].translate(_SIGNS) if infix else node.operator.name
    return str(node).removesuffix(".0")
