"""Expressions as mathematics in LaTeX."""

from pruner_zero.metric.expression import Call, Constant, Expression, Terminal

_SUM, _PRODUCT, _SIGN, _SCRIPT, _ATOM = range(1, 6)
_INFIX = {"add": (" + ", _SUM), "sub": (" - ", _SUM), "mul": (r" \cdot ", _PRODUCT)}
_FUNCTIONS = {"tanh": r"\tanh", "min": r"\min", "max": r"\max"}


def to_latex(expression: Expression) -> str:
    """The expression in maths mode, without dollar signs.

    The magnitudes that sqrt, log and powers take of their operand are shown as bars unless it
    is known never to be negative; an explicit abs always shows them.
    """
    return _latex(expression)[0]


def _latex(expression: Expression) -> tuple[str, int]:
    """The LaTeX and how tightly its outermost operator binds."""
    if isinstance(expression, Constant):
        return _number(expression.value)
    if isinstance(expression, Terminal):
        return expression.name, _ATOM
    assert isinstance(expression, Call)
    name, operands = expression.operator.name, expression.operands
    first, last = operands[0], operands[-1]
    match name:
        case "add" | "sub" | "mul":
            symbol, level = _INFIX[name]
            return _within(first, level) + symbol + _within(last, level + 1), level
        case "quotient":
            return rf"\frac{{{to_latex(first)}}}{{{to_latex(last)}}}", _SCRIPT
        case "div":
            return rf"\frac{{{to_latex(first)}}}{{\lVert {to_latex(last)}\rVert_F}}", _SCRIPT
        case "neg":
            return f"-{_within(first, _SCRIPT)}", _SIGN
        case "sqr" | "pow":
            return f"{_within(first, _ATOM)}^{{2}}", _SCRIPT
        case "power":
            base = _within(first, _ATOM) if first.nonnegative else _bars(first)
            return f"{base}^{{{to_latex(last)}}}", _SCRIPT
        case "abs":
            return _bars(first), _ATOM
        case "sqrt":
            return rf"\sqrt{{{_magnitude(first)}}}", _ATOM
        case "log":
            return rf"\ln\left({_magnitude(first)} + 0.001\right)", _ATOM
        case "exp":
            return rf"e^{{\min\left({to_latex(first)}, 100\right)}}", _SCRIPT
        case "skp":
            return _latex(first)
    function = _FUNCTIONS.get(name, rf"\operatorname{{{name.replace('_', chr(92) + ',')}}}")
    return function + _parentheses(", ".join(to_latex(operand) for operand in operands)), _ATOM


def _within(expression: Expression, level: int) -> str:
    latex, own = _latex(expression)
    return latex if own >= level else _parentheses(latex)


def _parentheses(latex: str) -> str:
    return rf"\left({latex}\right)" if "\\" in latex or "^" in latex else f"({latex})"


def _bars(expression: Expression) -> str:
    return rf"\left|{to_latex(expression)}\right|"


def _magnitude(expression: Expression) -> str:
    return to_latex(expression) if expression.nonnegative else _bars(expression)


def _number(value: float) -> tuple[str, int]:
    digits, _, exponent = repr(value).removesuffix(".0").partition("e")
    level = _SIGN if value < 0 else _ATOM
    if not exponent:
        return digits, level
    return rf"{digits} \cdot 10^{{{int(exponent)}}}", min(level, _PRODUCT)
