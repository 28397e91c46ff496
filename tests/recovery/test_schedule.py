"""The learning rate rises, falls to zero, and follows whichever budget is spent sooner."""

from itertools import pairwise

import pytest

from pruner_zero.recovery.schedule import WARMUP, Budget, rate


def test_the_rate_rises_to_one_and_falls_to_zero() -> None:
    shares = [index / 200 for index in range(201)]
    rates = [rate(share) for share in shares]
    assert all(0 <= value <= 1 for value in rates)
    assert rate(WARMUP) == 1
    assert rates[-1] == 0
    rising = [value for value, share in zip(rates, shares, strict=True) if share < WARMUP]
    assert all(earlier < later for earlier, later in pairwise(rising))
    falling = rates[len(rising) :]
    assert all(earlier > later for earlier, later in pairwise(falling))
    assert rates[0] > 0


def test_the_fall_is_half_a_cosine() -> None:
    fall = 1 - WARMUP
    assert rate(WARMUP + fall / 2) == pytest.approx(0.5)
    assert rate(WARMUP + fall / 4) == pytest.approx(0.8535533905932737)


def test_the_budget_that_is_spent_sooner_counts() -> None:
    assert Budget(10, None).share(3, 1e9) == 0.3
    assert Budget(None, 60).share(10**9, 30) == 0.5
    both = Budget(10, 60)
    assert both.share(5, 12) == 0.5
    assert both.share(2, 45) == 0.75
    assert both.share(20, 600) == 1
