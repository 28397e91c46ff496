"""The search algorithms behind one ask/tell interface, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.niches import Evolution, EvolutionSettings
from pruner_zero.evolution.published import Published, PublishedSettings
from pruner_zero.evolution.random_search import RandomSearch, RandomSettings
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.metric import Metric
from pruner_zero.settings import Settings, read_settings


class Algorithm(Protocol):
    """Asks for candidates to be judged and learns from the results, batch by batch.

    The state is a function of the seed and of what was told: to resume, replay both.
    """

    def ask(self) -> list[Candidate]:
        """The next batch, numbered on over the whole run; empty where nothing new is found."""

    def tell(self, results: Sequence[tuple[Candidate, Evaluation]]) -> None:
        """The whole batch in the order of submission. Raises ValueError otherwise."""

    @property
    def population(self) -> Sequence[tuple[Candidate, Evaluation]]:
        """The candidates that parents are drawn from, best first."""

    @property
    def avoided(self) -> Mapping[str, int]:
        """How many proposals were dropped without being asked, by what gave them away."""


@dataclass(frozen=True)
class Kind:
    """An algorithm as the registry knows it: how to make one, its settings, its space."""

    build: Callable[..., Algorithm]
    settings: type[Settings]
    space: SearchSpace


ALGORITHMS: Mapping[str, Kind] = MappingProxyType(
    {
        "default": Kind(Evolution, EvolutionSettings, SearchSpace()),
        "published": Kind(Published, PublishedSettings, PUBLISHED_SPACE),
        "random": Kind(RandomSearch, RandomSettings, SearchSpace()),
    }
)


def make_algorithm(
    name: str,
    space: SearchSpace | None,
    seed: int,
    settings: Settings | Mapping[str, Any] | None = None,
    seed_metrics: Sequence[Metric] = (),
) -> Algorithm:
    """The algorithm of that name, in its own space where none is given.

    settings: those of the algorithm, or a mapping of some of them. seed_metrics: known metrics
    that open the first batch, each under its own scope, or under all where it names none.
    Raises PrunerZeroError for unknown names and settings.
    """
    if name not in ALGORITHMS:
        raise PrunerZeroError(f"unknown algorithm '{name}': {did_you_mean(name, ALGORITHMS)}")
    kind = ALGORITHMS[name]
    if not isinstance(settings, kind.settings):
        if isinstance(settings, Settings):
            raise PrunerZeroError(
                f"algorithm '{name}' takes {kind.settings.__name__}, not {type(settings).__name__}"
            )
        settings = read_settings(kind.settings, settings or {})
    return kind.build(space or kind.space, seed, settings, seed_metrics)
