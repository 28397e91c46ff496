"""Candidates that compete for the right to have children: tournaments, elite, who leaves."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.random import Generator

from pruner_zero.evolution.ask_tell import Result
from pruner_zero.evolution.candidate import Candidate, Kind
from pruner_zero.sparsity import Scope

Diversity = Literal["age", "niche", "islands"]


class Population:
    """The living of one comparison group, at most `capacity` of them.

    diversity: who leaves when there are too many: the oldest (`age`), the worst of those whose
        kind is crowded (`niche`), or the worst (`islands`, of which there are several).
    elite: so many of the Pareto front of value and size never leave.
    """

    def __init__(self, scope: Scope, capacity: int, elite: int, diversity: Diversity) -> None:
        self.scope = scope
        self.capacity = capacity
        self.elite = elite
        self.diversity = diversity
        self.members: list[Result] = []

    def add(self, results: Iterable[Result]) -> None:
        """Take in what counts; then the surplus leaves."""
        for candidate, evaluation in results:
            if evaluation.counts:
                self.members.append((candidate, evaluation))
            else:
                self._shorten(candidate, evaluation.same_as)
        self.members.sort(key=_key)
        surplus = len(self.members) - self.capacity
        if surplus > 0:
            leaving = set(self._leaving()[:surplus])
            self.members = [one for one in self.members if one[0].number not in leaving]

    def _shorten(self, candidate: Candidate, same_as: int | None) -> None:
        """A smaller expression with the same masks takes the larger one's place, and its value."""
        for index, (member, evaluation) in enumerate(self.members):
            if member.number == same_as and candidate.expression.size < member.expression.size:
                self.members[index] = (candidate, evaluation)

    def front(self) -> list[Result]:
        """The Pareto front of value and size, best value first."""
        front: list[Result] = []
        for result in self.members:
            if not front or size(result) < size(front[-1]):
                front.append(result)
        return front

    def _leaving(self) -> list[int]:
        """The numbers of those outside the elite, first to leave first."""
        safe = {one[0].number for one in self.front()[: self.elite]}
        rest = [one for one in reversed(self.members) if one[0].number not in safe]
        if self.diversity == "age":
            return sorted(one[0].number for one in rest)
        if self.diversity == "niche":
            crowd: Counter[Kind] = Counter()
            rank: dict[int, int] = {}
            for one in self.members:
                rank[one[0].number] = crowd[one[0].kind]
                crowd[one[0].kind] += 1
            # The n-th best of its kind leaves before the (n−1)-th of any; n above a fair share.
            room = max(2, self.capacity // 8)
            rest.sort(key=lambda one: rank[one[0].number] < room)
        return [one[0].number for one in rest]

    def tournament(self, generator: Generator, contestants: int, parsimony: float) -> Result:
        """The best of some drawn members; among nearly equal ones the smallest.

        parsimony: what counts as nearly equal, as a share of the distance between the best
        and the median value on the winner's rung.
        """
        drawn = generator.integers(len(self.members), size=contestants)
        # Members are sorted: a lower index is a better one.
        pool: list[Result] = [self.members[index] for index in sorted(set(drawn.tolist()))]
        rung, value = pool[0][1].key
        alike = [one[1].key[1] for one in self.members if one[1].key[0] == rung]
        spread = float(np.median(alike)) - alike[0] if math.isfinite(alike[-1]) else 0.0
        limit = (rung, value + parsimony * spread)
        near = [one for one in pool if one[1].key <= limit]
        return min(near, key=lambda one: (size(one), one[1].key))


def size(result: Result) -> int:
    """The nodes of its expression."""
    return result[0].expression.size


def best_first(members: Iterable[Result]) -> Sequence[Result]:
    """Sorted by key, ties by number."""
    return sorted(members, key=_key)


def _key(result: Result) -> tuple[tuple[int, float], int]:
    return result[1].key, result[0].number
