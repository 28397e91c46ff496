"""Random expressions, mutations of expressions, and the nearest products."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import combinations
from types import MappingProxyType
from typing import TypeVar

from numpy.random import Generator

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.space import (
    EXPONENT_STEP,
    EXPONENTS,
    HIGHEST,
    LOWEST,
    SearchSpace,
    is_constant,
    on_grid,
    positions,
)
from pruner_zero.metric.canonical.normal import factors, product
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.operators import OPERATORS, Operator, Shape

# None where no allowed child was found.
Child = Expression | None
Mutation = Callable[[Generator, Expression, SearchSpace], Child]

T = TypeVar("T")

# The most draws of a random expression and of a child, until the space allows it.
_DRAWS, _TRIES = 2000, 40
# The fewest and most levels of the random expressions that a search starts with.
START_DEPTH = (2, 4)
# The chance that a path of a grown tree ends before the limit of levels.
_LEAF = 0.3
# The exponent of a new relative factor.
_RELATIVE = 0.35


def random_expression(
    generator: Generator, space: SearchSpace, depth: tuple[int, int] = (2, 5)
) -> Expression:
    """A random expression that the space allows, and that gives a score for each weight.

    Ramped half and half: the limit of levels is drawn from `depth`, and whether every path
    reaches it (full) or may end earlier, below the root (grow).
    Raises PrunerZeroError where the space has no such expression.
    Source: Koza 1992.
    """
    for _ in range(_DRAWS):
        levels = min(int(generator.integers(depth[0], depth[1] + 1)), space.max_depth)
        full = bool(generator.random() < 0.5)
        expression = _random_tree(generator, space, levels, full, root=True)
        if space.allows(expression):
            return expression
    raise PrunerZeroError(
        f"no expression of {depth[0]} to {depth[1]} levels found within max_size "
        f"{space.max_size} and max_depth {space.max_depth}: allow more"
    )


def _random_tree(
    generator: Generator, space: SearchSpace, levels: int, full: bool, root: bool = False
) -> Expression:
    """A tree of any shape."""
    ends = not full and not root and bool(generator.random() < _LEAF)
    if levels == 1 or ends or not space.operators:
        return Terminal(pick(generator, space.terminals))
    operators = [OPERATORS[name] for name in space.operators]
    # Drawn evenly: first the number of operands, then the operator.
    count = pick(generator, sorted({operator.expressions for operator in operators}))
    operator = pick(generator, [each for each in operators if each.expressions == count])
    operands = [_random_tree(generator, space, levels - 1, full) for _ in range(count)]
    return apply_operator(generator, operator, *operands)


def plain_products(space: SearchSpace) -> Iterator[Expression]:
    """Every product of the space's first matrix, such as W, and other terminals, by their number.

    None where the space has no products.
    """
    first, *others = (
        Terminal(name)
        for shape in (Shape.MATRIX, Shape.ROW, Shape.COLUMN)
        for name in space.leaves[shape]
    )
    for count in range(1, len(others) + 1):
        for rest in combinations(others, count):
            expression = product(1.0, dict.fromkeys((first, *rest), 1.0))
            if space.allows(expression):
                yield expression


def priced(expression: Expression, space: SearchSpace) -> list[Expression]:
    """The odds of the scores in their rows, times the root of a statistic of the whole matrix.

    The expression then says which weights of a row go, and the statistic how many.
    """
    if "row_odds" not in space.operators:
        return []
    odds = Call(OPERATORS["row_odds"], (expression,))
    return [product(1.0, {odds: 1.0, Terminal(n): 0.5}) for n in space.leaves[Shape.SCALAR]]


def apply_operator(generator: Generator, operator: Operator, *operands: Expression) -> Call:
    """The operator applied to its operands; the exponent of a power is drawn."""
    if operator.exponent == "operand":
        return Call(operator, (*operands, Constant(pick(generator, EXPONENTS))))
    return Call(operator, operands)


def _tried(draw: Mutation) -> Mutation:
    """`draw`, repeated until the space allows the child and it is not the parent."""

    @wraps(draw)
    def mutate(generator: Generator, parent: Expression, space: SearchSpace) -> Child:
        for _ in range(_TRIES):
            child = draw(generator, parent, space)
            if child is not None and child != parent and space.allows(child):
                return child
        return None

    return mutate


@_tried
def grow(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """One more operator: around a node, with a small tree beside it where it takes two."""
    index, node = pick(generator, list(positions(expression)))
    operator = OPERATORS[pick(generator, space.operators)]
    operands = [_random_tree(generator, space, 2, False) for _ in range(operator.expressions)]
    operands[int(generator.integers(len(operands)))] = node
    return expression.replace(index, apply_operator(generator, operator, *operands))


@_tried
def shrink(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """An operator replaced by one of its operands."""
    if not (calls := _calls(expression)):
        return None
    index, node = pick(generator, calls)
    return expression.replace(index, pick(generator, operands_of(node)))


@_tried
def exponent(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """An exponent moved by a few steps of the grid, or a node raised to a power.

    Squares and roots count as powers here and become powers.
    """
    if "power" not in space.operators:
        return None
    index, node = pick(generator, list(positions(expression)))
    if isinstance(node, Call) and node.operator.family == "power":
        assert node.exponent is not None
        return expression.replace(index, node.operands[0] ** _moved(generator, node.exponent))
    return expression.replace(index, node ** pick(generator, EXPONENTS))


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {mutate.__name__: mutate for mutate in (grow, shrink, exponent)}
)


def neighbours(expression: Expression, space: SearchSpace) -> list[Expression]:
    """The products one step from `expression`: a factor less, one more, or one exchanged.

    First the `_relative_factors` are added. Any other new factor is a terminal. It takes the
    exponent of the factor that it replaces, added to its own exponent where the product has it
    already; an additional factor takes the exponent 0.5. An order depends mostly on how much each
    terminal counts, so these are the smallest steps.
    """
    coefficient, bases = factors(expression)
    made = {
        product(coefficient, {**bases, factor: _RELATIVE}): None
        for factor in _relative_factors(expression, space)
        if factor not in bases
    }
    terminals = [Terminal(name) for name in space.terminals]
    for base, exponent in [*bases.items(), (None, 0.5)]:
        rest = {other: power for other, power in bases.items() if other != base}
        if base is not None and rest:
            made[product(coefficient, rest)] = None
        for new in terminals:
            if base is not None or new not in rest:
                powers = {**rest, new: exponent + rest.get(new, 0.0)}
                made[product(coefficient, powers)] = None
    return [form for form in made if form != expression and space.allows(form)]


def _relative_factors(expression: Expression, space: SearchSpace) -> list[Expression]:
    """`expression` relative to its L2 norm over rows, columns and the matrix.

    A score of the whole model times a power of one of these lies between a comparison within the
    whole model and within rows. What is the same along the norm is left out of it.
    """
    _, bases = factors(expression)
    made: list[Expression] = []
    for name in ("row_normalize", "column_normalize", "matrix_normalize"):
        if name not in space.operators:
            continue
        operator = OPERATORS[name]
        varying = {
            base: exponent
            for base, exponent in bases.items()
            if not is_constant(operator, (base.shape,))
            and not (isinstance(base, Call) and base.operator.rescaling)
        }
        if varying:
            made.append(Call(operator, (product(1.0, varying),)))
    return made


def pick(generator: Generator, choices: Sequence[T]) -> T:
    """One of the choices, with equal chances."""
    return choices[int(generator.integers(len(choices)))]


def _calls(expression: Expression) -> list[tuple[int, Call]]:
    return [(index, node) for index, node in positions(expression) if isinstance(node, Call)]


def operands_of(node: Call) -> list[Expression]:
    """The operands without a power's exponent."""
    return list(node.operands[: node.operator.expressions])


def _moved(generator: Generator, exponent: float) -> float:
    """The exponent moved by some steps of the grid."""
    steps = int(generator.geometric(0.4)) * (1 if generator.random() < 0.5 else -1)
    return on_grid(min(max(exponent + steps * EXPONENT_STEP, LOWEST), HIGHEST))
