"""One expression for all that give the same mask."""

from typing import get_args

from pruner_zero.choices import Scope
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.metric.canonical.algebra import ONE
from pruner_zero.metric.canonical.normal import FINE_GROWTH, Normal, Over
from pruner_zero.metric.expression import Call, Expression
from pruner_zero.metric.operator import Shape

# The weights over which a factor or an offset must be constant to leave a comparison unchanged.
_OVER: dict[Scope, Over] = {
    "row": "row",
    "block": "matrix",
    "matrix": "matrix",
    "global": "global",
}


def canonical(expression: Expression, scope: Scope) -> Expression:
    """The canonical form: expressions with equal forms give equal masks within `scope`.

    That holds in exact arithmetic and for finite scores; fp32 rounding can still tie close
    values. Expressions with unequal forms can give equal masks as well. N:M patterns compare
    within rows. W, G and X are never negative, D is positive, S is W with a sign. Expressions
    that fp32 may overflow, underflow or round away keep forms of their own: high powers, extreme
    numbers, unbounded exp and tanh, logarithms and offsets of high products. Factors are
    reordered all the same; beside a quotient by zero (1e38) their order can decide whether fp32
    overflows.

    Rewriting keeps the values of subexpressions: products of powers and sums get one order,
    constants are folded, common factors come first, and operands lose what their operator
    ignores, as in mms(2 * G + 1). Then the root loses what cannot change an order: strictly
    increasing functions, and positive factors and offsets that are constant over the group;
    products of powers get 1 as their largest exponent. An expression that is constant over every
    group becomes 0. The form is its own form. If it would break a size limit, the expression is
    returned instead. Raises PrunerZeroError for an unknown scope.
    Source: normal forms of computer algebra; what a ranking ignores is ours.
    """
    if scope not in _OVER:
        raise PrunerZeroError(
            f"unknown scope '{scope}': {did_you_mean(str(scope), get_args(Scope))}"
        )
    normal, over = Normal(), _OVER[scope]
    try:
        form = normal.of(expression)
        while True:
            inner = _without_outermost(normal, normal.affine(form, over))
            if inner == form:
                return form
            form = inner
    except PrunerZeroError:
        # Too deep or too large once rewritten.
        return expression


def masks(expression: Expression, scope: Scope) -> bool:
    """Whether the canonical form still has a value per weight, as far as simple rules tell.

    False where everything that varies over the matrix cancels or is invisible in `scope`.
    Raises PrunerZeroError for an unknown scope. Source: ours.
    """
    return canonical(expression, scope).shape is Shape.MATRIX


def _without_outermost(normal: Normal, form: Expression) -> Expression:
    """The form without its outermost strictly increasing function, if it has one."""
    # -f(x) increases in -x, so a minus in front makes no difference.
    sign, core = normal.signed(form)
    factors = normal.factors(core)[1]
    if isinstance(core, Call) and len(factors) == 1:
        x = core.operands[0]
        if _increases(normal, core) and normal.bounds(x).growth <= FINE_GROWTH:
            return normal.times(sign, x)
        if core.operator.name == "quotient" and x == ONE:
            y = core.operands[1]
            return normal.times(-sign, y) if normal.bounds(y).low >= 0 else form
    if not factors or any(normal.bounds(base).low < 0 for base in factors):
        return form
    largest = max(factors.values())
    if largest < 0:
        # 1 / D decreases in D.
        sign, largest = -sign, min(factors.values())
    scaled = normal.product(1, {base: exponent / largest for base, exponent in factors.items()})
    if not normal.bounds(core).tame or not normal.bounds(scaled).tame:
        return form
    return normal.times(sign, scaled)


def _increases(normal: Normal, form: Call) -> bool:
    """Whether it is a strictly increasing function of single entries, also in fp32."""
    operator, low = form.operator, normal.bounds(form.operands[0]).low
    if operator.arity > 1 or operator.reach != "element" or not normal.bounds(form).tame:
        return False
    return operator.increasing == "always" or (operator.increasing == "nonnegative" and low >= 0)
