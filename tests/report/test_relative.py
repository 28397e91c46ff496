"""The nearest known metric, and the distance that decides it."""

from functools import cache
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings

from pruner_zero.metric import NAMED, Call, Expression, call, parse
from pruner_zero.report.relative import nearest_relative, tree_distance
from pruner_zero.sparsity import Scope
from tests.metric.strategies import expressions

CHAINS = {"add", "mul", "min", "max"}
Node = tuple[str, tuple["Node", ...]]


def flat(tree: Expression) -> Node:
    """The tree with chains of one operator made one node."""
    if not isinstance(tree, Call):
        return str(tree), ()
    name = tree.operator.name
    below = [flat(operand) for operand in tree.operands]
    parts = [part[1] if name in CHAINS and part[0] == name else (part,) for part in below]
    return name, sum(parts, ())


@cache
def size(node: Node) -> int:
    return 1 + sum(map(size, node[1]))


@cache
def plain(a: Node, b: Node) -> int:
    """The distance by its definition: every way to pair the operands is tried."""
    (name, xs), (other, ys) = a, b
    if name == other and name not in CHAINS:
        ways = [sum(map(plain, xs, ys))]
    else:
        everything = sum(map(size, xs + ys))
        ways = [
            everything + sum(plain(x, y) - size(x) - size(y) for x, y in zip(some, order))  # noqa: B905
            for count in range(min(len(xs), len(ys)) + 1)
            for some in combinations(xs, count)
            for order in permutations(ys, count)
        ]
    return min(
        [
            (name != other) + min(ways),
            *(size(a) - size(x) + plain(x, b) for x in xs),
            *(size(b) - size(y) + plain(a, y) for y in ys),
        ]
    )


small = expressions().filter(lambda tree: tree.size <= 12)


@settings(deadline=None)
@given(small, small)
def test_the_distance_is_its_definition_in_both_directions(
    one: Expression, other: Expression
) -> None:
    expected = plain(flat(one), flat(other))
    assert tree_distance(one, other) == tree_distance(other, one) == expected


@given(small)
def test_one_more_operator_is_one_node_away(tree: Expression) -> None:
    assert tree_distance(tree, tree) == 0
    assert tree_distance(tree, call("neg", tree)) == 1


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("W * X", "X * W", 0),
        ("W * (G * X)", "(X * W) * G", 0),
        ("W - X", "X - W", 2),
        ("W * X", "W * G", 1),
        ("W * X", "W * X * G", 1),
        ("W", "W * X", 2),
        ("W * X + W * G", "W * X", 4),
        ("sqrt(W) * X", "W * X", 1),
    ],
)
def test_distances_that_one_can_count(one: str, other: str, distance: int) -> None:
    assert tree_distance(parse(one), parse(other)) == distance


@pytest.mark.parametrize(
    ("text", "scope", "name", "distance"),
    [
        ("sqr(X * W)", "row", "wanda", 0),
        ("abs(W)", "global", "magnitude", 0),
        ("W * G + X * W", "matrix", "gblm", 0),
        ("W * mms(G)^0.5", "row", "pruner-zero", 0),
        ("W * G", "row", "wanda", 1),
    ],
)
def test_the_nearest(text: str, scope: Scope, name: str, distance: int) -> None:
    relative = nearest_relative(parse(text), scope)
    assert relative is not None
    assert (relative.metric.name, relative.distance) == (name, distance)


@pytest.mark.parametrize("name", NAMED)
def test_each_known_metric_is_its_own_relative(name: str) -> None:
    relative = nearest_relative(parse(NAMED[name].text), "row")
    assert relative is not None
    assert (relative.metric.name, relative.distance) == (name, 0)


def test_none_is_sought_for_huge_trees() -> None:
    tree = parse("zsn(W)")
    for number in range(40):
        tree = call("max", call("tanh", tree), parse(f"zsn(X + S * {number + 2})"))
    assert nearest_relative(tree, "matrix") is None
