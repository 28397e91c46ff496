"""Products of powers, sums and calls: read from an expression, and written in one way."""

import math
from collections.abc import Iterator
from functools import partial, reduce

import torch

from pruner_zero.metric.expression import TERMINALS, Call, Constant, Expression, Terminal, call
from pruner_zero.metric.operators import OPERATORS

ZERO, ONE = Constant(0.0), Constant(1.0)

_LARGEST_EXPONENT = 32.0
# Statistics lie between about 1e-4 and 1e4, so fp32 holds their products up to this degree.
_HIGHEST_GROWTH = 8.0
# Higher roots are so close to 1 that fp32 rounds many of them to the same value.
_LOWEST_EXPONENT = 1 / 16


def normal(expression: Expression) -> Expression:
    """An expression with the same values and no more nodes, rewritten from the leaves up.

    The values are the same in exact arithmetic, wherever they are finite.
    Source: normal forms of computer algebra, with rules for these operators.
    """
    if not isinstance(expression, Call):
        return expression
    operator, operands = expression.operator, tuple(map(normal, expression.operands))
    same = all(a.shape is b.shape for a, b in zip(operands, expression.operands, strict=True))
    if operator.reach != "element" and not same:
        # W - W + X is a matrix and X a row: statistics over the two differ.
        return expression
    plain = Call(operator, operands)
    form: Expression = plain
    numbers = [x.value for x in operands if isinstance(x, Constant) and is_tame(x)]
    if len(numbers) == operator.arity:
        tensors = [torch.tensor([[number]], dtype=torch.float64) for number in numbers]
        value = operator.apply(*tensors).item()
        form = Constant(_rounded(value)) if 1e-6 <= abs(value) <= 1e6 or not value else plain
    elif operator.name in ("add", "sub"):
        form = total(terms(plain))
    elif operator.name in ("mul", "quotient") or operator.factor or plain.exponent is not None:
        form = product(*factors(plain))
    elif operator.commutative:
        form = Call(operator, tuple(sorted(operands, key=_order)))
    elif operator.arity == 1:
        form = _function(plain)
    return form if form.size <= plain.size else plain


def _function(form: Call) -> Expression:
    """The form with its operand's sign and coefficient moved outside, where facts allow it."""
    operator, x = form.operator, form.operands[0]
    coefficient, bases = factors(_raised(x, 1.0) if operator.parity == "even" else x)
    outside, inside = 1.0, coefficient
    if operator.degree is not None and coefficient:
        outside, inside = abs(inside) ** operator.degree, math.copysign(1.0, inside)
    if operator.parity == "odd" and inside < 0:
        outside, inside = -outside, -inside
    return product(outside, {Call(operator, (product(inside, bases),)): 1.0})


def factors(form: Expression) -> tuple[float, dict[Expression, float]]:
    """An expression as a coefficient and bases with exponents.

    A base that may be negative has the exponent 1; only a base that is known to be positive has
    an exponent below 0, so that no base that may be zero is cancelled. A power of an expression
    whose values fp32 may not hold is a base as a whole.
    """
    coefficient, bases = 1.0, dict[Expression, float]()
    for base, exponent in _factors(form, 1.0, False):
        if isinstance(base, Constant) and (is_tame(base) or base == ZERO):
            coefficient *= base.value**exponent
        else:
            include(bases, base, exponent)
    return coefficient, bases


def _factors(
    form: Expression, exponent: float, absolute: bool
) -> Iterator[tuple[Expression, float]]:
    """The factors of form^exponent, or of |form|^exponent where `absolute`."""
    if isinstance(form, Call):
        name, power, x, y = form.operator.name, form.exponent, form.operands[0], form.operands[-1]
        parts: list[tuple[Expression, float, bool]] = []
        if form.operator.factor is not None:
            parts = [(Constant(form.operator.factor), 1, absolute), (x, 1, absolute)]
        elif name == "mul":
            parts = [(x, 1, absolute), (y, 1, absolute)]
        elif name == "quotient" and is_positive(y) and is_tame(y):
            parts = [(x, 1, absolute), (y, -1, absolute)]
        elif power == 1 and x.nonnegative:
            parts = [(x, 1, False)]
        elif power is not None and is_tame(x) and abs(power) <= _LARGEST_EXPONENT:
            parts = [(x, power, True)] if power >= 0 or is_positive(x) else []
        for part, times, magnitude in parts:
            yield from _factors(part, exponent * times, magnitude)
        if parts:
            return
    yield _magnitude(form) if absolute else form, exponent


def include(bases: dict[Expression, float], base: Expression, exponent: float) -> None:
    """Multiply `bases` by base^exponent, in place.

    A base that may be negative and occurs twice becomes its squared magnitude.
    """
    if base in bases and not base.nonnegative:
        del bases[base]
        base, exponent = _magnitude(base), 2.0
    bases[base] = _rounded(bases.get(base, 0.0) + exponent)
    if not bases[base]:
        del bases[base]


