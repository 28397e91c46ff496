"""Rank statistics against plain references, and intervals against their promised coverage."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pruner_zero.analysis.statistics import (
    Array,
    interval,
    rank_correlation,
    ratio_draws,
    ratios,
)
from tests.metric.strategies import lightly

# Few values, so that ties abound; halves and thirds, so that some values are no whole numbers.
values = st.sampled_from([-2.5, -1.0, 0.0, 1 / 3, 0.5, 2.0, 1e9])
pairs = st.lists(st.tuples(values, values), max_size=12)


def split(drawn: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in drawn], [y for _, y in drawn]


def plain_kendall(x: list[float], y: list[float]) -> float:
    def sign(value: float) -> int:
        return (value > 0) - (value < 0)

    signs = [(sign(x[i] - x[j]), sign(y[i] - y[j])) for i, j in combinations(range(len(x)), 2)]
    untied = sum(abs(p) for p, _ in signs) * sum(abs(q) for _, q in signs)
    return sum(p * q for p, q in signs) / math.sqrt(untied) if untied else math.nan


@lightly
@given(pairs)
def test_the_correlation_equals_its_definition(drawn: list[tuple[float, float]]) -> None:
    x, y = split(drawn)
    assert rank_correlation(x, y).value == pytest.approx(plain_kendall(x, y), nan_ok=True)


def test_the_correlation_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(40, size=700).astype(float)
    y = x + generator.integers(30, size=700).astype(float)
    correlation = rank_correlation(x, y)
    assert correlation.value == pytest.approx(stats.kendalltau(x, y).statistic)
    assert -1 < correlation.low < correlation.value < correlation.high < 1


@pytest.mark.parametrize("binary", [False, True])
def test_intervals_cover_the_truth(binary: bool) -> None:
    """The intervals also cover it for a yes-or-no feature, where half of all pairs are tied."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> tuple[Array, Array]:
        x = generator.normal(size=count)
        y = 0.5 * x + math.sqrt(0.75) * generator.normal(size=count)
        return (x > 0).astype(np.float64) if binary else x, y

    # Of two normal variables with correlation 1/2, τ is 2/π·arcsin(1/2).
    truth = stats.kendalltau(*draw(200_000)).statistic if binary else 1 / 3
    intervals = [rank_correlation(*draw(50)) for _ in range(400)]
    covered = sum(estimate.low <= truth <= estimate.high for estimate in intervals)
    assert 0.9 <= covered / 400 <= 0.98


def test_equal_orders_have_an_interval_of_no_width() -> None:
    correlation = rank_correlation(range(12), range(12))
    assert (correlation.value, correlation.low, correlation.high) == (1, 1, 1)


def test_few_or_constant_pairs_have_no_interval() -> None:
    few = rank_correlation(range(9), range(9))
    assert few.value == 1
    assert few.cells == ("1.00", "")
    for x, y in (([1.0] * 20, range(20)), ([], [])):
        undefined = rank_correlation(x, y)
        assert math.isnan(undefined.value)
        assert undefined.cells == ("", "")


def test_ratios_of_shares() -> None:
    chosen, others = np.array([[1.0, 0, 1, 0]] * 2), np.array([[0.0, 1, 1, 0]] * 6)
    assert ratios(chosen, others)[:3].tolist() == [4, 0, 1]
    assert math.isnan(ratios(chosen, others)[3])


@pytest.mark.parametrize(("k", "rest"), list(product((0, 4, 10), (0, 15, 60))))
def test_ratio_draws_of_one_feature_are_jeffreys(
    k: int, rest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.analysis.statistics.DRAWS", 20_000)
    generator = np.random.default_rng(0)
    chosen, others = column(k, 10), column(rest, 60)
    draws = ratio_draws(chosen, others, generator)
    p = generator.beta(k + 0.5, 10 - k + 0.5, 20_000)
    q = generator.beta(rest + 0.5, 60 - rest + 0.5, 20_000)
    for quantile in (0.1, 0.5, 0.9):
        expected = np.quantile(p / (p / 7 + q * 6 / 7), quantile)
        assert np.quantile(draws, quantile) == pytest.approx(expected, rel=0.1, abs=0.02)


def test_an_interval_contains_its_value() -> None:
    estimate = interval(0.0, ratio_draws(column(0, 10), column(30, 60), np.random.default_rng(0)))
    assert estimate.low == 0
    assert 0.1 < estimate.high < 0.9
    assert math.isnan(interval(1.0, np.array([math.nan])).low)


def column(having: int, total: int) -> Array:
    return (np.arange(total) < having).astype(np.float64)[:, np.newaxis]
