"""Children of expressions: crossover and mutations that keep the shape, and the published ones."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from numpy.random import Generator

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.generate import (
    apply_operator,
    random_constant,
    random_exponent,
    random_expression,
)
from pruner_zero.evolution.space import SearchSpace, positions
from pruner_zero.metric import (
    OPERATORS,
    Call,
    Constant,
    Expression,
    Terminal,
)

Mutation = Callable[[Generator, Expression, SearchSpace], Expression | None]

T = TypeVar("T")

_TRIES = 20


def crossover(
    generator: Generator, mother: Expression, father: Expression, space: SearchSpace
) -> Expression | None:
    """The mother with one subtree exchanged for one of the father's, of the same shape.

    The new part has at most twice the nodes of the old one and one more, so that children do
    not outgrow their parents. None where no allowed child was found.
    Source: Langdon's size-fair crossover; typing ours.
    """
    gifts = [node for _, node in positions(father)]

    def one() -> Expression | None:
        index, old = _pick(generator, list(positions(mother)))
        fair = [gift for gift in gifts if gift.shape is old.shape and gift.size <= 2 * old.size + 1]
        return mother.replace(index, _pick(generator, fair)) if fair else None

    return _allowed(one, mother, space)


def grow(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """One more operator: around a node, with a small tree beside it, or in place of a leaf."""

    def one() -> Expression | None:
        index, node = _pick(generator, list(positions(expression)))
        if not node.operands and generator.random() < 0.3:
            return expression.replace(
                index, random_expression(generator, space, node.shape, depth=(2, 3))
            )
        around = [form for form in space.forms[node.shape] if node.shape in form.operands]
        if not around:
            return None
        form = _pick(generator, around)
        places = [i for i, shape in enumerate(form.operands) if shape is node.shape]
        place = _pick(generator, places)
        operands = [
            node if i == place else random_expression(generator, space, shape, depth=(1, 2))
            for i, shape in enumerate(form.operands)
        ]
        return expression.replace(index, apply_operator(generator, space, form.operator, *operands))

    return _allowed(one, expression, space)


def shrink(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """An operator replaced by one of its operands."""
    calls = _calls(expression)

    def one() -> Expression | None:
        index, node = _pick(generator, calls)
        return expression.replace(index, _pick(generator, _operands(node)))

    return _allowed(one, expression, space) if calls else None


def hoist(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """A subtree becomes the whole."""
    parts = [
        node for index, node in positions(expression) if index and node.shape is expression.shape
    ]
    return _allowed(lambda: _pick(generator, parts), expression, space) if parts else None


def replace(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """A subtree exchanged for a random one of the same shape, at most one level deeper."""

    def one() -> Expression | None:
        index, node = _pick(generator, list(positions(expression)))
        depth = (1, min(node.depth + 1, 4))
        return expression.replace(index, random_expression(generator, space, node.shape, depth))

    return _allowed(one, expression, space)


def swap(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """Two subtrees, neither inside the other, change places: where that can matter."""
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

    def one() -> Expression | None:
        (i, left), (j, right) = _pick(generator, pairs)
        # The later one first: the index of the earlier one does not move.
        return expression.replace(j, left).replace(i, right)

    return _allowed(one, expression, space) if pairs else None


def operator(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """An operator exchanged for another of equal arity; a power counts as unary."""
    calls = _calls(expression)

    def one() -> Expression | None:
        index, node = _pick(generator, calls)
        others = [
            OPERATORS[name]
            for name in space.operators
            if name != node.operator.name
            and OPERATORS[name].expressions == node.operator.expressions
        ]
        if not others:
            return None
        other = _pick(generator, others)
        return expression.replace(index, apply_operator(generator, space, other, *_operands(node)))

    return _allowed(one, expression, space) if calls else None


def exponent(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """An exponent moved by a few steps of the grid, or a node raised to a power.

    Squares and roots count as powers here and become ones.
    """
    if "power" not in space.operators:
        return None

    def one() -> Expression | None:
        index, node = _pick(generator, list(positions(expression)))
        if isinstance(node, Call) and node.operator.kind == "power":
            assert node.exponent is not None
            moved = _moved(generator, node.exponent, space)
            return expression.replace(index, node.operands[0] ** moved)
        if not space.exponents:
            return None
        return expression.replace(index, node ** random_exponent(generator, space).value)

    return _allowed(one, expression, space)


def terminal(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """A leaf exchanged for another terminal, of any shape that leaves the result a matrix."""
    leaves = [(index, node) for index, node in positions(expression) if not node.operands]

    def one() -> Expression | None:
        index, _ = _pick(generator, leaves)
        return expression.replace(index, Terminal(_pick(generator, list(space.terminals))))

    return _allowed(one, expression, space)


def constant(generator: Generator, expression: Expression, space: SearchSpace) -> Expression | None:
    """A numeric leaf scaled by a random factor near 1, rarely drawn anew or negated."""
    numbers = [(i, node) for i, node in positions(expression) if isinstance(node, Constant)]

    def one() -> Expression | None:
        index, node = _pick(generator, numbers)
        chance = generator.random()
        if chance < 0.1 or node.value == 0:
            return expression.replace(index, random_constant(generator))
        factor = -1.0 if chance < 0.2 else float(generator.lognormal(0, 0.5))
        return expression.replace(index, Constant(float(f"{node.value * factor:.3g}")))

    return _allowed(one, expression, space) if numbers and space.constants else None


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        "grow": grow,
        "shrink": shrink,
        "hoist": hoist,
        "replace": replace,
        "swap": swap,
        "operator": operator,
        "exponent": exponent,
        "terminal": terminal,
        "constant": constant,
    }
)


def published_crossover(
    generator: Generator, mother: Expression, father: Expression, space: SearchSpace
) -> Expression | None:
    """The mother with any subtree exchanged for any of the father's, shapes disregarded.

    None where the child is larger or deeper than the space permits. Source: the paper.
    """
    index, _ = _pick(generator, list(positions(mother)))
    _, gift = _pick(generator, list(positions(father)))
    child = mother.replace(index, gift)
    return child if child.size <= space.max_size and child.depth <= space.max_depth else None


def node_mutation(
    generator: Generator,
    expression: Expression,
    space: SearchSpace,
    probability: float | None = None,
) -> Expression:
    """Nodes take another symbol of the same arity, each with `probability`, or exactly one.

    A symbol can be drawn anew unchanged. Source: the paper, which does not say how many.
    """
    nodes = list(positions(expression))
    if probability is None:
        chosen = [_pick(generator, nodes)]
    else:
        chosen = [one for one in nodes if generator.random() < probability]
    # Symbols keep the arity, so that no index moves.
    for index, _ in chosen:
        node = expression.at(index)
        if isinstance(node, Call):
            alike = [
                name
                for name in space.operators
                if OPERATORS[name].expressions == node.operator.expressions
            ]
            symbol = OPERATORS[_pick(generator, alike)] if alike else node.operator
            new: Expression = apply_operator(generator, space, symbol, *_operands(node))
        else:
            new = Terminal(_pick(generator, list(space.terminals)))
        expression = expression.replace(index, new)
    return expression


def _allowed(
    one: Callable[[], Expression | None], parent: Expression, space: SearchSpace
) -> Expression | None:
    """The first of some tries that the space allows and that is not the parent."""
    for _ in range(_TRIES):
        try:
            child = one()
        except PrunerZeroError:
            # A space so narrow that no random part fits into it.
            return None
        if child is not None and child != parent and space.allows(child) is None:
            return child
    return None


def _pick(generator: Generator, choices: Sequence[T]) -> T:
    return choices[int(generator.integers(len(choices)))]


def _calls(expression: Expression) -> list[tuple[int, Call]]:
    return [(index, node) for index, node in positions(expression) if isinstance(node, Call)]


def _operands(node: Call) -> list[Expression]:
    """The operands without a power's exponent."""
    return list(node.operands[: node.operator.expressions])


def _moved(generator: Generator, exponent: float, space: SearchSpace) -> float:
    """The exponent some steps away, small steps more often; another listed one without a grid."""
    steps = int(generator.geometric(0.4)) * (1 if generator.random() < 0.5 else -1)
    moved = space.on_grid(exponent + steps * space.exponent_step)
    if moved is None:
        return random_exponent(generator, space).value
    low, high = space.exponent_range
    return min(max(moved, low), high)
