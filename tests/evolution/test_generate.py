"""Random expressions are typed, inside the space, and the same for the same generator."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.published import random_published_tree
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.evolution.variation import random_expression
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.operators import Shape
from tests.evolution.spaces import SPACES
from tests.metric.strategies import lightly

seeds = st.integers(0, 2**32)
spaces = st.sampled_from(SPACES)


@lightly
@given(seeds, spaces)
def test_every_expression_scores_weights_and_is_allowed(seed: int, space: SearchSpace) -> None:
    expression = random_expression(np.random.default_rng(seed), space)
    assert expression.shape is Shape.MATRIX
    # A product of a row and a column distinguishes weights too.
    assert expression.terminals & {"W", "G", "S", "O"}
    assert space.allows(expression)
    assert parse(str(expression)) == expression
    assert 2 <= expression.depth <= 5


@lightly
@given(seeds, spaces, st.sampled_from(Shape))
def test_every_shape_can_be_asked_for(seed: int, space: SearchSpace, shape: Shape) -> None:
    generator = np.random.default_rng(seed)
    if shape in space.least_depth:
        expression = random_expression(generator, space, shape, depth=(1, 3))
        assert space.allows(expression, shape)
    else:
        with pytest.raises(PrunerZeroError, match="can be made of these terminals"):
            random_expression(generator, space, shape)


def test_the_generator_alone_decides() -> None:
    def some() -> list[str]:
        generator = np.random.default_rng(5)
        return [str(random_expression(generator, SearchSpace())) for _ in range(20)]

    assert some() == some()
    assert len(set(some())) > 15


def test_every_leaf_operator_and_depth_occurs() -> None:
    generator, space = np.random.default_rng(0), SearchSpace()
    drawn = [random_expression(generator, space) for _ in range(1000)]
    used = sum((expression.operator_counts() for expression in drawn), Counter[str]())
    assert set(used) == set(space.operators)
    assert {expression.depth for expression in drawn} == {2, 3, 4, 5}
    assert all(sum(name in expression.terminals for expression in drawn) > 200 for name in "WGX")


def test_a_space_too_narrow_is_named() -> None:
    space = SearchSpace(operators=("add",), max_size=2)
    with pytest.raises(PrunerZeroError, match="max_size 2"):
        random_expression(np.random.default_rng(0), space)


def test_a_shape_that_takes_more_levels_than_there_are_is_refused() -> None:
    space = SearchSpace(terminals=("W", "X"), operators=("mul", "small", "abs"), max_depth=1)
    with pytest.raises(PrunerZeroError, match="no scalar of at most 1 levels can be made"):
        random_expression(np.random.default_rng(0), space, Shape.SCALAR)
    assert random_expression(np.random.default_rng(0), space) == parse("W")


def test_published_trees_are_the_released_generators() -> None:
    generator = np.random.default_rng(0)
    trees = [random_published_tree(generator, PUBLISHED_SPACE.terminals) for _ in range(4000)]
    assert {tree.depth for tree in trees} == {3, 4, 5}
    assert all(tree.size <= 31 for tree in trees)
    used = sum((tree.operator_counts() for tree in trees), Counter[str]())
    assert set(used) == set(PUBLISHED_SPACE.operators)
    assert max(used.values()) < 1.2 * min(used.values())
    only_inputs = sum(tree.terminals == {"X"} for tree in trees) / len(trees)
    assert only_inputs == pytest.approx(0.19, abs=0.02)
