"""Normal forms of expressions, and forms up to factors and offsets that a comparison ignores."""

import math
from collections.abc import Iterator
from typing import Literal, TypeGuard

import torch

from pruner_zero.metric.canonical.algebra import ONE, ZERO, Algebra, Factors, called, rounded, tree
from pruner_zero.metric.canonical.facts import is_tame
from pruner_zero.metric.expression import Call, Constant, Expression, call
from pruner_zero.metric.operator import Operator, Shape

Over = Literal["row", "column", "matrix", "global"]

# fp32 rounds small values away beside a larger offset, and those of a higher growth beside any.
FINE_GROWTH = 2.0
_LARGEST_OFFSET = 10.0


class Normal(Algebra):
    """Rewrites expressions into normal forms with the same values.

    Factors and offsets that an operator ignores are left out of its operand, such as those in
    mms(2 * G + 1). Source: normal forms of computer algebra, with rules for these operators.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forms: dict[Expression, Expression] = {}

    def of(self, expression: Expression) -> Expression:
        """The normal form of any expression."""
        if not isinstance(expression, Call):
            return expression
        form = self._forms.get(expression)
        if form is None:
            form = self._forms[expression] = self._rewritten(expression)
        return form

    def _rewritten(self, expression: Call) -> Expression:
        operator = expression.operator
        if operator.name in ("add", "sub"):
            # All terms at once: a part of the sum may have a common factor that the sum lacks.
            return self.add((scale, self.of(term)) for scale, term in _summands(expression))
        operands = [self.of(operand) for operand in expression.operands]
        before = [operand.shape for operand in expression.operands]
        if operator.reach != "element" and before != [operand.shape for operand in operands]:
            # W - W + X is a matrix and X a row: statistics over the two differ. Keep the operand.
            self.kept.add(expression)
            return expression
        return self._apply(operator, *operands)

    def _apply(self, operator: Operator, *operands: Expression) -> Expression:
        """The normal form of an operator applied to normal forms."""
        x, y = operands[0], operands[-1]
        if operator.factor is not None:
            return self.times(operator.factor, x)
        if operator.exponent == "operand":
            assert isinstance(y, Constant)
            return self.power(x, y.value)
        if operator.exponent is not None:
            return self.power(x, operator.exponent)
        match operator.name:
            case "mul":
                return self.multiply(x, y)
            case "quotient":
                return self.multiply(x, self.reciprocal(y))
            case "div":
                # 1 / ‖y‖ is a number, and the norm depends on magnitudes only.
                scale, factors = self.factors(self.absolute(y))
                if not factors:
                    return self.times(1 / scale, x)
                norm = call("div", ONE, self.product(1, factors))
                return self.times(1 / scale, self.multiply(x, norm))
            case "min" | "max":
                return self._extreme(operator.name, x, y)
        if operator.arity > 1:
            ordered = sorted(operands, key=self.key) if operator.commutative else operands
            return Call(operator, tuple(ordered))
        return self._of_one(operator, x)

    def _of_one(self, operator: Operator, x: Expression) -> Expression:
        """The normal form of an operator of one operand, without what the operator ignores."""
        if operator.parity == "even":
            x = self.absolute(x)
        if operator.reach != "element" and operator.rescaling == "affine":
            x = self.affine(x, operator.reach)
        elif operator.reach != "element" and operator.degree == 0:
            x = self.scaled(x, operator.reach)
        sign = 1.0
        if operator.parity in ("odd", "complement"):
            sign, x = self.signed(x)
        value = self._folded(operator, x) or Call(operator, (x,))
        if operator.parity == "complement" and sign < 0:
            return self.add([(1.0, ONE), (-1.0, value)])
        return self.times(sign, value)

    def scaled(self, form: Expression, over: Over) -> Expression:
        """The form up to positive factors that are constant over a row, column or matrix."""
        coefficient, bases = self.factors(form)
        sign, factors = math.copysign(1.0, coefficient), Factors()
        for base, exponent in bases.items():
            bounds = self.bounds(base)
            if is_constant(base, over) and bounds.low > 0 and bounds.tame:
                continue
            if not (bounds.tame and _rescales(base, over, "scale")):
                self.include(factors, base, exponent)
                continue
            inner = self.scaled(self._operand(base), over)
            if exponent != 1:
                inner = self.power(inner, exponent)
            coefficient, inside = self.factors(inner)
            sign *= math.copysign(1.0, coefficient)
            for part, power in inside.items():
                self.include(factors, part, power)
        return self.product(sign, factors)

    def affine(self, form: Expression, over: Over) -> Expression:
        """The form up to positive factors and offsets that are constant over the group."""
        while True:
            rest = self.scaled(self._without_offset(form, over), over)
            sign, core = self.signed(rest)
            if _rescales(core, over, "affine") and self.bounds(core).tame:
                rest = self.times(sign, self._operand(core))
            if rest == form:
                return form
            form = rest

    def _folded(self, operator: Operator, form: Expression) -> Constant | None:
        """An operator's value of a number, where it has one."""
        if not isinstance(form, Constant) or (form != ZERO and not is_tame(form.value)):
            return None
        number = torch.tensor([[form.value]], dtype=torch.float64)
        value = operator.apply(number).item()
        return Constant(rounded(value)) if math.isfinite(value) else None

    def _operand(self, base: Call) -> Expression:
        """The normal form of what a base is computed from."""
        operand = base.operands[0]
        return self.of(operand) if base in self.kept else operand

    def _without_offset(self, form: Expression, over: Over) -> Expression:
        terms, constant = self.terms(form)
        kept = {term: c for term, c in terms.items() if not self._is_offset(term, c, over)}
        if not kept:
            return ZERO
        rest = self.total(kept, 0.0)
        lost = abs(constant) > _LARGEST_OFFSET or self.bounds(rest).growth > FINE_GROWTH
        return form if lost else rest

    def _is_offset(self, term: Expression, coefficient: float, over: Over) -> bool:
        bounds = self.bounds(term)
        scalar = isinstance(term, Call) and term.operator.shape_rule == "scalar"
        largest = abs(coefficient) * bounds.magnitudes[1]
        return (bounds.tame or scalar) and is_constant(term, over) and largest <= _LARGEST_OFFSET

    def _extreme(self, name: str, *forms: Expression) -> Expression:
        """The min or max of forms, flattened, without those that can never be the result."""
        distinct: set[Expression] = set()
        pending = [*forms]
        while pending:
            form = pending.pop()
            if called(form, name):
                pending.extend(form.operands)
            else:
                distinct.add(form)
        kept = sorted(distinct, key=self.key)
        for form in tuple(kept):
            bounds = self.bounds(form)
            others = [self.bounds(other) for other in kept if other is not form]
            if name == "min":
                beaten = any(other.high <= bounds.low for other in others)
            else:
                beaten = any(other.low >= bounds.high for other in others)
            if beaten and (bounds.tame or isinstance(form, Constant)):
                kept.remove(form)
        return tree(name, kept)


