"""Expressions as formulas: LaTeX, and the MathML that browsers show."""

import re

from markupsafe import Markup

from pruner_zero.metric.expression import Call, Constant, Expression
from pruner_zero.metric.operators import ATOM, PRODUCT, SIGN

# An operand in an operator's template, with the bars and parentheses that it may need.
_OPERAND = re.compile(
    r"(?P<bars>\|)?(?P<parentheses>\()?#(?P<place>[12])(?(parentheses)\))(?(bars)\|)"
)
_NAME = re.compile(r"\\operatorname\{([^}]*)\}")


def to_latex(expression: Expression) -> str:
    """The expression in maths mode, without dollar signs.

    The magnitudes that sqrt, log and powers take of their operand are shown as bars unless it
    is known never to be negative; an explicit abs always shows them.
    """
    return _latex(expression)[0]


def to_mathml(expression: Expression, display: str = "block") -> Markup:
    """The formula of `to_latex` as a <math> element.

    display: block or inline.
    """
    from latex2mathml.converter import convert

    # latex2mathml sets the letters of an operator's name as a product of italic variables.
    latex = _NAME.sub(lambda name: rf"\text{{{name[1]}}}".replace(r"\,", " "), to_latex(expression))
    return Markup(convert(latex, display=display))


def _latex(expression: Expression) -> tuple[str, int]:
    """The LaTeX and how tightly its outermost operator binds."""
    if isinstance(expression, Constant):
        return _number(expression.value)
    if not isinstance(expression, Call):
        return str(expression), ATOM
    operator, operands = expression.operator, expression.operands
    if operator.factor == 1:
        return _latex(operands[0])
    if operator.latex is None:
        name = operator.name.replace("_", r"\,")
        inside = ", ".join(map(to_latex, operands))
        return rf"\operatorname{{{name}}}" + _parentheses(inside), ATOM
    template, level = operator.latex

    def filled(match: re.Match[str]) -> str:
        place = int(match["place"]) - 1
        latex, binds = _latex(operands[place])
        if match["bars"] and not operands[place].nonnegative:
            return rf"\left|{latex}\right|"
        # Operators of the same level group to the left, and no two signs stand side by side.
        loose = binds < level or (binds in (level, SIGN) and not (operator.infix and place == 0))
        return _parentheses(latex) if match["parentheses"] and loose else latex

    return _OPERAND.sub(filled, template), level


def _parentheses(latex: str) -> str:
    return rf"\left({latex}\right)" if "\\" in latex or "^" in latex else f"({latex})"


def _number(value: float) -> tuple[str, int]:
    digits, _, exponent = repr(value).removesuffix(".0").partition("e")
    level = SIGN if value < 0 else ATOM
    if not exponent:
        return digits, level
    return rf"{digits} \cdot 10^{{{int(exponent)}}}", min(level, PRODUCT)
