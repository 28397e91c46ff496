"""What is known of values before they are computed: bounds, and how far they spread."""

import math
from dataclasses import astuple

import pytest
from hypothesis import given, settings

from pruner_zero.metric import Expression, parse
from pruner_zero.metric.canonical.bounds import Bounds
from pruner_zero.metric.canonical.facts import bounds, is_tame
from tests.metric.strategies import expressions, lightly

INFINITE = math.inf


@pytest.mark.parametrize(
    ("text", "low", "high", "growth"),
    [
        ("W", 0, INFINITE, 1),
        ("S", -INFINITE, INFINITE, 1),
        ("-W", -INFINITE, 0, 1),
        ("abs(S)", 0, INFINITE, 1),
        ("W * G", 0, INFINITE, 2),
        ("W + S * G", -INFINITE, INFINITE, 2),
        ("mms(S)", 0, 1, 1),
        ("mms(W) + mms(G)", 0, 2, 1),
        ("mms(W) - mms(G)", -1, 1, 1),
        ("3 - mms(W)", 2, 3, 1),
        ("-2 * mms(W)", -2, 0, 1),
        ("abs(mms(W) - 3)", 2, 3, 1),
        ("sqr(mms(W) - 3)", 4, 9, 2),
        ("sqrt(mms(W) + 3)", math.sqrt(3), 2, 0.5),
        ("mms(W) / (mms(G) + 2)", 0, 0.5, 2),
        ("(mms(W) + 1) / (mms(G) + 2)", 1 / 3, 1, 2),
        ("log(mms(W))", math.log(0.001), math.log(1.001), 1),
        ("tanh(2 * mms(W))", 0, math.tanh(2), 1),
        ("tanh(mms(W) - 1)", -math.tanh(1), 0, 1),
        ("exp(-mms(W))", math.exp(-1), 1, 1),
        ("min(mms(W), mms(G) + 2)", 0, 1, 1),
        ("max(mms(W), mms(G) + 2)", 2, 3, 1),
        ("row_share(S)", -1, 1, 1),
        ("column_normalize(W)", 0, 1, 1),
    ],
)
def test_bounds_are_as_narrow_as_the_operands_allow(
    text: str, low: float, high: float, growth: float
) -> None:
    assert astuple(bounds(parse(text), {})) == pytest.approx((low, high, growth))


@pytest.mark.parametrize(
    ("tame", "wild"),
    [
        ("exp(80 * mms(W))", "exp(81 * mms(W))"),
        ("exp(-80 * mms(W))", "exp(-81 * mms(W))"),
        ("tanh(9 * mms(W))", "tanh(10 * mms(W))"),
        ("tanh(-9 * mms(W))", "tanh(-10 * mms(W))"),
        ("sqr(sqr(W * G))", "sqr(sqr(W * G)) * X"),
        ("W ^ 0.0625", "W ^ 0.06"),
        ("min(W, G)", "min(W, 2)"),
        ("zsn(W)", "zsn(2 * 3)"),
        ("row_share(X)", "column_share(X)"),
        ("1 / D", "1 / X"),
        ("2 ^ 19", "2 ^ 126"),
        ("2 ^ -19", "2 ^ -126"),
        ("2 ^ 19", "2 ^ 2000"),
        ("exp(13)", "exp(14)"),
    ],
)
def test_what_fp32_may_not_hold_is_not_tame(tame: str, wild: str) -> None:
    assert bounds(parse(tame), {}).tame
    assert not bounds(parse(wild), {}).tame


def test_a_factor_of_six_digits_either_way_is_tame() -> None:
    assert all(is_tame(sign * size) for sign in (1, -1) for size in (1e-6, 1, 1e6))
    assert not any(is_tame(size) for size in (0, 0.9e-6, 1.1e6, -1.1e6))


def test_bounds_that_overflow_stay_numbers() -> None:
    huge = "sqr(sqr(1e100))"
    for text in (f"{huge} - {huge}", f"W * ({huge} - {huge})"):
        known = bounds(parse(text), {})
        assert (known.low, known.high) == (-INFINITE, INFINITE)


@settings(lightly, max_examples=200)
@given(expressions())
def test_every_bound_is_a_number_and_the_lower_one_is_below(expression: Expression) -> None:
    known: dict[Expression, Bounds] = {}
    bounds(expression, known)
    assert all(one.low <= one.high and one.growth >= 0 for one in known.values())
