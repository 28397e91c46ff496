"""The evolution of the paper, as far as it is described: one population, steady state."""

from collections.abc import Sequence

from pydantic import Field

from pruner_zero.choices import Group
from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal, Result
from pruner_zero.evolution.generate import random_published_tree
from pruner_zero.evolution.population import best_first
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.evolution.variation import node_mutation, published_crossover
from pruner_zero.metric import Expression, Metric
from pruner_zero.metric.canonical import simplify_opposing
from pruner_zero.settings import Settings

# Enough to keep some workers busy, and few enough that a stopped run loses little.
_FOUNDERS = 10


class PublishedSettings(Settings):
    """Settings of the paper's evolution; choices that the paper leaves open are marked (ours).

    population: random trees of min_depth … max_depth levels, asked ten at a time, so that a run
    that is stopped before all are judged has a result. tournament_share: the share of the
    population that is drawn (ours: half); parents: this many of the best drawn members may have a
    child. mutation: the chance that a child is mutated at one node (ours: exactly one). simplify:
    opposing-operation simplification of every tree. scope: the comparison group, by default the
    first of the space, which is the row as in the paper. batch: children asked at once; 1 is the
    paper's steady state.
    """

    population: int = Field(50, ge=2)
    min_depth: int = Field(3, ge=1)
    max_depth: int = Field(5, ge=1)
    tournament_share: float = Field(0.5, gt=0, le=1)
    parents: int = Field(10, ge=1)
    mutation: float = Field(0.5, ge=0, le=1)
    simplify: bool = True
    scope: Group | None = None
    batch: int = Field(1, ge=1)


class Published(BatchAlgorithm):
    """Tournament, subtree crossover, node mutation, simplification; the worst leaves.

    Trees are not typed: trees that give no mask are asked too, count as the worst of the
    population, and leave first. A child equal to a parent is replaced by a random tree. Nothing
    else is compared, so that a tree can be asked again, as in the paper.
    Source: Dong 2024, arXiv 2406.02924.
    """

    def __init__(
        self,
        space: SearchSpace = PUBLISHED_SPACE,
        seed: int = 0,
        settings: PublishedSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        self.settings = settings or PublishedSettings()
        self.scope = self.settings.scope or space.scopes[0]
        super().__init__(space.model_copy(update={"scopes": (self.scope,)}), seed, seed_metrics)
        self._members: Sequence[Result] = []
        self._founded = 0

    @property
    def population(self) -> Sequence[Result]:
        return self._members

    def start(self) -> list[Proposal]:
        return self._founders()

    def propose(self) -> list[Proposal]:
        return self._founders() or [self._child() for _ in range(self.settings.batch)]

    def learn(self, results: Sequence[Result]) -> None:
        """The results join the population, and the worst beyond its size leave."""
        self._members = best_first([*self._members, *results])[: self.settings.population]

    def _founders(self) -> list[Proposal]:
        """More of the first population; none where it is complete."""
        count = min(_FOUNDERS, self.settings.population - self._founded)
        self._founded += count
        return [self._fresh() for _ in range(count)]

    def _fresh(self) -> Proposal:
        tree = random_published_tree(
            self.generator,
            self.space.terminals,
            self.settings.min_depth,
            self.settings.max_depth,
        )
        return Proposal(self._simplified(tree), self.scope)

    def _child(self) -> Proposal:
        members, settings = self._members, self.settings
        contestants = max(2, round(settings.tournament_share * len(members)))
        drawn = self.generator.choice(
            len(members), size=min(contestants, len(members)), replace=False
        )
        # Members are sorted: the lowest indices are the best.
        best = sorted(drawn.tolist())[: settings.parents]
        pair = self.generator.choice(best, size=2, replace=len(best) < 2)
        mother, father = (members[index][0] for index in pair)
        child = published_crossover(
            self.generator, mother.expression, father.expression, self.space
        )
        operation = "crossover"
        if child is not None and self.generator.random() < settings.mutation:
            child = node_mutation(self.generator, child, self.space)
            operation = "mutation"
        if child is not None:
            child = self._simplified(child)
        if child is None or child in (mother.expression, father.expression):
            return self._fresh()._replace(operation="immigrant")
        parents = (mother.number, father.number)
        return Proposal(child, self.scope, parents, operation)

    def _simplified(self, expression: Expression) -> Expression:
        return simplify_opposing(expression) if self.settings.simplify else expression
