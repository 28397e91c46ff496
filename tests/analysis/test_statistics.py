"""Rank statistics against plain references, and intervals against what they promise."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pruner_zero.analysis.statistics import (
    Array,
    holm,
    hypergeometric_p,
    interval,
    kendalls,
    rank_correlations,
    ratio_draws,
    ratios,
    spearmans,
)
from tests.metric.strategies import lightly

# Few values, so that ties abound; halves and thirds, so that they are no whole numbers.
values = st.sampled_from([-2.5, -1.0, 0.0, 1 / 3, 0.5, 2.0, 1e9])
pairs = st.lists(st.tuples(values, values), max_size=12)


def split(drawn: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in drawn], [y for _, y in drawn]


def plain_ranks(array: list[float]) -> list[float]:
    return [
        sum(other < one for other in array) + (sum(other == one for other in array) + 1) / 2
        for one in array
    ]


def plain_spearman(x: list[float], y: list[float]) -> float:
    a, b = plain_ranks(x), plain_ranks(y)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    mean = (len(x) + 1) / 2
    above = sum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    return above / math.sqrt(sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b))


def plain_kendall(x: list[float], y: list[float]) -> float:
    def sign(value: float) -> int:
        return (value > 0) - (value < 0)

    signs = [(sign(x[i] - x[j]), sign(y[i] - y[j])) for i, j in combinations(range(len(x)), 2)]
    untied = sum(abs(p) for p, _ in signs) * sum(abs(q) for _, q in signs)
    return sum(p * q for p, q in signs) / math.sqrt(untied) if untied else math.nan


@lightly
@given(pairs)
def test_correlations_equal_their_definitions(drawn: list[tuple[float, float]]) -> None:
    x, y = split(drawn)
    kendall, spearman = rank_correlations(x, y, np.random.default_rng(0))
    assert kendall.value == pytest.approx(plain_kendall(x, y), nan_ok=True)
    assert spearman.value == pytest.approx(plain_spearman(x, y), nan_ok=True)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="x has 2 values and y has 1"):
        rank_correlations([1, 2], [1], np.random.default_rng(0))


def test_a_resample_is_correlated_as_its_pairs_are() -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(40, size=700).astype(float)
    y = x + generator.integers(30, size=700).astype(float)
    drawn = generator.integers(700, size=(3, 700))
    for statistic, plain in ((kendalls, stats.kendalltau), (spearmans, stats.spearmanr)):
        expected = [plain(x[row], y[row]).statistic for row in drawn]
        assert statistic(x, y, drawn) == pytest.approx(expected)


def test_the_generator_decides_the_intervals() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=60)
    y = x + generator.normal(size=60)
    found = rank_correlations(x, y, np.random.default_rng(1))
    assert found == rank_correlations(x, y, np.random.default_rng(1))
    for estimate, other in zip(found, rank_correlations(x, y, generator), strict=True):
        assert estimate != other
        assert -1 < estimate.low < estimate.value < estimate.high < 1


def test_intervals_cover_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = np.zeros(2)
    # Of two normal variables with correlation 1/2: τ is 2/π·arcsin(1/2), ρ is 6/π·arcsin(1/4).
    truth = 1 / 3, 6 / math.pi * math.asin(0.25)
    for _ in range(100):
        x = generator.normal(size=50)
        y = 0.5 * x + math.sqrt(0.75) * generator.normal(size=50)
        found = rank_correlations(x, y, generator)
        covered += [one.low <= true <= one.high for one, true in zip(found, truth, strict=True)]
    assert np.all((covered >= 88) & (covered <= 100))


def test_resamples_in_which_a_value_is_constant_do_not_count() -> None:
    rare = [1.0] + [0.0] * 11
    kendall, spearman = rank_correlations(rare, range(12), np.random.default_rng(0))
    for estimate in (kendall, spearman):
        assert -1 <= estimate.low < estimate.value < 0
        assert estimate.high < 0


def test_few_or_constant_pairs_have_no_interval() -> None:
    generator = np.random.default_rng(0)
    for few in rank_correlations(range(9), range(9), generator):
        assert few.value == 1
        assert few.cells == ("1.00", "")
    for x, y in (([1.0] * 20, range(20)), ([], [])):
        for undefined in rank_correlations(x, y, generator):
            assert math.isnan(undefined.value)
            assert undefined.cells == ("", "")


@lightly
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 7))
def test_hypergeometric_p_counts_all_draws(chosen: int, having: int, total: int) -> None:
    chosen, having = min(chosen, total), min(having, total)
    draws = [sum(one < having for one in draw) for draw in combinations(range(total), chosen)]
    for k in set(draws):
        tails = sum(one <= k for one in draws), sum(one >= k for one in draws)
        expected = min(1.0, 2 * min(tails) / len(draws))
        assert hypergeometric_p(k, chosen, having, total) == pytest.approx(expected)


def test_hypergeometric_p_of_large_counts() -> None:
    # All 100 chosen have what half of 10,000 have: twice C(5000, 100) / C(10000, 100).
    expected = 2 * math.comb(5000, 100) / math.comb(10_000, 100)
    assert hypergeometric_p(100, 100, 5000, 10_000) == pytest.approx(expected)
    assert hypergeometric_p(50, 100, 5000, 10_000) == 1


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_ratios_of_shares() -> None:
    chosen, others = [[1, 0, 1, 0], [1, 0, 1, 0]], [[0, 1, 1, 0]] * 6
    assert ratios(chosen, others)[:3].tolist() == [4, 0, 1]
    assert math.isnan(ratios(chosen, others)[3])


@pytest.mark.parametrize(("k", "rest"), list(product((0, 4, 10), (0, 15, 60))))
def test_ratio_draws_of_one_feature_are_jeffreys(k: int, rest: int) -> None:
    generator = np.random.default_rng(0)
    chosen, others = column(k, 10), column(rest, 60)
    draws = ratio_draws(chosen, others, generator, draws=20_000)
    p = generator.beta(k + 0.5, 10 - k + 0.5, 20_000)
    q = generator.beta(rest + 0.5, 60 - rest + 0.5, 20_000)
    for quantile in (0.1, 0.5, 0.9):
        expected = np.quantile(p / (p / 7 + q * 6 / 7), quantile)
        assert np.quantile(draws, quantile) == pytest.approx(expected, rel=0.1, abs=0.02)


def test_an_interval_holds_its_value() -> None:
    found = interval(0.0, ratio_draws(column(0, 10), column(30, 60), np.random.default_rng(0)))
    assert found.low == 0
    assert 0.1 < found.high < 0.9
    assert math.isnan(interval(1.0, np.array([math.nan])).low)


def column(having: int, total: int) -> Array:
    return (np.arange(total) < having).astype(np.float64)[:, np.newaxis]
