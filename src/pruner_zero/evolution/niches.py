"""The default algorithm: one population per comparison group, which exchange expressions."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, islice

import numpy as np
from pydantic import Field

from pruner_zero.choices import Group
from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal, Result, best_first
from pruner_zero.evolution.candidate import STEP, Candidate, Evaluation, Template
from pruner_zero.evolution.space import SearchSpace, simplest
from pruner_zero.evolution.tuning import Tuner
from pruner_zero.evolution.variation import (
    MUTATIONS,
    blend,
    crossover,
    neighbours,
    plain_products,
    priced,
    random_start,
)
from pruner_zero.metric.expression import Expression
from pruner_zero.metric.metric import Metric
from pruner_zero.settings.base import Settings

# The contestants of a tournament, and which values count as equal there (`tournament`).
_CONTESTANTS, _PARSIMONY = 6, 0.02
# This many of the best members of each scope are tried in every other scope, and this many of the
# best of all have neighbours.
_SPREAD = 3
# Shares of the children that are random, that come from another scope, and that have two parents;
# the rest have one mutation, and with chance `_TWICE` a second one.
_IMMIGRANTS, _MIGRANTS, _CROSSOVER, _TWICE = 0.05, 0.1, 0.25, 0.5
# How often each mutation is drawn, relative to the others.
_WEIGHTS = {"grow": 2.0, "shrink": 1.0, "operator": 1.5, "exponent": 3.0, "terminal": 1.0}
# The candidates of a batch with exponents fitted by `Tuner`.
_TUNED = 4


class EvolutionSettings(Settings):
    """Settings of the default algorithm.

    initial: candidates of the first batch. batch: children of every later batch, to which tuned
    exponents, neighbours and migrants are added. population: members for each scope. steps: the
    number of `neighbours` of the best in a batch, as long as there are new ones.
    """

    initial: int = Field(48, ge=1)
    batch: int = Field(24, ge=1)
    population: int = Field(48, ge=2)
    steps: int = Field(8, ge=0)


class Evolution(BatchAlgorithm):
    """Tournament selection in niches, one for each comparison group.

    Members of a niche compete only with each other, so that no scope crowds out another. Good
    expressions migrate between niches. The first batch is plain products and random expressions.
    Source: islands with migration (Tanese 1989), size-fair crossover (Langdon 2000), exponents
    apart from structure (`Tuner`); one niche for each comparison group is ours.
    """

    settings_type = EvolutionSettings
    settings: EvolutionSettings

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        settings: EvolutionSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(space, seed, settings, seed_metrics)
        # The members of each niche, best first.
        self.niches: dict[Group, list[Result]] = {scope: [] for scope in space.scopes}
        self._tuner = Tuner(space)
        self._tried: set[int] = set()

    @property
    def population(self) -> Sequence[Result]:
        """The candidates that parents are drawn from, best first."""
        return best_first(member for members in self.niches.values() for member in members)

    def start(self) -> list[Proposal]:
        """Up to half plain products, in every scope and `priced`, and random expressions.

        The small ones come first. The random expressions are spread evenly over the scopes.
        """
        started = (
            # The closed form is wrong about shares of matrices, so that they count as steps.
            Proposal(
                simplest(form, scope, self.space),
                scope,
                operation="product" if form is plain else STEP,
            )
            for plain in plain_products(self.space)
            for scope in self.space.scopes
            for form in (plain, *(priced(plain, self.space) if scope == "global" else ()))
        )
        products = [*islice(filter(self.is_new, started), self.settings.initial // 2)]
        proposals = [
            proposal
            for scope, count in self._shares(self.settings.initial - len(products))
            for proposal in self.fill(count, partial(self._random, scope, "random"))
        ]
        return sorted([*products, *proposals], key=lambda proposal: proposal.expression.size)

    def propose(self) -> list[Proposal]:
        """Tuned exponents, neighbours of the best, the best in other scopes, children."""
        tuned = self._tuner.propose(self.generator, _TUNED)
        neighbouring = self._near_the_best()
        steps = self.fill(self.settings.steps, lambda: next(neighbouring, None))
        return [*filter(self.is_new, [*tuned, *self._spread()]), *steps] + [
            proposal
            for scope, count in self._shares(self.settings.batch)
            for proposal in self.fill(
                count, partial(self._child, scope), partial(self._random, scope, "immigrant")
            )
        ]

    def learn(self, results: Sequence[Result]) -> None:
        """Every result joins the niche of its scope; results with a loss also go to the `Tuner`."""
        self._tuner.add(results)
        for candidate, evaluation in results:
            if evaluation.counts:
                self.niches[candidate.scope].append((candidate, _on_one_scale(evaluation)))
        for scope, members in self.niches.items():
            self.niches[scope] = survivors(members, self.settings.population)

    def _shares(self, count: int) -> Iterator[tuple[Group, int]]:
        """`count` candidates spread evenly over the scopes."""
        scopes = self.space.scopes
        for index, scope in enumerate(scopes):
            yield scope, len(range(index, count, len(scopes)))

    def _spread(self) -> Iterator[Proposal]:
        """The best of each niche that were not tried elsewhere yet, in every other scope."""
        for scope, members in self.niches.items():
            for candidate, _ in members[:_SPREAD]:
                if candidate.number not in self._tried:
                    self._tried.add(candidate.number)
                    for other in self.space.scopes:
                        if other != scope:
                            parents = (candidate.number,)
                            yield Proposal(candidate.expression, other, parents, "migrate")

    def _near_the_best(self) -> Iterator[Proposal]:
        """What lies between the best skeletons, then their neighbours, starting with the best."""
        best: dict[Template, Candidate] = {}
        for candidate, _ in self.population:
            best.setdefault(candidate.template, candidate)
        first = [*islice(best.values(), _SPREAD)]
        for mother, father in combinations(first, 2):
            form = blend(mother.expression, father.expression, self.space)
            if form is not None and mother.scope == father.scope:
                yield Proposal(form, mother.scope, (mother.number, father.number), STEP)
        for candidate in first:
            for form in neighbours(candidate.expression, self.space):
                yield Proposal(form, candidate.scope, (candidate.number,), STEP)

    def _random(self, scope: Group, operation: str) -> Proposal:
        return Proposal(random_start(self.generator, self.space), scope, operation=operation)

    def _child(self, scope: Group) -> Proposal | None:
        chance = self.generator.random()
        if not self.niches[scope] or chance < _IMMIGRANTS:
            return self._random(scope, "immigrant")
        if chance < _IMMIGRANTS + _MIGRANTS:
            sources = [other for other in self.niches if other != scope and self.niches[other]]
            if sources:
                parent = self._parent(sources[self.generator.integers(len(sources))])
                return Proposal(parent.expression, scope, (parent.number,), "migrate")
        mother = self._parent(scope)
        if chance > 1 - _CROSSOVER:
            father = self._parent(scope)
            child = crossover(self.generator, mother.expression, father.expression, self.space)
            parents: tuple[int, ...] = (mother.number, father.number)
            name = "crossover"
        else:
            parents = (mother.number,)
            name, child = self._mutated(mother.expression)
        return Proposal(child, scope, parents, name) if child else None

    def _parent(self, scope: Group) -> Candidate:
        return tournament(self.generator, self.niches[scope])[0]

    def _mutated(self, expression: Expression) -> tuple[str, Expression | None]:
        """The expression after one mutation or two, named by the first."""
        names, weights = list(_WEIGHTS), np.array([*_WEIGHTS.values()])

        def drawn() -> str:
            return names[self.generator.choice(len(names), p=weights / weights.sum())]

        name = drawn()
        child = MUTATIONS[name](self.generator, expression, self.space)
        if child is not None and self.generator.random() < _TWICE:
            child = MUTATIONS[drawn()](self.generator, child, self.space) or child
        return name, child


def survivors(members: Sequence[Result], capacity: int) -> list[Result]:
    """The best `capacity` members, best first, of which few are of the same template.

    Members beyond an eighth of the capacity of their template (`Candidate.template`) are taken
    after all others, so that variants of the best do not crowd out everything else.
    """
    templates: Counter[Template] = Counter()
    first: list[Result] = []
    crowded: list[Result] = []
    for member in best_first(members):
        template = member[0].template
        (crowded if templates[template] >= max(2, capacity // 8) else first).append(member)
        templates[template] += 1
    return best_first([*first, *crowded][:capacity])


def tournament(
    generator: np.random.Generator,
    members: Sequence[Result],
    contestants: int = _CONTESTANTS,
    parsimony: float = _PARSIMONY,
) -> Result:
    """The best of some drawn members; among nearly equal ones the smallest.

    members: best first. parsimony: what counts as nearly equal, as a share of the distance between
    the best and the median value on the winner's rung.
    """
    drawn = generator.integers(len(members), size=contestants)
    # Members are sorted: a lower index is a better one.
    pool: list[Result] = [members[index] for index in sorted(set(drawn.tolist()))]
    rung, value = pool[0][1].key
    values = [evaluation.key[1] for _, evaluation in members if evaluation.key[0] == rung]
    spread = float(np.median(values)) - values[0] if math.isfinite(values[-1]) else 0.0
    limit = (rung, value + parsimony * spread)
    near = [member for member in pool if member[1].key <= limit]
    return min(near, key=lambda member: (member[0].expression.size, member[1].key))


def _on_one_scale(evaluation: Evaluation) -> Evaluation:
    """The evaluation with its expected value, which can be compared between all rungs."""
    if evaluation.expected is None:
        return evaluation
    return replace(evaluation, rung=1, value=evaluation.expected)
