"""Random expressions, typed by shape."""

from numpy.random import Generator

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.space import EXPONENTS, SearchSpace
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.operators import OPERATORS, Operator, Shape

_TRIES = 1000

# The share of products among the expressions that a search starts with, and the fewest and most
# levels of the other trees.
_PRODUCTS, _START_DEPTH = 0.5, (2, 4)

# The chance that a path of a grown tree ends before the limit of levels.
_LEAF = 0.3

# The chance that a factor of a product is normalised.
_NORMALISED = 0.3


def random_expression(
    generator: Generator,
    space: SearchSpace,
    shape: Shape = Shape.MATRIX,
    depth: tuple[int, int] = (2, 5),
) -> Expression:
    """A random expression of the given shape that the space allows.

    Ramped half and half: the limit of levels is drawn from `depth`, and whether every path
    reaches it (full) or may end earlier, below the root (grow). Every subtree is generated for
    its shape, so that every expression gives a score for each weight.
    Raises PrunerZeroError where the space has no such expression.
    Source: ramped half and half (Koza 1992); strongly typed programs (Montana 1995).
    """
    least = space.least_depth.get(shape)
    if least is None or least > space.max_depth:
        raise PrunerZeroError(
            f"no {shape.name.lower()} of at most {space.max_depth} levels can be made of these "
            "terminals"
        )
    for _ in range(_TRIES):
        levels = int(generator.integers(max(least, depth[0]), max(least, *depth) + 1))
        full = bool(generator.random() < 0.5)
        expression = _subtree(generator, space, shape, min(levels, space.max_depth), full, root=1)
        if space.allows(expression, shape):
            return expression
    raise PrunerZeroError(
        f"no expression of {depth[0]} to {depth[1]} levels found within max_size "
        f"{space.max_size} and max_depth {space.max_depth}: allow more"
    )


def random_start(generator: Generator, space: SearchSpace) -> Expression:
    """A `random_product`, or with equal chance a random tree; the start of a search.

    Raises PrunerZeroError as `random_expression` does.
    """
    draw = random_product if generator.random() < _PRODUCTS else random_expression
    return draw(generator, space, depth=_START_DEPTH)


def random_product(
    generator: Generator, space: SearchSpace, depth: tuple[int, int] = (2, 4)
) -> Expression:
    """A random product of powers of different leaves, some of them normalised first.

    Only the order of scores matters, and it depends mostly on how much each terminal counts, which
    the exponents of a product express. Each leaf may be normalised and raised to a power, and so
    may partial products be normalised. Where the space does not allow a product, a
    `random_expression` of this `depth`. Source: ours.
    """
    matrices = space.leaves[Shape.MATRIX]
    vectors = (*space.leaves[Shape.ROW], *space.leaves[Shape.COLUMN])
    for _ in range(_TRIES if "mul" in space.operators else 0):
        first = matrices[generator.integers(len(matrices))]
        rest = [name for name in (*matrices, *vectors) if name != first]
        generator.shuffle(rest)
        expression = _factor(generator, space, first)
        for name in rest[: generator.integers(1, 3)]:
            expression = Call(OPERATORS["mul"], (expression, _factor(generator, space, name)))
            if generator.random() < _NORMALISED / 2:
                expression = _normalised(generator, space, expression)
        if expression.operands and space.allows(expression):
            return expression
    return random_expression(generator, space, depth=depth)


def _factor(generator: Generator, space: SearchSpace, name: str) -> Expression:
    factor: Expression = Terminal(name)
    if generator.random() < _NORMALISED:
        factor = _normalised(generator, space, factor)
    if "power" in space.operators and generator.random() < 0.5:
        factor = apply_operator(generator, OPERATORS["power"], factor)
    return factor


def _normalised(generator: Generator, space: SearchSpace, expression: Expression) -> Expression:
    """The expression normalised by row, column or matrix; unchanged where the space cannot."""
    operators = [
        form.operator
        for form in space.forms[expression.shape]
        if form.operands == (expression.shape,)
        and form.operator.reach != "element"
        and form.operator.sign != "any"
    ]
    if not operators:
        return expression
    return Call(operators[generator.integers(len(operators))], (expression,))


def random_exponent(generator: Generator) -> Constant:
    """One of the exponents of a new power."""
    return Constant(EXPONENTS[generator.integers(len(EXPONENTS))])


def apply_operator(generator: Generator, operator: Operator, *operands: Expression) -> Call:
    """The operator applied to its operands; the exponent of a power is drawn."""
    if operator.exponent == "operand":
        return Call(operator, (*operands, random_exponent(generator)))
    return Call(operator, operands)


def _subtree(
    generator: Generator, space: SearchSpace, shape: Shape, levels: int, full: bool, root: int = 0
) -> Expression:
    choices = space.choices[shape, levels]
    leaves = space.leaves[shape]
    wants_leaf = not full and not root and bool(generator.random() < _LEAF)
    if leaves and (not choices or wants_leaf):
        return Terminal(leaves[generator.integers(len(leaves))])
    # Drawn evenly: first the arity, then the operator, then the shapes of its operands.
    operators = choices[generator.integers(len(choices))]
    forms = operators[generator.integers(len(operators))]
    form = forms[generator.integers(len(forms))]
    operands = [_subtree(generator, space, operand, levels - 1, full) for operand in form.operands]
    return apply_operator(generator, form.operator, *operands)