def is_constant(form: Expression, over: Over) -> bool:
    """Whether the form has one value over every row, column, matrix, or the whole model."""
    return not form.terminals if over == "global" else _is_one(form.shape, over)


def _is_one(shape: Shape, over: Over) -> bool:
    """Whether a value of this shape is one number over every row, column or matrix."""
    outputs, inputs = shape.value
    match over:
        case "row":
            return not inputs
        case "column":
            return not outputs
        case "matrix":
            return shape is Shape.SCALAR
    return False


def _rescales(base: Expression, over: Over, how: str) -> TypeGuard[Call]:
    """Whether it rescales its operand by statistics that are constant over the group."""
    if not isinstance(base, Call) or base.operator.rescaling != how:
        return False
    outputs, inputs = base.operands[0].shape.value
    reach = base.operator.reach
    statistic = Shape((outputs and reach == "row", inputs and reach == "column"))
    return _is_one(statistic, over)


def _summands(expression: Expression) -> Iterator[tuple[float, Expression]]:
    """The terms of a sum with their coefficients."""
    pending = [(1.0, expression)]
    while pending:
        scale, term = pending.pop()
        if called(term, "add", "sub"):
            pending.append((scale if term.operator.name == "add" else -scale, term.operands[1]))
            pending.append((scale, term.operands[0]))
        elif isinstance(term, Call) and term.operator.factor is not None:
            pending.append((scale * term.operator.factor, term.operands[0]))
        else:
            yield scale, term