def product(coefficient: float, bases: dict[Expression, float]) -> Expression:
    """The expression with these factors, in one order."""
    coefficient = _rounded(coefficient)
    if coefficient == 0 and all(map(is_tame, bases)):
        return ZERO
    above, below = list[Expression](), list[Expression]()
    for exponent in sorted(set(bases.values())):
        parts = sorted((base for base in bases if bases[base] == exponent), key=_order)
        if abs(exponent) != 1:
            whole = _joined("mul", parts)
            parts = [_raised(p, abs(exponent)) for p in ([whole] if is_tame(whole) else parts)]
        (above if exponent > 0 else below).extend(parts)
    form = _joined("mul", sorted(above, key=_order)) if above else Constant(coefficient)
    form = call("quotient", form, _joined("mul", below)) if below else form
    if coefficient == 1 or not above:
        return form
    if coefficient != -1:
        return call("mul", Constant(coefficient), form)
    if isinstance(form, Call) and form.operator.name == "sub":
        return call("sub", *reversed(form.operands))
    return call("neg", form)


def terms(form: Expression) -> dict[Expression, float]:
    """An expression as products with coefficients; that of ONE is a number to add."""
    coefficients, pending = dict[Expression, float](), [(form, 1.0)]
    while pending:
        part, scale = pending.pop()
        if isinstance(part, Call) and part.operator.name in ("add", "sub"):
            second = scale if part.operator.name == "add" else -scale
            pending += [(part.operands[0], scale), (part.operands[1], second)]
        else:
            coefficient, bases = factors(part)
            term = product(1.0, bases)
            coefficients[term] = _rounded(coefficients.get(term, 0.0) + scale * coefficient)
    return coefficients


def total(parts: dict[Expression, float]) -> Expression:
    """The expression with these terms, in one order: positive terms, then negative terms."""
    plus, minus = list[Expression](), list[Expression]()
    for term in sorted(parts, key=lambda term: (term == ONE, _order(term))):
        scale, (inner, bases) = parts[term], factors(term)
        # A term with the coefficient 0 stays where it may not be finite.
        if scale or not is_tame(term):
            (minus if scale < 0 else plus).append(product(abs(scale) * inner, bases))
    if plus and minus:
        return call("sub", _joined("add", plus), _joined("add", minus))
    if minus:
        return call("neg", _joined("add", minus))
    return _joined("add", plus) if plus else ZERO


def _joined(name: str, parts: list[Expression]) -> Expression:
    return reduce(partial(call, name), parts)


def _raised(base: Expression, exponent: float) -> Expression:
    """|base|^exponent, by the built-in operator for this exponent where there is one."""
    if isinstance(base, Call) and base.exponent == 1:
        base = base.operands[0]
    powers = [operator for operator in OPERATORS.values() if operator.exponent == exponent]
    return Call(powers[0], (base,)) if powers else call("power", base, Constant(exponent))


def _magnitude(base: Expression) -> Expression:
    """|base|, written as a terminal or a number where there is one."""
    if base.nonnegative:
        return base
    if isinstance(base, Constant):
        return Constant(-base.value)
    name = TERMINALS[base.name].magnitude if isinstance(base, Terminal) else None
    return Terminal(name) if name else _raised(base, 1.0)


def _order(form: Expression) -> tuple[int, str]:
    # Hashes differ between processes, texts do not.
    return form.size, str(form)


def _rounded(value: float) -> float:
    """The value with twelve digits, so that 0.1 * 3 is 0.3; fp32 scores have seven."""
    return float(f"{value:.12g}")


def is_tame(expression: Expression) -> bool:
    """Whether fp32 computes the values well, and they are finite and not all zero."""
    return growth(expression) <= _HIGHEST_GROWTH


def is_positive(expression: Expression) -> bool:
    """Whether all values are known to be above zero."""
    if isinstance(expression, Constant):
        return expression.value > 0
    if isinstance(expression, Terminal):
        return TERMINALS[expression.name].sign == "positive"
    assert isinstance(expression, Call)
    keeps_positive = (
        expression.operator.name in ("add", "mul", "quotient") or expression.exponent is not None
    )
    operands = expression.operands[: expression.operator.expressions]
    return keeps_positive and all(map(is_positive, operands))


def growth(expression: Expression) -> float:
    """The degree as a product of statistics; 0 for a number.

    Infinite where fp32 may overflow, underflow or round values to ties, where they may be nan or
    all zero, and where no fact of the operator decides.
    """
    if isinstance(expression, Constant):
        return 0.0 if 1e-6 <= abs(expression.value) <= 1e6 else math.inf
    if not isinstance(expression, Call):
        return 1.0
    if not expression.terminals:
        return math.inf
    operator, operands = expression.operator, expression.operands
    parts = [growth(operand) for operand in operands]
    if expression.exponent is not None:
        usual = expression.exponent > 0 or is_positive(operands[0])
        distinct = abs(expression.exponent) >= _LOWEST_EXPONENT
        return abs(expression.exponent) * parts[0] if usual and distinct else math.inf
    if operator.name == "mul" or (operator.name == "quotient" and is_positive(operands[1])):
        return sum(parts)
    if operator.name in ("add", "sub") or operator.factor is not None:
        return max(parts)
    outputs, inputs = operands[0].shape.value
    # Along an axis on which nothing varies, a rescaling gives only signs or nan.
    varies = {"row": inputs, "column": outputs, "matrix": outputs or inputs}
    ordered = operator.increasing != "never" and varies.get(operator.reach, operator.arity == 1)
    if not ordered or max(parts) > _HIGHEST_GROWTH:
        return math.inf
    return 1.0 if operator.arity == 1 else parts[0]
