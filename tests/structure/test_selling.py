"""Units are sold by their price per parameter: no other choice of whole lots costs less."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.structure.selling import Good, sell

PRICES = st.lists(st.floats(0, 10), min_size=1, max_size=5).map(sorted)


def good(prices: list[float], parameters: int, first: int = 1, step: int = 1) -> Good:
    return Good(torch.tensor(prices, dtype=torch.float64), parameters, first, step)


@given(st.lists(st.tuples(PRICES, st.integers(1, 3)), min_size=1, max_size=3), st.data())
def test_no_other_choice_of_as_many_parameters_costs_less(
    drawn: list[tuple[list[float], int]], data: st.DataObject
) -> None:
    goods = [good(prices, parameters) for prices, parameters in drawn]
    most = sum(len(prices) * parameters for prices, parameters in drawn)
    gone, price = sell(goods, data.draw(st.integers(1, most)))

    def freed(counts: tuple[int, ...]) -> int:
        return sum(n * parameters for n, (_, parameters) in zip(counts, drawn, strict=True))

    def cost(counts: tuple[int, ...]) -> float:
        return sum(sum(prices[:n]) for n, (prices, _) in zip(counts, drawn, strict=True))

    assert price == pytest.approx(cost(tuple(gone)))
    for counts in product(*(range(len(prices) + 1) for prices, _ in drawn)):
        if freed(counts) == freed(tuple(gone)):
            assert price <= cost(counts) + 1e-9


def test_a_good_is_sold_in_lots() -> None:
    wide = good([0.0] * 5, 2, first=1, step=4)
    assert sell([wide], 1) == ([1], 0.0)
    assert sell([wide], 3) == ([5], 0.0)


def test_the_cheaper_kind_per_parameter_goes_first() -> None:
    channels, heads = good([1.0, 2.0], 1), good([3.0], 10)
    assert sell([channels, heads], 1) == ([0, 1], 3.0)
    assert sell([channels, heads], 12) == ([2, 1], 6.0)


def test_too_few_units_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 parameters too few"):
        sell([good([1.0], 1)], 2)
