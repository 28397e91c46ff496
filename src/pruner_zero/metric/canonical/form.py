"""The canonical form, which gives the same mask, and the simplification of the paper."""

import math
from typing import get_args

from pruner_zero.choices import Group
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.metric.canonical.normal import (
    ONE,
    ZERO,
    factors,
    growth,
    include,
    is_tame,
    normal,
    product,
    terms,
    total,
)
from pruner_zero.metric.expression import MAX_DEPTH, Call, Expression, Terminal
from pruner_zero.metric.operators import Shape

# fp32 rounds small values away beside a larger offset, and values of higher growth beside any
# offset.
_FINE_GROWTH = 2.0
_LARGEST_OFFSET = 10.0


def canonical(expression: Expression, scope: Group) -> Expression:
    """The canonical form: expressions with equal forms give equal masks within `scope`.

    That holds in exact arithmetic and for finite scores. Unequal forms can give equal masks as
    well, such as W * X + W * G and W * (X + G). N:M patterns compare within rows. In scope row the
    form has no factor O, and within a matrix none P: all weights of a group share it, and where it
    is zero, the scores are all equal. In scope unit, where squared scores are summed over columns,
    the form only drops positive numbers as factors.

    Products of powers and sums get one order, numbers are folded, signs and coefficients leave
    functions. Then the root loses what cannot change an order: strictly increasing functions,
    positive factors constant over the group, and added numbers, unless fp32 may overflow or
    round to ties; one exponent of a product of powers becomes 1, the largest where that is as
    short. An expression that is constant over every group becomes 0. The form has no more nodes
    than the expression, and the form of a form is itself. Raises PrunerZeroError for an unknown
    scope. Source: normal forms of computer algebra; the rules for rankings are ours.
    """
    if scope not in get_args(Group):
        raise PrunerZeroError(
            f"unknown scope '{scope}': {did_you_mean(str(scope), get_args(Group))}"
        )
    form = expression
    try:
        for _ in range(MAX_DEPTH):
            simpler = _without_outermost(normal(_ranked(form)), scope)
            if simpler == form:
                break
            form = simpler
    except PrunerZeroError:
        # Too deep once rewritten, or a number beyond the floats.
        pass
    return form


def _ranked(form: Expression) -> Expression:
    """The form without what cannot change an order inside an operator that ranks."""
    if not isinstance(form, Call):
        return form
    operands = tuple(map(_ranked, form.operands))
    if form.operator.ranks and operands[0].shape is Shape.MATRIX:
        simpler = canonical(operands[0], "row" if form.operator.reach == "row" else "global")
        operands = (simpler,) if simpler.shape is Shape.MATRIX else operands
    return form if operands == form.operands else Call(form.operator, operands)


def _without_outermost(form: Expression, scope: Group) -> Expression:
    """The form without parts of its root that cannot change the order within a group."""
    outputs, inputs = form.shape.value
    along = inputs or (outputs and scope not in ("row", "unit"))
    varies = form.terminals if scope == "global" else along
    if not varies:
        return ZERO
    if not is_tame(form):
        return form
    if scope == "unit":
        coefficient, bases = factors(form)
        simpler = product(math.copysign(1.0, coefficient), bases)
        return min(simpler, form, key=lambda form: form.size)
    parts = terms(form)
    if 0 < abs(parts.pop(ONE, 0.0)) <= _LARGEST_OFFSET and growth(form) <= _FINE_GROWTH:
        return total(parts)
    coefficient, bases = factors(form)
    sign, core = math.copysign(1.0, coefficient), product(1.0, bases)
    if isinstance(core, Call) and _keeps_order(core, scope):
        return product(sign, {core.operands[0]: 1.0})
    inner = dict[Expression, float]()
    for base, exponent in bases.items():
        if exponent > 0 and _is_shared(base, scope):
            continue
        if isinstance(base, Call) and base.operator.rescaling == "scale" and _reaches(base, scope):
            base = base.operands[0]
        include(inner, base, exponent)
    forms = [form, product(sign, inner)]
    if all(base.nonnegative for base in inner):
        positive = [exponent for exponent in inner.values() if exponent > 0]
        for scale in sorted(set(positive or inner.values()), key=abs):
            powers = {base: exponent / scale for base, exponent in inner.items()}
            forms.append(product(sign * math.copysign(1.0, scale), powers))
    return min(filter(is_tame, reversed(forms)), key=lambda form: form.size)


def _keeps_order(form: Call, scope: Group) -> bool:
    """Whether `form` increases strictly with its first operand within every group."""
    operator, operands = form.operator, form.operands
    increases = {"always": True, "nonnegative": operands[0].nonnegative, "never": False}
    if not increases[operator.increasing]:
        return False
    if operator.reach == "element":
        return operator.arity == 1 and growth(operands[0]) <= _FINE_GROWTH
    return _reaches(form, scope) and all(is_tame(normal(operand)) for operand in operands)


def _is_shared(base: Expression, scope: Group) -> bool:
    """Whether `base` is a non-negative statistic that all weights of a group share."""
    shapes = {"row": (Shape.COLUMN, Shape.SCALAR), "global": ()}.get(scope, (Shape.SCALAR,))
    return isinstance(base, Terminal) and base.shape in shapes and base.nonnegative


def _reaches(form: Call, scope: Group) -> bool:
    """Whether the operator's statistics are the same for all weights of every group."""
    reach = form.operator.reach
    return scope != "global" and (reach == "matrix" or (reach == "row" and scope == "row"))


def simplify_opposing(expression: Expression) -> Expression:
    """The expression without its pairs of opposing operations along parent and child.

    exp of log, sqr or pow of sqrt, both the other way round, and neg of neg leave their operand;
    skp always does. It is idempotent. It may change masks, which `canonical` keeps: sqrt(sqr(S))
    is |S| but becomes S.
    Source: Dong 2024 (Pruner-Zero, arXiv 2406.02924), its opposing-operation simplification.
    """
    if not isinstance(expression, Call):
        return expression
    # One pass is enough: operands are free of pairs before their parent is looked at.
    operands = tuple(simplify_opposing(operand) for operand in expression.operands)
    first = operands[0]
    if expression.operator.factor == 1:
        return first
    outer, inner = expression.operator, first.operator if isinstance(first, Call) else None
    if inner and (outer.inverse == inner.name or inner.inverse == outer.name):
        return first.operands[0]
    return expression if operands == expression.operands else Call(outer, operands)
