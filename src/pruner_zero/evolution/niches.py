"""The default algorithm: one population per comparison group, which exchange expressions."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from pydantic import Field

from pruner_zero.choices import Group
from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal, Result
from pruner_zero.evolution.candidate import Evaluation
from pruner_zero.evolution.generate import random_start
from pruner_zero.evolution.population import Population, best_first
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.tuning import Tuner
from pruner_zero.evolution.variation import MUTATIONS, crossover, neighbours
from pruner_zero.metric import Expression, Metric
from pruner_zero.settings.base import Settings

# The contestants of a tournament, which values count as equal there (`Population.tournament`), and
# the members of each niche that never leave.
_CONTESTANTS, _PARSIMONY, _ELITE = 6, 0.02, 8
# This many of the best members of each scope are tried in every other scope, and this many of the
# best of all have neighbours.
_SPREAD = 3
# Shares of the children that are random, that come from another scope, and that have two parents;
# the rest have one mutation, and with chance `_TWICE` a second one.
_IMMIGRANTS, _MIGRANTS, _CROSSOVER, _TWICE = 0.05, 0.1, 0.25, 0.5
# How often each mutation is drawn, relative to the others.
_WEIGHTS = {
    "grow": 2.0,
    "shrink": 1.0,
    "hoist": 0.5,
    "replace": 1.0,
    "swap": 0.5,
    "operator": 1.5,
    "exponent": 3.0,
    "terminal": 1.0,
}
# The candidates of a batch with exponents fitted by `Tuner`.
_TUNED = 4
# The share of the children that is split evenly over the scopes; the rest is split by the scopes'
# part in the best tenth of the last `_MEMORY` results.
_EVEN, _MEMORY = 0.5, 240


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
    expressions migrate between niches, and successful niches get more of each batch. The first
    batch is random. Source: islands with migration (Tanese 1989), size-fair crossover (Langdon
    2000), exponents apart from structure (`Tuner`); one niche for each comparison group is ours.
    """

    kind = EvolutionSettings
    settings: EvolutionSettings

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        settings: EvolutionSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(space, seed, settings, seed_metrics)
        members = self.settings.population
        self.niches = [Population(scope, members, _ELITE) for scope in space.scopes]
        self._tuner = Tuner(space)
        self._recent: deque[Result] = deque(maxlen=_MEMORY)
        self._tried: set[int] = set()

    @property
    def population(self) -> Sequence[Result]:
        """The candidates that parents are drawn from, best first."""
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
        tuned = self._tuner.propose(self.generator, _TUNED)
        neighbouring = self._near_the_best()
        steps = self.fill(self.settings.steps, lambda: next(neighbouring, None))
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
            for candidate, _ in niche.members[:_SPREAD]:
                if candidate.number not in self._tried:
                    self._tried.add(candidate.number)
                    for scope in self.space.scopes:
                        if scope != niche.scope:
                            parents = (candidate.number,)
                            yield Proposal(candidate.expression, scope, parents, "migrate")

    def _near_the_best(self) -> Iterator[Proposal]:
        """The neighbours of the best members, starting with the best."""
        for candidate, _ in self.population[:_SPREAD]:
            for form in neighbours(candidate.expression, self.space):
                yield Proposal(form, candidate.scope, (candidate.number,), "step")

    def _random(self, scope: Group, operation: str) -> Proposal:
        return Proposal(random_start(self.generator, self.space), scope, operation=operation)

    def _child(self, niche: Population) -> Proposal | None:
        chance = self.generator.random()
        if not niche.members or chance < _IMMIGRANTS:
            return self._random(niche.scope, "immigrant")
        if chance < _IMMIGRANTS + _MIGRANTS:
            sources = [source for source in self.niches if source is not niche and source.members]
            if sources:
                parent, _ = self._parent(sources[self.generator.integers(len(sources))])
                return Proposal(parent.expression, niche.scope, (parent.number,), "migrate")
        mother, _ = self._parent(niche)
        if chance > 1 - _CROSSOVER:
            father, _ = self._parent(niche)
            child = crossover(self.generator, mother.expression, father.expression, self.space)
            parents: tuple[int, ...] = (mother.number, father.number)
            name = "crossover"
        else:
            parents = (mother.number,)
            name, child = self._mutated(mother.expression)
        return Proposal(child, niche.scope, parents, name) if child else None

    def _parent(self, niche: Population) -> Result:
        return niche.tournament(self.generator, _CONTESTANTS, _PARSIMONY)

    def _mutated(self, expression: Expression) -> tuple[str, Expression | None]:
        """The expression after one mutation or two, named by the first."""
        name = self._drawn_mutation()
        child = MUTATIONS[name](self.generator, expression, self.space)
        if child is not None and self.generator.random() < _TWICE:
            second = self._drawn_mutation()
            child = MUTATIONS[second](self.generator, child, self.space) or child
        return name, child

    def _drawn_mutation(self) -> str:
        total = sum(_WEIGHTS.values())
        chances = [weight / total for weight in _WEIGHTS.values()]
        return list(_WEIGHTS)[self.generator.choice(len(chances), p=chances)]

    def _shares(self) -> list[int]:
        """How many of a batch each niche gets."""
        best = sorted(self._recent, key=lambda result: result[1].key)
        best = best[: -(-len(best) // 10)]
        success = Counter(candidate.scope for candidate, _ in best)
        count, even = len(self.niches), _EVEN if best else 1.0
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
