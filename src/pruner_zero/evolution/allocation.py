"""Evolving how much of each matrix is pruned: under one metric, or together with the metric."""

from collections.abc import Sequence

from pydantic import Field

from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal, Result
from pruner_zero.evolution.layout import Layout
from pruner_zero.evolution.niches import Evolution, EvolutionSettings, on_one_scale
from pruner_zero.evolution.offsets import Offsets, OffsetSettings, OffsetVariation
from pruner_zero.evolution.population import Population, best_first
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric import Expression, Metric
from pruner_zero.sparsity import Scope


class AllocationSettings(OffsetSettings):
    """The evolution of allocations, beside what offsets are drawn from.

    initial, batch: candidates of the first and of every later batch. parents: so many of the
    best have children. crossover: the share of children with two parents.
    """

    initial: int = Field(48, ge=1)
    batch: int = Field(24, ge=1)
    parents: int = Field(16, ge=2)
    crossover: float = Field(0.3, ge=0, le=1)


class AllocationEvolution(BatchAlgorithm):
    """Offsets under one metric, the best μ of all so far and λ children of them in turn.

    The first candidate moves nothing, others of the first batch are random. Under a metric of
    global scope offsets move the shares that it chooses by itself.
    Source: ours; a (μ + λ) evolution strategy.
    """

    def __init__(
        self,
        expression: Expression,
        scope: Scope,
        layout: Layout,
        seed: int,
        settings: AllocationSettings | None = None,
    ) -> None:
        super().__init__(SearchSpace(scopes=(scope,)), seed)
        self.settings = settings or AllocationSettings()
        self.expression, self.scope = expression, scope
        self.variation = OffsetVariation(layout, self.settings)
        self._members: list[Result] = []

    @property
    def population(self) -> Sequence[Result]:
        return self._members

    def start(self) -> list[Proposal]:
        """No offsets, then random ones."""
        first = self._proposal(self.variation.none, (), "start")
        self.is_new(first)
        return [first, *self.fill(self.settings.initial - 1, self._random)]

    def propose(self) -> list[Proposal]:
        """Children of the best, or random ones where none works."""
        return self.fill(self.settings.batch, self._child if self._members else self._random)

    def learn(self, results: Sequence[Result]) -> None:
        """The best of the old and the new have the next children."""
        news = [(candidate, on_one_scale(one)) for candidate, one in results if one.counts]
        self._members = list(best_first([*self._members, *news]))[: self.settings.parents]

    def _random(self) -> Proposal:
        return self._proposal(self.variation.random(self.generator), (), "random")

    def _child(self) -> Proposal:
        generator, (mother, offsets) = self.generator, self._parent()
        if generator.random() < self.settings.crossover and len(self._members) > 1:
            father, others = self._parent()
            between = self.variation.crossover(generator, offsets, others)
            return self._proposal(between, (mother, father), "crossover")
        operation, moved = self.variation.mutate(generator, offsets)
        return self._proposal(moved, (mother,), operation)

    def _parent(self) -> tuple[int, Offsets]:
        """The better of two of the members, which are sorted."""
        candidate, _ = self._members[self.generator.integers(len(self._members), size=2).min()]
        return candidate.number, candidate.offsets

    def _proposal(self, offsets: Offsets, parents: tuple[int, ...], operation: str) -> Proposal:
        return Proposal(self.expression, self.scope, parents, operation, offsets)


class JointSettings(EvolutionSettings):
    """The evolution of metrics with their allocations.

    shared: the part of random candidates that begin with random offsets, the others have none.
    moved: the part of children that keep their mother's expression and have other offsets.
    offsets: what those are drawn from.
    """

    shared: float = Field(0.25, ge=0, le=1)
    moved: float = Field(0.3, ge=0, le=1)
    offsets: OffsetSettings = OffsetSettings()


class JointEvolution(Evolution):
    """Metrics as `Evolution` finds them, each with offsets that its children inherit.

    Under a global scope offsets move the shares that the metric chooses by itself; a metric that
    moves to another scope leaves its offsets behind. Source: ours.
    """

    settings: JointSettings

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        layout: Layout,
        settings: JointSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(space, seed, settings or JointSettings(), seed_metrics)
        self.variation = OffsetVariation(layout, self.settings.offsets)

    def _random(self, scope: Scope, operation: str) -> Proposal:
        found = super()._random(scope, operation)
        if self.generator.random() < self.settings.shared:
            return found._replace(offsets=self.variation.random(self.generator))
        return found

    def _child(self, niche: Population) -> Proposal | None:
        if not niche.members or self.generator.random() >= self.settings.moved:
            return super()._child(niche)
        mother, _ = self._parent(niche)
        father, _ = self._parent(niche)
        offsets = mother.offsets or self.variation.none
        if father.offsets not in (mother.offsets, ()) and self.generator.random() < 0.5:
            offsets = self.variation.crossover(self.generator, offsets, father.offsets)
            parents = (mother.number, father.number)
            return Proposal(mother.expression, niche.scope, parents, "blend", offsets)
        operation, offsets = self.variation.mutate(self.generator, offsets)
        return Proposal(mother.expression, niche.scope, (mother.number,), operation, offsets)
