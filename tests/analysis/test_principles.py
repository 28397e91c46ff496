"""Principles over several searches."""

import math
from collections.abc import Sequence

import pytest

from pruner_zero.analysis import Principle, across
from pruner_zero.analysis.statistics import Estimate


def searches(values: Sequence[float]) -> list[list[Principle]]:
    """Searches with one principle each, of these estimates; 1 is no effect."""
    return [
        [Principle("s", "held", "m", Estimate(value, 0, 9), 1.0, 50, "", "source")]
        for value in values
    ]


@pytest.mark.parametrize(
    ("values", "verdict", "remark"),
    [
        ([1.1, 1.2, 1.3, 1.4, 1.5, 1.6], "held", ""),
        ([0.4, 0.5, 0.6, 0.7, 0.8, 0.9], "not held", "the data says the opposite"),
        # Five of six values above 1 come by chance with probability 2 · 7 / 64.
        ([0.9, 1.2, 1.3, 1.4, 1.5, 1.6], "not held", "the interval leaves it open"),
        ([1.1, 1.2, 1.3, 1.4, 1.5, math.nan], "too little data", "5 runs, 6 are needed"),
        ([math.nan], "too little data", "0 runs, 6 are needed"),
    ],
)
def test_the_verdict_is_that_of_the_median_over_runs(
    values: list[float], verdict: str, remark: str
) -> None:
    (test,) = across(searches(values))
    assert (test.verdict, test.remark) == (verdict, remark)


def test_the_interval_of_the_median_is_of_order_statistics() -> None:
    """Of nine values, the second to the eighth: the chance outside is 2 · (1 + 9) / 512 = 0.039."""
    (test,) = across(searches([9, 2, 5, 7, 1, 4, 8, 3, 6]))
    assert test.estimate == Estimate(5, 2, 8)
    assert test.n == 9
