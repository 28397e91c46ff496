"""Expressions as mathematics that a browser sets by itself (MathML)."""

from markupsafe import Markup

from pruner_zero.markup import element, join
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.latex import to_latex

_SUM, _PRODUCT, _SIGN, _SCRIPT, _ATOM = range(1, 6)
_INFIX = {"add": ("+", _SUM), "sub": ("−", _SUM), "mul": ("⋅", _PRODUCT)}


def to_mathml(expression: Expression, display: str = "block") -> Markup:
    """The expression as a <math> element that reads as its LaTeX does; see `to_latex`.

    display: block or inline.
    """
    latex = to_latex(expression)
    return element("math", _math(expression)[0], display=display, alttext=latex)


def _math(expression: Expression) -> tuple[Markup, int]:
    """The mathematics and how tightly its outermost operator binds."""
    if isinstance(expression, Constant):
        return _number(expression.value)
    if isinstance(expression, Terminal):
        return element("mi", expression.name), _ATOM
    assert isinstance(expression, Call)
    name, operands = expression.operator.name, expression.operands
    first, last = operands[0], operands[-1]
    match name:
        case "add" | "sub" | "mul":
            symbol, level = _INFIX[name]
            sides = _within(first, level), element("mo", symbol), _after_sign(last, level)
            return element("mrow", *sides), level
        case "quotient":
            return element("mfrac", _math(first)[0], _math(last)[0]), _SCRIPT
        case "div":
            norm = element("msub", _between("‖", _math(last)[0], "‖"), element("mi", "F"))
            return element("mfrac", _math(first)[0], norm), _SCRIPT
        case "neg":
            return element("mrow", element("mo", "−"), _within(first, _SCRIPT)), _SIGN
        case "sqr" | "pow":
            return element("msup", _within(first, _ATOM), element("mn", "2")), _SCRIPT
        case "power":
            base = _within(first, _ATOM) if first.nonnegative else _bars(first)
            return element("msup", base, _math(last)[0]), _SCRIPT
        case "abs":
            return _bars(first), _ATOM
        case "sqrt":
            return element("msqrt", _magnitude(first)), _ATOM
        case "log":
            inside = join([_magnitude(first), element("mo", "+"), element("mn", "0.001")])
            return _applied("ln", inside), _ATOM
        case "exp":
            inside = join([_math(first)[0], element("mo", ","), element("mn", "100")])
            return element("msup", element("mi", "e"), _applied("min", inside)), _SCRIPT
        case "skp":
            return _math(first)
    comma = element("mo", ",")
    inside = comma.join(_math(operand)[0] for operand in operands)
    return _applied(name.replace("_", "\u00a0"), inside), _ATOM


def _within(expression: Expression, level: int) -> Markup:
    math, own = _math(expression)
    return math if own >= level else _between("(", math, ")")


def _after_sign(expression: Expression, level: int) -> Markup:
    # No two signs stand side by side.
    math, own = _math(expression)
    return math if own > level and own != _SIGN else _between("(", math, ")")


def _bars(expression: Expression) -> Markup:
    return _between("|", _math(expression)[0], "|")


def _magnitude(expression: Expression) -> Markup:
    return _math(expression)[0] if expression.nonnegative else _bars(expression)


def _between(left: str, inside: Markup, right: str) -> Markup:
    fences = [
        element("mo", mark, fence="true", stretchy="true", form=form)
        for mark, form in ((left, "prefix"), (right, "postfix"))
    ]
    return element("mrow", fences[0], inside, fences[1])


def _applied(function: str, inside: Markup) -> Markup:
    # A name of several letters stands upright by itself; U+2061 is the invisible application.
    name = element("mi", function)
    return element("mrow", name, element("mo", "\u2061"), _between("(", inside, ")"))


def _number(value: float) -> tuple[Markup, int]:
    digits, _, exponent = repr(abs(value)).removesuffix(".0").partition("e")
    number, level = element("mn", digits), _ATOM
    if exponent:
        power = element("msup", element("mn", "10"), _number(int(exponent))[0])
        number, level = element("mrow", number, element("mo", "⋅"), power), _PRODUCT
    if value < 0:
        return element("mrow", element("mo", "−"), number), min(level, _SIGN)
    return number, level
