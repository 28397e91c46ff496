"""The skeleton of a metric: its canonical form apart from the exponents of its factors."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

from pruner_zero.choices import Group
from pruner_zero.metric.canonical.normal import factors, include, is_tame, product
from pruner_zero.metric.expression import Call, Expression, Terminal

# At the root only the ratios of exponents decide the order, so one exponent is set to 1: that of
# the first of these terminals, or of the first factor where the form has none of them. Where scores
# are summed over a unit, the power of the whole decides too.
_REFERENCES = ("W", "S")


class Skeleton:
    """A canonical form as a structure and the exponents of its factors.

    Every factor that cannot be negative has an exponent, 1 where none is written, except for one
    of the root's factors in all scopes but "unit". A form whose values fp32 may not hold has none.
    Source: constants apart from structure, as in symbolic regression (Kommenda et al. 2020, Genetic
    Programming and Evolvable Machines 21).
    """

    def __init__(self, form: Expression, scope: Group) -> None:
        self.form = form
        self.scope = scope

    @cached_property
    def structure(self) -> Expression:
        """The form with every exponent 1, or -1 for a divisor."""
        return self._moved(lambda exponent: 1.0)

    @cached_property
    def exponents(self) -> tuple[float, ...]:
        """The magnitudes of the exponents, in an order that only the structure decides."""
        seen: list[float] = []

        def note(exponent: float) -> float:
            seen.append(exponent)
            return exponent

        self._moved(note)
        return tuple(seen)

    def with_exponents(self, exponents: Sequence[float]) -> Expression:
        """The form with other exponents, which must be above 0.

        Raises ValueError unless there is one for each, PrunerZeroError beyond the limits of an
        expression.
        """
        if len(exponents) != len(self.exponents):
            raise ValueError(f"{len(self.exponents)} exponents are needed, not {len(exponents)}")
        following = iter(exponents)
        return self._moved(lambda _: next(following))

    def _moved(self, move: Callable[[float], float]) -> Expression:
        root = self.scope != "unit"
        return _moved(self.form, move, root) if is_tame(self.form) else self.form


def _moved(form: Expression, move: Callable[[float], float], root: bool = False) -> Expression:
    """The form with `move` applied to the exponent of every factor, in order."""
    coefficient, bases = factors(form)
    ordered = sorted(bases, key=_structure_text)
    reference = None
    if root and ordered and all(base.nonnegative for base in ordered):
        terminals = {base.name: base for base in ordered if isinstance(base, Terminal)}
        known = [terminals[name] for name in _REFERENCES if name in terminals]
        reference = (known or ordered)[0]
    scale = 1.0 if reference is None else abs(bases[reference])
    result: dict[Expression, float] = {}
    for base in ordered:
        exponent = bases[base] / scale
        if base.nonnegative and base != reference:
            exponent = math.copysign(move(abs(exponent)), exponent)
        include(result, _moved_inside(base, move), exponent)
    return product(coefficient, result)


def _moved_inside(base: Expression, move: Callable[[float], float]) -> Expression:
    """A factor with the exponents inside it moved."""
    if not isinstance(base, Call) or base.operator.exponent == "operand":
        return base
    return Call(base.operator, tuple(_moved(operand, move) for operand in base.operands))


# Every level of an expression sorts by the texts of all levels below it.
@lru_cache(maxsize=4096)
def _structure_text(base: Expression) -> str:
    return str(_moved_inside(base, lambda exponent: 1.0))
