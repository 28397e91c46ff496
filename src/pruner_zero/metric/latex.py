"""Formulas: LaTeX of an operator applied to formulas, and the MathML that browsers show."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from pruner_zero.metric.operators import ATOM, PRODUCT, SIGN, Operator

# An operand in an operator's template, with the bars and parentheses that it may need.
_OPERAND = re.compile(
    r"(?P<bars>\|)?(?P<parentheses>\()?#(?P<place>[12])(?(parentheses)\))(?(bars)\|)"
)
_NAME = re.compile(r"\\operatorname\{([^}]*)\}")


class Formula(NamedTuple):
    """LaTeX, how tightly its outermost operator binds, and whether it is never negative."""

    latex: str
    level: int
    nonnegative: bool


def applied(operator: Operator, operands: Sequence[Formula], nonnegative: bool) -> Formula:
    """The formula of `operator` applied to `operands`.

    The magnitudes that sqrt, log and powers take of their operand are shown as bars unless it
    is known never to be negative; an explicit abs always shows them.
    """
    if operator.factor == 1:
        return operands[0]
    if operator.latex is None:
        name = operator.name.replace("_", r"\,")
        inside = ", ".join(operand.latex for operand in operands)
        return Formula(rf"\operatorname{{{name}}}" + _parentheses(inside), ATOM, nonnegative)
    template, level = operator.latex

    def filled(match: re.Match[str]) -> str:
        place = int(match["place"]) - 1
        latex, binds, never_negative = operands[place]
        if match["bars"] and not never_negative:
            return rf"\left|{latex}\right|"
        # Operators of the same level group to the left, and no two signs stand side by side.
        loose = binds < level or (binds in (level, SIGN) and not (operator.infix and place == 0))
        return _parentheses(latex) if match["parentheses"] and loose else latex

    return Formula(_OPERAND.sub(filled, template), level, nonnegative)


def number(value: float) -> Formula:
    """The formula of a number, with a power of ten in the place of an exponent."""
    digits, _, exponent = repr(value).removesuffix(".0").partition("e")
    level = SIGN if value < 0 else ATOM
    if not exponent:
        return Formula(digits, level, value >= 0)
    return Formula(rf"{digits} \cdot 10^{{{int(exponent)}}}", min(level, PRODUCT), value >= 0)


def to_mathml(latex: str, display: str = "block") -> Markup:
    """The formula `latex` as a <math> element.

    display: block or inline.
    """
    from latex2mathml.converter import convert

    # latex2mathml sets the letters of an operator's name as a product of italic variables.
    named = _NAME.sub(lambda name: rf"\text{{{name[1]}}}".replace(r"\,", " "), latex)
    return Markup(convert(named, display=display))


def _parentheses(latex: str) -> str:
    return rf"\left({latex}\right)" if "\\" in latex or "^" in latex else f"({latex})"
