"""Random search, as a baseline: typed random expressions, none of them twice."""

from collections.abc import Sequence

from pydantic import Field

from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal, Result
from pruner_zero.evolution.generate import random_start
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric import Metric
from pruner_zero.settings import Settings


class RandomSettings(Settings):
    """Settings of random search.

    batch: candidates asked at once.
    """

    batch: int = Field(24, ge=1)


class RandomSearch(BatchAlgorithm):
    """Random expressions under random scopes, as in the first batch of the default algorithm."""

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        settings: RandomSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(space, seed, seed_metrics)
        self.settings = settings or RandomSettings()

    def start(self) -> list[Proposal]:
        return self.propose()

    def propose(self) -> list[Proposal]:
        return self.fill(self.settings.batch, self._random)

    def _random(self) -> Proposal:
        scope = self.space.scopes[self.generator.integers(len(self.space.scopes))]
        return Proposal(random_start(self.generator, self.space), scope)

    def learn(self, results: Sequence[Result]) -> None:
        """The results change nothing."""
