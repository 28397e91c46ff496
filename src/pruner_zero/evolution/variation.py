"""Children of expressions: crossover, mutations, and the nearest products."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import product as pairs
from types import MappingProxyType
from typing import TypeVar

from numpy.random import Generator

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.generate import (
    apply_operator,
    random_exponent,
    random_expression,
)
from pruner_zero.evolution.space import (
    EXPONENT_STEP,
    HIGHEST,
    LOWEST,
    SearchSpace,
    on_grid,
    positions,
)
from pruner_zero.metric.canonical.normal import factors, product
from pruner_zero.metric.expression import Call, Expression, Terminal
from pruner_zero.metric.operators import OPERATORS, Shape

# None where no allowed child was found.
Child = Expression | None
Mutation = Callable[[Generator, Expression, SearchSpace], Child]

T = TypeVar("T")

_TRIES = 20


def _allowed(
    draw: Callable[[], Expression | None], parent: Expression, space: SearchSpace
) -> Expression | None:
    """The first draw that the space allows and that is not the parent; None after some tries."""
    for _ in range(_TRIES):
        try:
            child = draw()
        except PrunerZeroError:
            # The space is so narrow that no random subtree fits into it.
            return None
        if child is not None and child != parent and space.allows(child):
            return child
    return None


def _tried(draw: Mutation) -> Mutation:
    """`draw`, repeated until the space allows the child and it is not the parent."""

    @wraps(draw)
    def mutate(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
        return _allowed(lambda: draw(generator, expression, space), expression, space)

    return mutate


def crossover(
    generator: Generator, mother: Expression, father: Expression, space: SearchSpace
) -> Child:
    """The mother with one subtree replaced by one of the father's, of the same shape.

    The new subtree has at most twice the nodes of the old one and one more, so that children do
    not outgrow their parents. None where no allowed child was found.
    Source: size-fair crossover (Langdon 2000); strongly typed programs (Montana 1995).
    """
    subtrees = [node for _, node in positions(father)]

    def draw() -> Child:
        index, old = pick(generator, list(positions(mother)))
        fair = [new for new in subtrees if new.shape is old.shape and new.size <= 2 * old.size + 1]
        return mother.replace(index, pick(generator, fair)) if fair else None

    return _allowed(draw, mother, space)


@_tried
def grow(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """One more operator: around a node, with a small tree beside it, or in place of a leaf."""
    index, node = pick(generator, list(positions(expression)))
    if not node.operands and generator.random() < 0.3:
        tree = random_expression(generator, space, node.shape, depth=(2, 3))
        return expression.replace(index, tree)
    around = [form for form in space.forms[node.shape] if node.shape in form.operands]
    if not around:
        return None
    form = pick(generator, around)
    slot = pick(generator, [i for i, shape in enumerate(form.operands) if shape is node.shape])
    operands = [
        node if i == slot else random_expression(generator, space, shape, depth=(1, 2))
        for i, shape in enumerate(form.operands)
    ]
    return expression.replace(index, apply_operator(generator, form.operator, *operands))


@_tried
def shrink(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """An operator replaced by one of its operands."""
    if not (calls := _calls(expression)):
        return None
    index, node = pick(generator, calls)
    return expression.replace(index, pick(generator, operands_of(node)))


@_tried
def replace(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """A subtree replaced by a random one of the same shape, at most one level deeper."""
    index, node = pick(generator, list(positions(expression)))
    depth = (1, min(node.depth + 1, 4))
    return expression.replace(index, random_expression(generator, space, node.shape, depth))


@_tried
def operator(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """An operator replaced by another of equal arity; a power counts as unary."""
    if not (calls := _calls(expression)):
        return None
    index, node = pick(generator, calls)
    names = [name for name in of_arity(space, node) if name != node.operator.name]
    if not names:
        return None
    symbol = OPERATORS[pick(generator, names)]
    return expression.replace(index, apply_operator(generator, symbol, *operands_of(node)))


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
    return expression.replace(index, node ** random_exponent(generator).value)


@_tried
def terminal(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """A leaf replaced by another terminal, of any shape that leaves the result a matrix."""
    leaves = [index for index, node in positions(expression) if not node.operands]
    index = pick(generator, leaves)
    return expression.replace(index, Terminal(pick(generator, list(space.terminals))))


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        mutation.__name__: mutation
        for mutation in [grow, shrink, replace, operator, exponent, terminal]
    }
)


def neighbours(expression: Expression, space: SearchSpace) -> list[Expression]:
    """The products one step from `expression`: a factor less, one more, or one exchanged.

    A new factor is a terminal, or the product of a column and a row of statistics, such as O * X,
    which has a value for each weight as a matrix has. A new factor takes the exponent of the factor
    that it replaces, added to its own exponent where the product has it already; an additional
    factor takes the exponent 0.5. An order depends mostly on how much each terminal counts, so
    these are the smallest steps.
    """
    coefficient, bases = factors(expression)
    leaves = space.leaves
    outer = pairs(leaves[Shape.COLUMN], leaves[Shape.ROW])
    alternatives = [*((name,) for name in space.terminals), *outer]
    made: dict[Expression, None] = {}
    for base, exponent in [*bases.items(), (None, 0.5)]:
        rest = {other: power for other, power in bases.items() if other != base}
        for names in ((), *alternatives):
            new: dict[Expression, float] = {Terminal(name): exponent for name in names}
            if base is None and not rest.keys().isdisjoint(new):
                continue
            powers = {factor: power + rest.get(factor, 0.0) for factor, power in new.items()}
            if rest or new:
                made[product(coefficient, {**rest, **powers})] = None
    return [form for form in made if form != expression and space.allows(form)]


def pick(generator: Generator, choices: Sequence[T]) -> T:
    """One of the choices, with equal chances."""
    return choices[int(generator.integers(len(choices)))]


def _calls(expression: Expression) -> list[tuple[int, Call]]:
    return [(index, node) for index, node in positions(expression) if isinstance(node, Call)]


def of_arity(space: SearchSpace, node: Call) -> list[str]:
    """The operators of the space that take as many expressions as that of the node."""
    count = node.operator.expressions
    return [name for name in space.operators if OPERATORS[name].expressions == count]


def operands_of(node: Call) -> list[Expression]:
    """The operands without a power's exponent."""
    return list(node.operands[: node.operator.expressions])


def _moved(generator: Generator, exponent: float) -> float:
    """The exponent moved by some steps of the grid."""
    steps = int(generator.geometric(0.4)) * (1 if generator.random() < 0.5 else -1)
    return on_grid(min(max(exponent + steps * EXPONENT_STEP, LOWEST), HIGHEST))
