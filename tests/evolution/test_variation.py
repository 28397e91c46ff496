"""Variation keeps expressions inside the space, and every operation does what its name says."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.variation import (
    MUTATIONS,
    neighbours,
    random_expression,
)
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.expression import Expression
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.operators import Shape
from tests.evolution.spaces import SPACES, WIDE
from tests.metric.strategies import lightly

seeds = st.integers(0, 2**32)
spaces = st.sampled_from(SPACES)
RANGE = range(60)


def children(name: str, text: str, space: SearchSpace | None = None) -> set[str]:
    """The results of a mutation of the expression with many generators."""
    mutants = (
        MUTATIONS[name](np.random.default_rng(seed), parse(text), space or SearchSpace())
        for seed in RANGE
    )
    return {str(child) for child in mutants if child is not None}


def check_child(child: Expression | None, space: SearchSpace) -> None:
    if child is not None:
        assert child.shape is Shape.MATRIX
        assert space.allows(child)
        assert parse(str(child)) == child


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


def test_a_space_without_such_an_expression_is_named() -> None:
    space = SearchSpace(operators=("add",), max_size=2)
    with pytest.raises(PrunerZeroError, match="max_size 2"):
        random_expression(np.random.default_rng(0), space)


def test_every_leaf_operator_and_depth_occurs() -> None:
    generator, space = np.random.default_rng(0), SearchSpace()
    drawn = [random_expression(generator, space) for _ in range(1000)]
    used = sum((expression.operator_counts() for expression in drawn), Counter[str]())
    assert set(used) == set(space.operators)
    assert {expression.depth for expression in drawn} == {2, 3, 4, 5}
    assert all(sum(name in expression.terminals for expression in drawn) > 200 for name in "WGX")


@lightly
@given(seeds, spaces, st.sampled_from(sorted(MUTATIONS)))
def test_mutants_stay_inside_the_space(seed: int, space: SearchSpace, name: str) -> None:
    generator = np.random.default_rng(seed)
    expression = random_expression(generator, space)
    child = MUTATIONS[name](generator, expression, space)
    check_child(child, space)
    assert child != expression


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_the_generator_alone_decides(name: str) -> None:
    expression = parse("row_share(W) * X^0.5 + column_share(W - S) * G")
    once, again = (
        [MUTATIONS[name](np.random.default_rng(seed), expression, WIDE) for seed in RANGE]
        for _ in range(2)
    )
    assert once == again
    assert any(child is not None for child in once)


def test_grow_keeps_a_part_of_the_expression() -> None:
    for text in children("grow", "W * X"):
        child = parse(text)
        assert child.size > 3
        assert child.leaf_counts()["W"] + child.leaf_counts()["X"] >= 1


def test_shrink_puts_an_operand_in_place_of_its_operator() -> None:
    assert children("shrink", "sqrt(W) * X^0.5 - G") == {
        "W * X^0.5 - G",
        "sqrt(W) * X - G",
        "sqrt(W) - G",
        "X^0.5 - G",
        "sqrt(W) * X^0.5",
        "G",
    }


def test_exponents_move_on_the_grid_and_stay_in_range() -> None:
    mutants = children("exponent", "W^0.1 * G")
    moved = {
        text.removesuffix(" * G")
        for text in mutants
        if text.startswith("W^") and text.endswith(" * G")
    }
    assert {"W^0.15", "W^0.2"} <= moved
    assert any("G^" in text for text in mutants)
    assert any(text.startswith("(W^0.1 * G)^") for text in mutants)
    assert {"W^0.55", "W^0.45"} <= children("exponent", "sqrt(W)")
    assert children("exponent", "W", SearchSpace(operators=("mul", "sqrt"))) == set()


def test_neighbours_are_products_with_a_factor_less_more_or_exchanged() -> None:
    space = SearchSpace(terminals=("W", "G", "X", "O"), operators=("mul", "power", "sqrt"))
    forms = {canonical(form, "global") for form in neighbours(parse("W * G^0.75"), space)}
    wanted = ["W", "G", "W * X^0.75", "W * O^0.75", "X * G^0.75", "O * G^0.75"]
    wanted += ["W * G^0.75 * X^0.5", "W * G^0.75 * O^0.5"]
    assert forms == {canonical(parse(text), "global") for text in wanted}


def test_an_exchanged_factor_adds_its_exponent_to_that_of_the_factor_it_becomes() -> None:
    forms = [str(form) for form in neighbours(parse("W * sqrt(G) * X^0.25"), SearchSpace())]
    assert "W * X^0.75" in forms
    assert "W * G^0.75" in forms


def test_a_product_is_one_step_from_its_relative_forms() -> None:
    """What does not vary along the norm is left out of it; no relative factor is doubled."""
    forms = list(map(str, neighbours(parse("W * (O * X)^0.75"), SearchSpace())))
    assert forms[:3] == [
        "W * (O * X)^0.75 * row_normalize(W * X^0.75)^0.35",
        "W * (O * X)^0.75 * column_normalize(W * O^0.75)^0.35",
        "W * (O * X)^0.75 * matrix_normalize(W * (O * X)^0.75)^0.35",
    ]
    further = list(map(str, neighbours(parse(forms[0]), SearchSpace())))
    assert sum(text.count("row_normalize") == 2 for text in further) == 0
    assert any("column_normalize(W * O^0.75)" in text for text in further)


def test_neighbours_of_any_metric_are_allowed() -> None:
    generator = np.random.default_rng(0)
    for space in SPACES:
        for _ in range(30):
            expression = random_expression(generator, space)
            for form in neighbours(expression, space):
                check_child(form, space)
                assert form != expression
