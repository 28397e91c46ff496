"""Expressions rewritten without changing a value, and what a comparison does not see."""

import math
from collections.abc import Iterator
from typing import Literal

import torch

from pruner_zero.metric.algebra import ONE, ZERO, Algebra, Factors, called, rounded, tree
from pruner_zero.metric.bounds import is_tame
from pruner_zero.metric.expression import Call, Constant, Expression, call
from pruner_zero.metric.operators import OPERATORS, Shape

Over = Literal["row", "column", "matrix", "global"]

# fp32 rounds away what stands beside a larger offset, or has a higher growth beside any.
FINE_GROWTH = 2.0
_LARGEST_OFFSET = 10.0

_SHARES = ("row_share", "row_normalize", "column_share", "column_normalize")
_EXPONENTS = {"sqr": 2.0, "pow": 2.0, "sqrt": 0.5}


class Normal(Algebra):
    """Rewrites expressions into normal forms of equal value, and tells what is invisible.

    What a statistic does not see is left out of its operand, such as the factor and the offset
    in mms(2 * G + 1). Source: ours.
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
        name, reach = expression.operator.name, expression.operator.reach
        if name in ("add", "sub"):
            # All terms at once: parts of a sum could find a common factor that it lacks.
            return self.add((sign, self.of(term)) for sign, term in _summands(expression))
        operands = [self.of(operand) for operand in expression.operands]
        before = [operand.shape for operand in expression.operands]
        if reach != "element" and before != [operand.shape for operand in operands]:
            # Statistics over W - W + X count each entry of X once a row: leave it so.
            self.kept.add(expression)
            return expression
        return self.apply(name, *operands)

    def apply(self, name: str, *operands: Expression) -> Expression:
        """The normal form of an operator applied to normal forms."""
        x, y = operands[0], operands[-1]
        match name:
            case "skp":
                return x
            case "neg":
                return self.times(-1, x)
            case "abs":
                return self.absolute(x)
            case "sqr" | "pow" | "sqrt":
                return self.power(x, _EXPONENTS[name])
            case "power":
                assert isinstance(y, Constant)
                return self.power(x, y.value)
            case "mul":
                return self.multiply(x, y)
            case "quotient":
                return self.multiply(x, self.reciprocal(y))
            case "div":
                # The norm is of magnitudes, and one number: x times 1 / ‖y‖.
                scale, factors = self.factors(self.absolute(y))
                if not factors:
                    return self.times(1 / scale, x)
                norm = call("div", ONE, self.product(1, factors))
                return self.times(1 / scale, self.multiply(x, norm))
            case "min" | "max":
                return self._extreme(name, x, y)
        if len(operands) > 1:
            # An operator of a plug-in, which stays as it is.
            return call(name, *operands)
        match name:
            case "log" | "small":
                x = self.absolute(x)
                sign, core = 1.0, x if name == "log" else self.scaled(x, "matrix")
            case "mms" | "zsn":
                sign, core = self.signed(self.affine(x, "matrix"))
            case "row_share" | "row_normalize":
                sign, core = self.signed(self.scaled(x, "row"))
            case "column_share" | "column_normalize":
                sign, core = self.signed(self.scaled(x, "column"))
            case "tanh":
                sign, core = self.signed(x)
            case _:
                sign, core = 1.0, x
        value = self._folded(name, core) or call(name, core)
        if name == "mms" and sign < 0:
            # Upside down: min and max change places.
            return self.add([(1.0, ONE), (-1.0, value)])
        return self.times(sign, value)

    def scaled(self, form: Expression, over: Over) -> Expression:
        """The form up to positive factors that are constant over a row, column or matrix."""
        coefficient, bases = self.factors(form)
        sign, factors = math.copysign(1.0, coefficient), Factors()
        for base, exponent in bases.items():
            found = self.facts(base)
            if is_constant(base, over) and found.low > 0 and found.tame:
                continue
            if not (called(base, *_SHARES) and found.tame and _shares(base, over)):
                self.include(factors, base, exponent)
                continue
            inner = self.scaled(self._operand(base), over)
            if exponent != 1:
                inner = self.power(inner, exponent)
            coefficient, inside = self.factors(inner)
            sign *= math.copysign(1.0, coefficient)
            for one, power in inside.items():
                self.include(factors, one, power)
        return self.product(sign, factors)

    def affine(self, form: Expression, over: Over) -> Expression:
        """The form up to positive factors and offsets that are constant over the group."""
        while True:
            rest = self.scaled(self._without_offset(form, over), over)
            sign, core = self.signed(rest)
            if called(core, "mms", "zsn") and over in ("row", "matrix") and self.facts(core).tame:
                rest = self.times(sign, self._operand(core))
            if rest == form:
                return form
            form = rest

    def _folded(self, name: str, form: Expression) -> Constant | None:
        """An operator's value of a number, where it has one."""
        if not isinstance(form, Constant) or (form != ZERO and not is_tame(form.value)):
            return None
        number = torch.tensor([[form.value]], dtype=torch.float64)
        value = OPERATORS[name].apply(number).item()
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
        lost = abs(constant) > _LARGEST_OFFSET or self.facts(rest).growth > FINE_GROWTH
        return form if lost else rest

    def _is_offset(self, term: Expression, coefficient: float, over: Over) -> bool:
        low, high, _ = self.facts(term)
        known = self.facts(term).tame or called(term, "small")
        bound = abs(coefficient) * max(-low, high)
        return known and is_constant(term, over) and bound <= _LARGEST_OFFSET

    def _extreme(self, name: str, *forms: Expression) -> Expression:
        """The least or greatest, flattened, without what can never be it."""
        found: set[Expression] = set()
        for form in forms:
            pending = [form]
            while pending:
                one = pending.pop()
                if called(one, name):
                    pending.extend(one.operands)
                else:
                    found.add(one)
        kept = sorted(found, key=self.key)
        for one in tuple(kept):
            mine = self.facts(one)
            others = [self.facts(other) for other in kept if other is not one]
            beyond = (
                any(other.high <= mine.low for other in others)
                if name == "min"
                else any(mine.high <= other.low for other in others)
            )
            if beyond and (mine.tame or isinstance(one, Constant)):
                kept.remove(one)
        return tree(name, kept)


def is_constant(form: Expression, over: Over) -> bool:
    """Whether the form has one value over every row, column, matrix, or the whole model."""
    outputs, inputs = form.shape.value
    match over:
        case "row":
            return not inputs
        case "column":
            return not outputs
        case "matrix":
            return form.shape is Shape.SCALAR
        case "global":
            return not form.terminals


def _shares(base: Call, over: Over) -> bool:
    """Whether it divides its operand by a norm that is constant over the group."""
    outputs, inputs = base.operands[0].shape.value
    rows = base.operator.reach == "row"
    divisor = Shape((outputs, False)) if rows else Shape((False, inputs))
    if over == "row":
        return not divisor.value[1]
    if over == "column":
        return not divisor.value[0]
    return over == "matrix" and divisor is Shape.SCALAR


def _summands(expression: Expression) -> Iterator[tuple[float, Expression]]:
    """The terms of a sum with their signs."""
    pending = [(1.0, expression)]
    while pending:
        sign, one = pending.pop()
        if called(one, "add", "sub"):
            pending.append((sign if one.operator.name == "add" else -sign, one.operands[1]))
            pending.append((sign, one.operands[0]))
        elif called(one, "neg", "skp"):
            pending.append((-sign if one.operator.name == "neg" else sign, one.operands[0]))
        else:
            yield sign, one
