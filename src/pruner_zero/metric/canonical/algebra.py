"""Products of powers and sums of products, each written in one way."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from pruner_zero.metric.canonical.bounds import Bounds
from pruner_zero.metric.canonical.facts import bounds, is_tame
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal, call
from pruner_zero.metric.terminals import TERMINALS

Factors = dict[Expression, float]
Terms = dict[Expression, float]

ZERO, ONE = Constant(0.0), Constant(1.0)

_LARGEST_EXPONENT = 32.0


class Algebra:
    """Combines normal forms into normal forms, and remembers the parts of each.

    A form has the same values as the expression it replaces, in exact arithmetic and wherever
    they are finite. A product is a coefficient and bases with exponents. A base that may be
    negative has the exponent 1; only a base that is known to be positive has an exponent below
    0, so that no base is cancelled that may be zero. A sum is terms with coefficients and a
    constant. Parts whose values fp32 may not hold are neither cancelled nor taken apart.
    Source: sums of products, as in computer algebra; the care for fp32 is ours.
    """

    def __init__(self) -> None:
        self._factors: dict[Expression, tuple[float, Factors]] = {}
        self._terms: dict[Expression, tuple[Terms, float]] = {}
        self._bounds: dict[Expression, Bounds] = {}
        self._keys: dict[Expression, tuple[int, str]] = {}
        # Bases whose operands are not in normal form, see `Normal._rewritten`.
        self.kept: set[Expression] = set()

    def bounds(self, form: Expression) -> Bounds:
        """The bounds of a form's values."""
        return bounds(form, self._bounds)

    def factors(self, form: Expression) -> tuple[float, Factors]:
        """A normal form as its coefficient and bases with exponents."""
        if isinstance(form, Constant) and is_tame(form.value):
            return form.value, {}
        return self._factors.get(form) or (1.0, {form: 1.0})

    def signed(self, form: Expression) -> tuple[float, Expression]:
        """A normal form as the sign of its coefficient and the rest."""
        coefficient, factors = self.factors(form)
        if coefficient > 0:
            return 1.0, form
        return -1.0, self.product(-coefficient, factors)

    def terms(self, form: Expression) -> tuple[Terms, float]:
        """A normal form as products with coefficients, and a constant."""
        coefficient, factors = self.factors(form)
        if not factors:
            return {}, coefficient
        if form == ZERO:
            return {}, 0.0
        core = form if coefficient == 1 else self.product(1, factors)
        if core not in self._terms:
            return {core: coefficient}, 0.0
        terms, constant = self._terms[core]
        return {term: coefficient * c for term, c in terms.items()}, coefficient * constant

    def times(self, coefficient: float, form: Expression) -> Expression:
        """The form multiplied by a number."""
        if coefficient == 1:
            return form
        scale, factors = self.factors(form)
        return self.product(coefficient * scale, factors)

    def multiply(self, *forms: Expression) -> Expression:
        """The product of forms."""
        coefficient, factors = 1.0, Factors()
        for form in forms:
            scale, bases = self.factors(form)
            coefficient *= scale
            for base, exponent in bases.items():
                self.include(factors, base, exponent)
        return self.product(coefficient, factors)

    def product(self, coefficient: float, factors: Factors) -> Expression:
        """The normal form with these factors."""
        coefficient = rounded(coefficient)
        factors = {base: rounded(exponent) for base, exponent in factors.items() if exponent}
        if not is_tame(coefficient):
            self.include(factors, Constant(coefficient), 1.0)
            coefficient = 1.0
        if ZERO in factors:
            factors = {base: e for base, e in factors.items() if not self.bounds(base).tame}
            if len(factors) == 1:
                return ZERO
            coefficient, factors[ZERO] = 1.0, 1.0
        if not factors:
            return Constant(coefficient)
        if coefficient == 1 and list(factors.values()) == [1.0]:
            return next(iter(factors))
        form = self._written(coefficient, factors)
        self._factors[form] = coefficient, factors
        return form

    def power(self, form: Expression, exponent: float) -> Expression:
        """|form|^exponent."""
        form = self.absolute(form)
        if exponent == 0:
            return ONE
        if exponent == 1 or (form == ZERO and exponent > 0):
            return form
        usual = 1 / _LARGEST_EXPONENT <= abs(exponent) <= _LARGEST_EXPONENT
        if not usual or not self.bounds(form).tame:
            return call("power", form, Constant(exponent))
        coefficient, bases = self.factors(form)
        factors = Factors()
        for base, inner in bases.items():
            if exponent > 0 or self.bounds(base).low > 0:
                factors[base] = inner * exponent
            else:
                factors[call("power", base, Constant(-1))] = inner * -exponent
        return self.product(coefficient**exponent, factors)

    def absolute(self, form: Expression) -> Expression:
        """|form|."""
        coefficient, bases = self.factors(form)
        if coefficient > 0 and all(self.bounds(base).low >= 0 for base in bases):
            return form
        factors = Factors()
        for base, exponent in bases.items():
            magnitude = self._magnitude(base)
            if magnitude is base:
                self.include(factors, base, exponent)
            else:
                for part, inner in self.factors(magnitude)[1].items():
                    self.include(factors, part, inner)
        return self.product(abs(coefficient), factors)

    def reciprocal(self, form: Expression) -> Expression:
        """1 / form, with the quotient's guard at zero unless form is known to be positive."""
        coefficient, factors = self.factors(form)
        bounds = self.bounds(self.product(1, factors))
        if bounds.low > 0 and bounds.tame:
            return self.product(1 / coefficient, {b: -e for b, e in factors.items()})
        # The guard depends on the sign, and zero counts as positive: the sign stays inside.
        inner = self.product(math.copysign(1.0, coefficient), factors)
        return self.product(1 / abs(coefficient), {call("quotient", ONE, inner): 1.0})

    def add(self, parts: Iterable[tuple[float, Expression]]) -> Expression:
        """The sum of forms with coefficients."""
        terms, constant = Terms(), 0.0
        for scale, form in parts:
            inside, offset = self.terms(form)
            constant += scale * offset
            for term, coefficient in inside.items():
                terms[term] = terms.get(term, 0.0) + scale * coefficient
        return self.total(terms, constant)

    def total(self, terms: Terms, constant: float) -> Expression:
        """The normal form with these terms: common factors in front, the first term plain."""
        constant = rounded(constant)
        if constant and not is_tame(constant):
            opaque: Expression = Constant(constant)
            terms, constant = {**terms, opaque: terms.get(opaque, 0.0) + 1}, 0.0
        # A term with the coefficient 0 stays, as a product with 0, where it may not be finite.
        products = [self.times(c, term) for term, c in terms.items()]
        products = [term for term in products if term != ZERO]
        if not products:
            return Constant(constant)
        if len(products) == 1 and not constant:
            return products[0]
        split = [self.factors(term) for term in products]
        shared = set(split[0][1]).intersection(*(factors for _, factors in split))
        if shared and not constant:
            common = {base: min(factors[base] for _, factors in split) for base in shared}
            rests = [
                (c, self.product(1, {b: e - common.get(b, 0.0) for b, e in factors.items()}))
                for c, factors in split
            ]
            return self.multiply(self.product(1, common), self.add(rests))
        pairs = sorted(
            ((self.product(1, factors), coefficient) for coefficient, factors in split),
            key=lambda pair: self.key(pair[0]),
        )
        lead = pairs[0][1]
        if not all(is_tame(c / lead) for c in (*(c for _, c in pairs), constant) if c):
            lead = math.copysign(1.0, lead)
        form = self._monic(pairs, constant, lead)
        if self.bounds(form).high <= 0:
            lead = -lead
            form = self._monic(pairs, constant, lead)
        return self.product(lead, {form: 1.0})

    def _monic(
        self, pairs: Sequence[tuple[Expression, float]], constant: float, lead: float
    ) -> Expression:
        """The sum divided by the coefficient `lead`, written and remembered."""
        terms = {term: rounded(c / lead) for term, c in pairs}
        constant = rounded(constant / lead)
        parts = [self.times(c, term) for term, c in terms.items()]
        form = self._sum([*parts, Constant(constant)] if constant else parts)
        self._terms[form] = terms, constant
        return form

    def include(self, factors: Factors, base: Expression, exponent: float) -> None:
        """Multiply `factors` by base^exponent, in place.

        A base that may be negative and occurs twice becomes its squared magnitude.
        """
        if base in factors and self.bounds(base).low < 0:
            del factors[base]
            for part, inner in self.factors(self._magnitude(base))[1].items():
                self.include(factors, part, 2 * inner)
        else:
            factors[base] = factors.get(base, 0.0) + exponent

    def _magnitude(self, base: Expression) -> Expression:
        """|base| of a single base without a coefficient; `base` itself if it is never negative."""
        if self.bounds(base).low >= 0:
            return base
        if isinstance(base, Terminal):
            return Terminal(TERMINALS[base.name].magnitude or base.name)
        if base in self.kept:
            return call("abs", base)
        if _keeps_magnitudes(base):
            operand = base.operands[0]
            inner = self.absolute(operand)
            # Statistics depend on the shape of what they are taken over.
            return (
                Call(base.operator, (inner,)) if inner.shape is operand.shape else call("abs", base)
            )
        if called(base, "quotient"):
            return self.reciprocal(self.absolute(base.operands[1]))
        return call("abs", base)

    def _written(self, coefficient: float, factors: Factors) -> Expression:
        """The product as an expression, its parts in one order."""
        parts: list[Expression] = []
        below: list[Call] = []
        for base, exponent in factors.items():
            if exponent != 1:
                parts.append(call("power", base, Constant(exponent)))
            elif called(base, "quotient", "div") and base.operands[0] == ONE:
                below.append(base)
            else:
                parts.append(base)
        if not parts:
            parts, coefficient = [Constant(coefficient)], 1.0
        form = tree("mul", sorted(parts, key=self.key))
        for base in sorted(below, key=self.key):
            form = Call(base.operator, (form, base.operands[1]))
        if coefficient == 1:
            return form
        return call("neg", form) if coefficient == -1 else call("mul", Constant(coefficient), form)

    def _sum(self, parts: Sequence[Expression]) -> Expression:
        """The sum of ordered terms as a balanced tree, since depth is limited."""
        if len(parts) == 1:
            return parts[0]
        middle = (len(parts) + 1) // 2
        left, right = self._sum(parts[:middle]), self._sum(parts[middle:])
        if len(parts) - middle == 1:
            coefficient, factors = self.factors(right)
            if coefficient < 0:
                return call("sub", left, self.product(-coefficient, factors))
        return call("add", left, right)

    def key(self, form: Expression) -> tuple[int, str]:
        """The sort key of forms: by size, then by text, since hashes differ between processes."""
        key = self._keys.get(form)
        if key is None:
            if isinstance(form, Call):
                inside = ",".join(self.key(operand)[1] for operand in form.operands)
                key = form.size, f"{form.operator.name}({inside})"
            else:
                key = 1, str(form)
            self._keys[form] = key
        return key


def _keeps_magnitudes(form: Expression) -> TypeGuard[Call]:
    """Whether |f(x)| is f(|x|)."""
    if not isinstance(form, Call) or form.operator.arity > 1:
        return False
    operator = form.operator
    odd = operator.parity == "odd" and operator.sign == "keeps" and operator.reach == "element"
    return odd or operator.rescaling == "scale"


def called(form: Expression, *names: str) -> TypeGuard[Call]:
    """Whether the form is a call of one of these operators."""
    return isinstance(form, Call) and form.operator.name in names


def tree(name: str, parts: Sequence[Expression]) -> Expression:
    """The parts joined by an associative operator as a balanced tree, since depth is limited."""
    if len(parts) == 1:
        return parts[0]
    middle = (len(parts) + 1) // 2
    return call(name, tree(name, parts[:middle]), tree(name, parts[middle:]))


def rounded(value: float) -> float:
    """The value with twelve digits, so that 0.1 * 3 is 0.3; fp32 scores have seven."""
    return float(f"{value:.12g}")
