"""The default algorithm: one population per comparison group, which exchange expressions."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from pydantic import Field, field_validator, model_validator

from pruner_zero.choices import Group
from pruner_zero.errors import did_you_mean
from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal, Result
from pruner_zero.evolution.candidate import Evaluation
from pruner_zero.evolution.generate import random_start
from pruner_zero.evolution.population import Population, best_first
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.tuning import Tuner
from pruner_zero.evolution.variation import MUTATIONS, crossover, neighbours
from pruner_zero.metric import Expression, Metric
from pruner_zero.settings import Settings

_WEIGHTS = {
    "grow": 2.0,
    "shrink": 1.0,
    "hoist": 0.5,
    "replace": 1.0,
    "swap": 0.5,
    "operator": 1.5,
    "exponent": 3.0,
    "terminal": 1.0,
    "constant": 1.0,
}


class EvolutionSettings(Settings):
    """Settings of the default algorithm.

    initial, batch: candidates of the first and of every later batch. population: members for
    each scope. depth: fewest and most levels of random trees; products: the share of random
    expressions that are products (`random_product`) instead. tournament: contestants of a
    tournament. parsimony: which values count as equal (`Population.tournament`). elite: members
    that never leave. spread: this many of the best members of each scope are tried in every other
    scope. immigrants, migrants, crossover: shares of the children that are random, that come from
    another scope, and that have two parents; the rest are mutations, drawn by `mutations` (name to
    weight), followed by a second one with chance `twice`. tuned: the number of candidates of a
    batch with exponents fitted by `Tuner`. steps: the number of `neighbours` of the best, as long
    as there are new ones. even: the share of a batch that is split evenly over the scopes; the rest
    is split by the scopes' part in the best tenth of the last `memory` results.
    """

    initial: int = Field(96, ge=1)
    batch: int = Field(48, ge=1)
    population: int = Field(48, ge=2)
    depth: tuple[int, int] = (2, 4)
    products: float = Field(0.5, ge=0, le=1)
    tournament: int = Field(6, ge=1)
    parsimony: float = Field(0.02, ge=0)
    elite: int = Field(8, ge=0)
    spread: int = Field(3, ge=0)
    immigrants: float = Field(0.05, ge=0, le=1)
    migrants: float = Field(0.1, ge=0, le=1)
    crossover: float = Field(0.25, ge=0, le=1)
    twice: float = Field(0.5, ge=0, le=1)
    mutations: Mapping[str, float] = _WEIGHTS
    tuned: int = Field(4, ge=0)
    steps: int = Field(8, ge=0)
    even: float = Field(0.5, ge=0, le=1)
    memory: int = Field(240, ge=1)

    @field_validator("mutations")
    @classmethod
    def _check_mutations(cls, weights: Mapping[str, float]) -> Mapping[str, float]:
        for name, weight in weights.items():
            if name not in MUTATIONS:
                raise ValueError(f"unknown mutation '{name}': {did_you_mean(name, MUTATIONS)}")
            if not weight >= 0:
                raise ValueError(f"the weight of {name} must not be negative")
        if not any(weights.values()):
            raise ValueError("give at least one mutation a weight above 0")
        return weights

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.immigrants + self.migrants + self.crossover > 1:
            raise ValueError("immigrants, migrants and crossover together are more than 1")
        return self


class Evolution(BatchAlgorithm):
    """Tournament selection in niches, one for each comparison group.

    Members of a niche compete only with each other, so that no scope crowds out another. Good
    expressions migrate between niches, and successful niches get more of each batch. The first
    batch is random. Source: islands with migration (Tanese 1989), size-fair crossover (Langdon
    2000), exponents apart from structure (`Tuner`); one niche for each comparison group is ours.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        settings: EvolutionSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(space, seed, seed_metrics)
        self.settings = settings = settings or EvolutionSettings()
        self.niches = [
            Population(scope, settings.population, settings.elite) for scope in space.scopes
        ]
        self._tuner = Tuner(space)
        self._recent: deque[Result] = deque(maxlen=settings.memory)
        self._tried: set[int] = set()
        weights = {name: float(settings.mutations.get(name, 0)) for name in MUTATIONS}
        self._mutations = [name for name, weight in weights.items() if weight]
        self._chances = [weights[name] / sum(weights.values()) for name in self._mutations]

    @property
    def population(self) -> Sequence[Result]:
        return best_first(member for niche in self.niches for member in niche.members)

    def start(self) -> list[Proposal]:
        """Random expressions, evenly over the scopes, the small ones first."""
        scopes, count = self.space.scopes, self.settings.initial
        proposals = [
            proposal
            for index, scope in enumerate(scopes)
            for proposal in self.fill(
                len(range(index, count, len(scopes))), partial(self._random, scope, "random")
            )
        ]
        return sorted(proposals, key=lambda proposal: proposal.expression.size)

    def propose(self) -> list[Proposal]:
        """Tuned exponents, neighbours of the best, the best in other scopes, children."""
        tuned = self._tuner.propose(self.generator, self.settings.tuned)
        near = self._near_the_best()
        steps = self.fill(self.settings.steps, lambda: next(near, None))
        return [*filter(self.is_new, [*tuned, *self._spread()]), *steps] + [
            proposal
            for niche, share in zip(self.niches, self._shares(), strict=True)
            for proposal in self.fill(
                share, partial(self._child, niche), partial(self._random, niche.scope, "immigrant")
            )
        ]

    def learn(self, results: Sequence[Result]) -> None:
        """Every result joins the niche of its scope; results with a loss also go to the `Tuner`."""
        self._tuner.add(results)
        results = [(candidate, on_one_scale(evaluation)) for candidate, evaluation in results]
        for niche in self.niches:
            niche.add(result for result in results if result[0].scope == niche.scope)
        self._recent.extend(result for result in results if result[1].counts)

    def _spread(self) -> Iterator[Proposal]:
        """The best of each niche that were not tried elsewhere yet, in every other scope."""
        for niche in self.niches:
            for candidate, _ in niche.members[: self.settings.spread]:
                if candidate.number not in self._tried:
                    self._tried.add(candidate.number)
                    for scope in self.space.scopes:
                        if scope != niche.scope:
                            parents = (candidate.number,)
                            yield Proposal(candidate.expression, scope, parents, "migrate")

    def _near_the_best(self) -> Iterator[Proposal]:
        """The neighbours of the best members, starting with the best."""
        for candidate, _ in self.population[: self.settings.spread]:
            for form in neighbours(candidate.expression, self.space):
                yield Proposal(form, candidate.scope, (candidate.number,), "step")

    def _random(self, scope: Group, operation: str) -> Proposal:
        settings = self.settings
        expression = random_start(self.generator, self.space, settings.depth, settings.products)
        return Proposal(expression, scope, operation=operation)

    def _child(self, niche: Population) -> Proposal | None:
        settings, chance = self.settings, self.generator.random()
        if not niche.members or chance < settings.immigrants:
            return self._random(niche.scope, "immigrant")
        if chance < settings.immigrants + settings.migrants:
            sources = [source for source in self.niches if source is not niche and source.members]
            if sources:
                parent, _ = self._parent(sources[self.generator.integers(len(sources))])
                return Proposal(parent.expression, niche.scope, (parent.number,), "migrate")
        mother, _ = self._parent(niche)
        if chance > 1 - settings.crossover:
            father, _ = self._parent(niche)
            child = crossover(self.generator, mother.expression, father.expression, self.space)
            parents: tuple[int, ...] = (mother.number, father.number)
            name = "crossover"
        else:
            parents = (mother.number,)
            name, child = self._mutated(mother.expression)
        return Proposal(child, niche.scope, parents, name) if child else None

    def _parent(self, niche: Population) -> Result:
        return niche.tournament(self.generator, self.settings.tournament, self.settings.parsimony)

    def _mutated(self, expression: Expression) -> tuple[str, Expression | None]:
        """The expression after one mutation or two, named by the first."""
        name = self._mutations[self.generator.choice(len(self._mutations), p=self._chances)]
        child = MUTATIONS[name](self.generator, expression, self.space)
        if child is not None and self.generator.random() < self.settings.twice:
            second = self._mutations[self.generator.choice(len(self._mutations), p=self._chances)]
            child = MUTATIONS[second](self.generator, child, self.space) or child
        return name, child

    def _shares(self) -> list[int]:
        """How many of a batch each niche gets."""
        best = sorted(self._recent, key=lambda result: result[1].key)
        best = best[: -(-len(best) // 10)]
        success = Counter(candidate.scope for candidate, _ in best)
        count, even = len(self.niches), self.settings.even if best else 1.0
        exact = [
            self.settings.batch
            * (even / count + (1 - even) * success[niche.scope] / max(1, len(best)))
            for niche in self.niches
        ]
        shares = [int(share) for share in exact]
        # The rest after rounding goes to the largest remainders, on ties to the first niche.
        order = sorted(range(count), key=lambda index: shares[index] - exact[index])
        for index in order[: self.settings.batch - sum(shares)]:
            shares[index] += 1
        return shares


def on_one_scale(evaluation: Evaluation) -> Evaluation:
    """The evaluation with its expected value, which can be compared between all rungs."""
    if evaluation.expected is None:
        return evaluation
    return replace(evaluation, rung=1, value=evaluation.expected)
