"""Children of expressions: crossover and mutations, general ones and those of the paper."""

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
from pruner_zero.metric import OPERATORS, Call, Expression, Shape, Terminal
from pruner_zero.metric.canonical import factors, product

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
        index, old = _pick(generator, list(positions(mother)))
        fair = [new for new in subtrees if new.shape is old.shape and new.size <= 2 * old.size + 1]
        return mother.replace(index, _pick(generator, fair)) if fair else None

    return _allowed(draw, mother, space)


@_tried
def grow(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """One more operator: around a node, with a small tree beside it, or in place of a leaf."""
    index, node = _pick(generator, list(positions(expression)))
    if not node.operands and generator.random() < 0.3:
        tree = random_expression(generator, space, node.shape, depth=(2, 3))
        return expression.replace(index, tree)
    around = [form for form in space.forms[node.shape] if node.shape in form.operands]
    if not around:
        return None
    form = _pick(generator, around)
    place = _pick(generator, [i for i, shape in enumerate(form.operands) if shape is node.shape])
    operands = [
        node if i == place else random_expression(generator, space, shape, depth=(1, 2))
        for i, shape in enumerate(form.operands)
    ]
    return expression.replace(index, apply_operator(generator, form.operator, *operands))


@_tried
def shrink(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """An operator replaced by one of its operands."""
    if not (calls := _calls(expression)):
        return None
    index, node = _pick(generator, calls)
    return expression.replace(index, _pick(generator, _operands(node)))


@_tried
def hoist(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """A subtree becomes the whole expression."""
    parts = [
        node for index, node in positions(expression) if index and node.shape is expression.shape
    ]
    return _pick(generator, parts) if parts else None


@_tried
def replace(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """A subtree replaced by a random one of the same shape, at most one level deeper."""
    index, node = _pick(generator, list(positions(expression)))
    depth = (1, min(node.depth + 1, 4))
    return expression.replace(index, random_expression(generator, space, node.shape, depth))


@_tried
def swap(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """Two subtrees, neither inside the other, exchanged, except where that changes nothing."""
    nodes = list(positions(expression))
    alike = {
        (index + 1, index + 1 + node.operands[0].size)
        for index, node in _calls(expression)
        if node.operator.commutative
    }
    pairs = [
        ((i, left), (j, right))
        for i, left in nodes
        for j, right in nodes
        if i + left.size <= j and left != right and (i, j) not in alike
    ]
    if not pairs:
        return None
    (i, left), (j, right) = _pick(generator, pairs)
    # The later subtree first, so that the index of the earlier one stays valid.
    return expression.replace(j, left).replace(i, right)


@_tried
def operator(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """An operator replaced by another of equal arity; a power counts as unary."""
    if not (calls := _calls(expression)):
        return None
    index, node = _pick(generator, calls)
    names = [name for name in _of_arity(space, node) if name != node.operator.name]
    if not names:
        return None
    symbol = OPERATORS[_pick(generator, names)]
    return expression.replace(index, apply_operator(generator, symbol, *_operands(node)))


@_tried
def exponent(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """An exponent moved by a few steps of the grid, or a node raised to a power.

    Squares and roots count as powers here and become powers.
    """
    if "power" not in space.operators:
        return None
    index, node = _pick(generator, list(positions(expression)))
    if isinstance(node, Call) and node.operator.family == "power":
        assert node.exponent is not None
        return expression.replace(index, node.operands[0] ** _moved(generator, node.exponent))
    return expression.replace(index, node ** random_exponent(generator).value)


@_tried
def terminal(generator: Generator, expression: Expression, space: SearchSpace) -> Child:
    """A leaf replaced by another terminal, of any shape that leaves the result a matrix."""
    leaves = [index for index, node in positions(expression) if not node.operands]
    index = _pick(generator, leaves)
    return expression.replace(index, Terminal(_pick(generator, list(space.terminals))))


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        mutation.__name__: mutation
        for mutation in [grow, shrink, hoist, replace, swap, operator, exponent, terminal]
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


def published_crossover(
    generator: Generator, mother: Expression, father: Expression, space: SearchSpace
) -> Child:
    """The mother with any subtree replaced by any of the father's, regardless of shapes.

    None where the child is larger or deeper than the space allows. Source: Dong 2024.
    """
    index, _ = _pick(generator, list(positions(mother)))
    _, subtree = _pick(generator, list(positions(father)))
    child = mother.replace(index, subtree)
    return child if child.size <= space.max_size and child.depth <= space.max_depth else None


def node_mutation(generator: Generator, expression: Expression, space: SearchSpace) -> Expression:
    """One node takes another symbol of the same arity.

    The new symbol can be the old one. Source: Dong 2024, which does not say how many nodes.
    """
    index, node = _pick(generator, list(positions(expression)))
    if not isinstance(node, Call):
        return expression.replace(index, Terminal(_pick(generator, list(space.terminals))))
    alike = _of_arity(space, node)
    symbol = OPERATORS[_pick(generator, alike)] if alike else node.operator
    return expression.replace(index, apply_operator(generator, symbol, *_operands(node)))


def _pick(generator: Generator, choices: Sequence[T]) -> T:
    return choices[int(generator.integers(len(choices)))]


def _calls(expression: Expression) -> list[tuple[int, Call]]:
    return [(index, node) for index, node in positions(expression) if isinstance(node, Call)]


def _of_arity(space: SearchSpace, node: Call) -> list[str]:
    """The operators of the space that take as many expressions as that of the node."""
    count = node.operator.expressions
    return [name for name in space.operators if OPERATORS[name].expressions == count]


def _operands(node: Call) -> list[Expression]:
    """The operands without a power's exponent."""
    return list(node.operands[: node.operator.expressions])


def _moved(generator: Generator, exponent: float) -> float:
    """The exponent moved by some steps of the grid."""
    steps = int(generator.geometric(0.4)) * (1 if generator.random() < 0.5 else -1)
    return on_grid(min(max(exponent + steps * EXPONENT_STEP, LOWEST), HIGHEST))
