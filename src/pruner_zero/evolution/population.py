"""The candidates of one comparison group that parents are drawn from: who joins, who leaves."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.random import Generator

from pruner_zero.choices import Group
from pruner_zero.evolution.ask_tell import Result
from pruner_zero.evolution.candidate import Kind


class Population:
    """At most `capacity` members that compete under the same `scope`, best first.

    When there are too many, the worst of those whose kind (`Candidate.kind`) is crowded leave
    first. elite: this many members of the Pareto front of value and size never leave.
    """

    def __init__(self, scope: Group, capacity: int, elite: int) -> None:
        self.scope = scope
        self.capacity = capacity
        self.elite = elite
        self.members: list[Result] = []

    def add(self, results: Iterable[Result]) -> None:
        """Add the results that count; then the surplus leaves."""
        self.members += [result for result in results if result[1].counts]
        self.members.sort(key=_key)
        surplus = len(self.members) - self.capacity
        if surplus > 0:
            leaving = set(self._leaving()[:surplus])
            self.members = [member for member in self.members if member[0].number not in leaving]

    def front(self) -> list[Result]:
        """The Pareto front of value and size, best value first."""
        front: list[Result] = []
        for result in self.members:
            if not front or size(result) < size(front[-1]):
                front.append(result)
        return front

    def _leaving(self) -> list[int]:
        """The numbers of the members outside the elite, in the order in which they leave.

        Members beyond an eighth of the capacity within their kind leave first, then all others;
        of both the worst first.
        """
        safe = {candidate.number for candidate, _ in self.front()[: self.elite]}
        kinds: Counter[Kind] = Counter()
        crowded: list[int] = []
        others: list[int] = []
        room = max(2, self.capacity // 8)
        for candidate, _ in self.members:
            (crowded if kinds[candidate.kind] >= room else others).append(candidate.number)
            kinds[candidate.kind] += 1
        return [number for number in crowded[::-1] + others[::-1] if number not in safe]

    def tournament(self, generator: Generator, contestants: int, parsimony: float) -> Result:
        """The best of some drawn members; among nearly equal ones the smallest.

        parsimony: what counts as nearly equal, as a share of the distance between the best
        and the median value on the winner's rung.
        """
        drawn = generator.integers(len(self.members), size=contestants)
        # Members are sorted: a lower index is a better one.
        pool: list[Result] = [self.members[index] for index in sorted(set(drawn.tolist()))]
        rung, value = pool[0][1].key
        values = [member[1].key[1] for member in self.members if member[1].key[0] == rung]
        spread = float(np.median(values)) - values[0] if math.isfinite(values[-1]) else 0.0
        limit = (rung, value + parsimony * spread)
        near = [member for member in pool if member[1].key <= limit]
        return min(near, key=lambda member: (size(member), member[1].key))


def size(result: Result) -> int:
    """The number of nodes of the expression."""
    return result[0].expression.size


def best_first(members: Iterable[Result]) -> Sequence[Result]:
    """The members sorted by key, ties by number."""
    return sorted(members, key=_key)


def _key(result: Result) -> tuple[tuple[int, float], int]:
    return result[1].key, result[0].number
