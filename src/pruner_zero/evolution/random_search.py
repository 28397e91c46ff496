"""Random search, as a baseline: typed random expressions, none of them twice."""

from collections.abc import Sequence

from pydantic import Field

from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal, Result
from pruner_zero.evolution.generate import random_start
from pruner_zero.evolution.population import best_first
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric import Metric
from pruner_zero.settings import Settings


class RandomSettings(Settings):
    """Settings of random search; the defaults are those of the default algorithm's first batch.

    batch: candidates asked at once. depth: fewest and most levels of random trees. products:
    the share of products among the expressions (`random_product`). keep: size of `population`.
    """

    batch: int = Field(48, ge=1)
    depth: tuple[int, int] = (2, 4)
    products: float = Field(0.5, ge=0, le=1)
    keep: int = Field(50, ge=1)


class RandomSearch(BatchAlgorithm):
    """Random expressions under random scopes; `population` holds the best so far."""

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        settings: RandomSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(space, seed, seed_metrics)
        self.settings = settings or RandomSettings()
        self._best: Sequence[Result] = []

    @property
    def population(self) -> Sequence[Result]:
        return self._best

    def start(self) -> list[Proposal]:
        return self.propose()

    def propose(self) -> list[Proposal]:
        return self.fill(self.settings.batch, self._random)

    def _random(self) -> Proposal:
        scope = self.space.scopes[self.generator.integers(len(self.space.scopes))]
        settings = self.settings
        expression = random_start(self.generator, self.space, settings.depth, settings.products)
        return Proposal(expression, scope)

    def learn(self, results: Sequence[Result]) -> None:
        counted = [result for result in results if result[1].counts]
        self._best = best_first([*self._best, *counted])[: self.settings.keep]
