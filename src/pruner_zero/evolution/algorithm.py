"""The search algorithms behind one ask/tell interface, by name, and random search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.ask_tell import BatchAlgorithm, Proposal
from pruner_zero.evolution.niches import Evolution, EvolutionSettings
from pruner_zero.evolution.published import Published, PublishedSettings
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.evolution.variation import random_start
from pruner_zero.metric.metric import Metric
from pruner_zero.plugins import Registry
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
        scope = self.space.scopes[self.generator.integers(len(self.space.scopes))]
        return Proposal(random_start(self.generator, self.space), scope)


@dataclass(frozen=True)
class AlgorithmKind:
    """How an algorithm is made: its constructor, its settings, and its default space.

    build: takes the space, the seed, the settings and known metrics to begin with.
    """

    build: Callable[[SearchSpace, int, Any, Sequence[Metric]], BatchAlgorithm]
    settings: type[Settings]
    space: SearchSpace


ALGORITHMS: Registry[AlgorithmKind] = Registry(
    "algorithms",
    AlgorithmKind,
    {
        "default": AlgorithmKind(Evolution, EvolutionSettings, SearchSpace()),
        "published": AlgorithmKind(Published, PublishedSettings, PUBLISHED_SPACE),
        "random": AlgorithmKind(RandomSearch, RandomSettings, SearchSpace()),
    },
)


def make_algorithm(
    name: str,
    space: SearchSpace | None,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    seed_metrics: Sequence[Metric] = (),
) -> BatchAlgorithm:
    """The algorithm of that name, in its default space where none is given.

    settings: some of the algorithm's settings. seed_metrics: known metrics that open the first
    batch, each under its own scope, or under all scopes where the space has no such.
    Raises PrunerZeroError for unknown names and settings, and for a seed metric with a terminal
    that is not in the space.
    """
    if name not in ALGORITHMS:
        raise PrunerZeroError(f"unknown algorithm '{name}': {did_you_mean(name, ALGORITHMS)}")
    algorithm = ALGORITHMS[name]
    checked = read_settings(algorithm.settings, settings or {}, within="algorithm_settings")
    return algorithm.build(space or algorithm.space, seed, checked, seed_metrics)
