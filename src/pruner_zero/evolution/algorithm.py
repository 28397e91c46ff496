"""The search algorithms behind one ask/tell interface, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.niches import Evolution, EvolutionSettings
from pruner_zero.evolution.published import Published, PublishedSettings
from pruner_zero.evolution.random_search import RandomSearch, RandomSettings
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.metric import Metric
from pruner_zero.plugins import Registry
from pruner_zero.settings import Settings, read_settings


class Algorithm(Protocol):
    """Asks for candidates to be judged and learns from the results, batch by batch.

    Its state depends on the seed and the results alone: a resumed run replays them.
    """

    def ask(self) -> list[Candidate]:
        """The next batch, numbered over the whole run; empty where nothing new is found."""

    def tell(self, results: Sequence[tuple[Candidate, Evaluation]]) -> None:
        """Learn the results of a whole batch, in its order. Raises ValueError for any other."""

    @property
    def avoided(self) -> Mapping[str, int]:
        """How many proposals were dropped without being asked, by the reason."""


@dataclass(frozen=True)
class AlgorithmKind:
    """How an algorithm is made: its constructor, its settings, and its default space.

    build: takes the space, the seed, the settings and known metrics to begin with.
    """

    build: Callable[[SearchSpace, int, Any, Sequence[Metric]], Algorithm]
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
) -> Algorithm:
    """The algorithm of that name, in its default space where none is given.

    settings: some of the algorithm's settings. seed_metrics: known metrics that open the first
    batch, each under its own scope, or under all scopes where the space has no such.
    Raises PrunerZeroError for unknown names and settings, and for a seed metric with a terminal
    that is not in the space.
    """
    if name not in ALGORITHMS:
        raise PrunerZeroError(f"unknown algorithm '{name}': {did_you_mean(name, ALGORITHMS)}")
    kind = ALGORITHMS[name]
    checked = read_settings(kind.settings, settings or {}, within="algorithm_settings")
    return kind.build(space or kind.space, seed, checked, seed_metrics)
