"""Facts that are derived from an expression are true of its values, and cautious in doubt."""

import math

import pytest

from pruner_zero.metric.canonical.normal import growth, is_positive, is_tame
from pruner_zero.metric.expression import Constant
from pruner_zero.metric.grammar import parse


def test_values_are_positive_where_every_operand_is() -> None:
    positive = ["D", "D * D", "D / D", "D ^ 0.5", "sqrt(D)", "D * 0.5", "0.5"]
    others = ["W", "S", "D * W", "D + W", "exp(D)", "D - D", "log(D)", "0.0"]
    assert [text for text in (*positive, *others) if is_positive(parse(text))] == positive


@pytest.mark.parametrize(
    ("text", "degree"),
    [
        ("W", 1),
        ("W * X", 2),
        ("W * X ^ 0.5", 1.5),
        ("W / D", 2),
        ("D ^ -1", 1),
        ("W + X * G", 2),
        # A negative power or a division may meet a zero, and the power 0 makes all values equal.
        ("W ^ -1", math.inf),
        ("W ^ 0", math.inf),
        ("W / X", math.inf),
        # Roots so high that fp32 rounds their values to ties.
        ("W ^ 0.05", math.inf),
        ("W ^ 0.0625", 0.0625),
        # No statistic at all.
        ("abs(2)", math.inf),
        # The logarithm of values up to the degree 8 has the degree 1.
        ("log(W ^ 8)", 1),
        ("log(W ^ 8.05)", math.inf),
    ],
)
def test_the_degree_of_an_expression(text: str, degree: float) -> None:
    assert growth(parse(text)) == pytest.approx(degree)


def test_numbers_that_fp32_holds_and_expressions_up_to_the_degree_8_are_tame() -> None:
    assert all(map(is_tame, [*map(Constant, (1e-6, 1e6, -1.0)), parse("W ^ 8")]))
    assert not any(map(is_tame, [*map(Constant, (9e-7, 1.1e6)), parse("W ^ 8.05")]))
