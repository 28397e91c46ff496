"""The search algorithms by name, and random search."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import Field

from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.ask import BatchAlgorithm, Proposal
from pruner_zero.evolution.niches import Evolution
from pruner_zero.evolution.published import Published
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.variation import START_DEPTH, pick, random_expression
from pruner_zero.metric.metric import Metric
from pruner_zero.settings.base import Settings
from pruner_zero.settings.read_settings import read_settings


class RandomSettings(Settings):
    """Settings of random search.

    batch: candidates asked at once.
    """

    batch: int = Field(24, ge=1)


class RandomSearch(BatchAlgorithm):
    """Random expressions under random scopes, none of them twice, as a baseline."""

    settings_type = RandomSettings
    settings: RandomSettings

    def propose(self) -> list[Proposal]:
        return self.fill(self.settings.batch, self._random)

    def _random(self) -> Proposal:
        scope = pick(self.generator, self.space.scopes)
        return Proposal(random_expression(self.generator, self.space, depth=START_DEPTH), scope)


ALGORITHMS: Mapping[str, type[BatchAlgorithm]] = MappingProxyType(
    {"default": Evolution, "published": Published, "random": RandomSearch}
)


def make_algorithm(
    algorithm: str | type[BatchAlgorithm],
    space: SearchSpace | None,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    seed_metrics: Sequence[Metric] = (),
) -> BatchAlgorithm:
    """The algorithm of that name or class, in its default space where none is given.

    settings: some of the algorithm's settings. seed_metrics: known metrics that open the first
    batch, each under its own scope, or under all scopes where the space has no such.
    Raises PrunerZeroError for unknown names and settings, and for a seed metric with a terminal
    that is not in the space.
    """
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            near = did_you_mean(algorithm, ALGORITHMS)
            raise PrunerZeroError(f"--algorithm is '{algorithm}': no algorithm: {near}")
        algorithm = ALGORITHMS[algorithm]
    checked = read_settings(algorithm.settings_type, settings or {}, within="algorithm_settings")
    return algorithm(space or algorithm.default_space, seed, checked, seed_metrics)
