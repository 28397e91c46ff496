"""The default algorithm: one population per comparison group, which exchange expressions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from pydantic import Field

from pruner_zero.choices import Group
from pruner_zero.evolution.ask import BatchAlgorithm, Proposal, Result, best_first
from pruner_zero.evolution.candidate import STEP, Candidate, Evaluation, Template
from pruner_zero.evolution.space import SearchSpace, simplest
from pruner_zero.evolution.tell import Tuner
from pruner_zero.evolution.variation import (
    MUTATIONS,
    START_DEPTH,
    neighbours,
    pick,
    plain_products,
    priced,
    random_expression,
)
from pruner_zero.metric.metric import Metric
from pruner_zero.settings.base import Settings

# The contestants of a tournament.
_CONTESTANTS = 6
# This many of the best members of each scope are tried in every other scope, and this many of the
# best of all have neighbours.
_SPREAD = 3
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

    Members of a niche compete only with each other, so that no scope crowds out another. The best
    expressions migrate between niches. The first batch is plain products and random expressions.
    Which other sources of candidates brought nothing is in benchmarks/decisions.md.
    Source: islands with migration (Tanese 1989), exponents apart from structure (`Tuner`); one
    niche for each comparison group is ours.
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
            for proposal in self.fill(count, partial(self._random, scope))
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
                count, partial(self._child, scope), partial(self._random, scope)
            )
        ]

    def learn(self, results: Sequence[Result]) -> None:
        """Every result joins the niche of its scope; results with a loss also go to the `Tuner`."""
        self._tuner.add(results)
        for candidate, evaluation in results:
            if evaluation.counts:
                self.niches[candidate.scope].append((candidate, _on_one_scale(evaluation)))
        for scope, members in self.niches.items():
            self.niches[scope] = best_first(members)[: self.settings.population]

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
        """The neighbours of the best skeletons, starting with the best."""
        best: dict[Template, Candidate] = {}
        for candidate, _ in self.population:
            best.setdefault(candidate.template, candidate)
        for candidate in islice(best.values(), _SPREAD):
            for form in neighbours(candidate.expression, self.space):
                yield Proposal(form, candidate.scope, (candidate.number,), STEP)

    def _random(self, scope: Group) -> Proposal:
        return Proposal(random_expression(self.generator, self.space, depth=START_DEPTH), scope)

    def _child(self, scope: Group) -> Proposal | None:
        """The winner of a tournament after one mutation; None where there is none."""
        if not (members := self.niches[scope]):
            return None
        # Members are sorted: the lowest index is that of the best.
        parent = members[min(self.generator.integers(len(members), size=_CONTESTANTS))][0]
        name = pick(self.generator, list(MUTATIONS))
        child = MUTATIONS[name](self.generator, parent.expression, self.space)
        return Proposal(child, scope, (parent.number,), name) if child else None


def _on_one_scale(evaluation: Evaluation) -> Evaluation:
    """The evaluation with its expected value, which can be compared between all rungs."""
    if evaluation.expected is None:
        return evaluation
    return replace(evaluation, rung=1, value=evaluation.expected)
