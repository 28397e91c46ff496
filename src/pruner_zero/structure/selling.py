"""Selling: which units of which kind go first, where each has a price and frees parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from torch import Tensor


@dataclass(frozen=True)
class Good:
    """Units of which any number can go, the cheapest first.

    prices: of the units that may go, ascending, in nats per token. parameters: that each frees.
    first, step: how many go at the least, and in which steps more go.
    """

    prices: Tensor
    parameters: int
    first: int = 1
    step: int = 1

    @property
    def free(self) -> int:
        """The parameters of all units that may go."""
        return len(self.prices) * self.parameters


def sell(goods: Sequence[Good], wanted: int) -> tuple[list[int], float]:
    """How many units of each of `goods` go to free `wanted` parameters, and their price in all.

    Lots are sold by their price per parameter, the cheapest first: since the prices of a good
    ascend, no other choice of as many parameters costs less (marginal analysis, Gross 1956).
    """
    gone, price, left = [0] * len(goods), 0.0, wanted
    offers: list[tuple[float, int, int, float]] = []

    def offer(number: int) -> None:
        good, start = goods[number], gone[number]
        units = good.step if start else good.first
        if start + units <= len(good.prices):
            cost = float(good.prices[start : start + units].sum())
            heappush(offers, (cost / (units * good.parameters), number, units, cost))

    for number in range(len(goods)):
        offer(number)
    while left > 0:
        if not offers:
            raise ValueError(f"the units on offer free {left} parameters too few")
        _, number, units, cost = heappop(offers)
        gone[number] += units
        price += cost
        left -= units * goods[number].parameters
        offer(number)
    return gone, price
