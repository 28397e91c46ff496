"""The base of algorithms: ask and tell in turn, numbered candidates, none asked twice."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from pruner_zero.choices import Group
from pruner_zero.errors import PrunerZeroError, excerpt
from pruner_zero.evolution.candidate import SEED, Candidate, Evaluation
from pruner_zero.evolution.space import SearchSpace, simplest
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.expression import Expression
from pruner_zero.metric.metric import Metric
from pruner_zero.metric.operators import Shape
from pruner_zero.settings.base import Settings

Result = tuple[Candidate, Evaluation]

# After this many draws in a row without a new proposal, a source counts as exhausted.
_TRIES = 100


class Proposal(NamedTuple):
    """A candidate without its number."""

    expression: Expression
    scope: Group
    parents: tuple[int, ...] = ()
    operation: str = "random"


class BatchAlgorithm(ABC):
    """An algorithm that asks for a batch, is told all its results, and asks for the next.

    Its state depends on the seed and on the results alone, so that replaying the asks and tells
    of a run restores it. settings: an instance of the class's `settings_type`. default_space: where
    the user gives none. avoided: how many
    proposals were dropped without being asked, by the reason: "no mask" (every weight has the same
    score) or "canonical" (a known canonical form). A subclass has to implement `propose`.
    Source: the ask-and-tell interface, as in Optuna (Akiba et al. 2019, 1907.10902).
    """

    settings_type: ClassVar[type[Settings]] = Settings
    default_space: ClassVar[SearchSpace] = SearchSpace()

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        settings: Settings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        self.space = space
        self.settings = settings or self.settings_type()
        self.generator = np.random.default_rng(np.random.SeedSequence(seed))
        self.avoided: Counter[str] = Counter()
        self._seeds = _seeds(seed_metrics, space)
        self._waiting: list[Proposal] = []
        self._open: tuple[Candidate, ...] = ()
        self._count = 0
        self._asked: set[tuple[Expression, Group]] = set()

    def ask(self, most: int | None = None) -> list[Candidate]:
        """The next batch, numbered on from the last; empty where nothing new was found.

        most: no more candidates than these; the rest of the batch is the next batch. Raises
        ValueError while the results of the last batch are missing.
        """
        if self._open:
            raise ValueError(f"tell the {len(self._open)} results of the last batch first")
        if not self._waiting:
            first = self._count == 0
            seeds = filter(self.is_new, self._seeds) if first else ()
            self._waiting = [*seeds, *(self.start() if first else self.propose())]
        count = len(self._waiting) if most is None else most
        asked, self._waiting = self._waiting[:count], self._waiting[count:]
        self._open = tuple(
            Candidate(number, *proposal) for number, proposal in enumerate(asked, self._count)
        )
        self._count += len(self._open)
        return list(self._open)

    def tell(self, results: Sequence[Result]) -> None:
        """Learn the results of the whole batch, in the order of submission.

        Raises ValueError, and learns nothing, where the candidates are not those of the batch.
        """
        judged = tuple(candidate for candidate, _ in results)
        if judged != self._open:
            raise ValueError(
                f"tell the results of candidates {[candidate.number for candidate in self._open]} "
                f"in this order, not of {[candidate.number for candidate in judged]}"
            )
        self._open = ()
        self.learn(results)

    def start(self) -> list[Proposal]:
        """The first batch; like every other by default."""
        return self.propose()

    @abstractmethod
    def propose(self) -> list[Proposal]:
        """Every later batch."""

    def learn(self, results: Sequence[Result]) -> None:
        """Take in the results of a batch; by default they change nothing."""
        del results

    def is_new(self, proposal: Proposal) -> bool:
        """Whether the proposal gives a mask and was never asked; it counts as asked from now on."""
        form = canonical(proposal.expression, proposal.scope), proposal.scope
        # This is the test of `masks`, without computing the canonical form twice.
        if form[0].shape is not Shape.MATRIX:
            self.avoided["no mask"] += 1
            return False
        if form in self._asked:
            self.avoided["canonical"] += 1
            return False
        self._asked.add(form)
        return True

    def fill(self, count: int, *draws: Callable[[], Proposal | None]) -> list[Proposal]:
        """`count` new proposals from `draws`, the next one where one is exhausted; else fewer.

        Each is in its simplest form (`simplest`), so that children inherit no ineffective nodes and
        exponents that differ by less than the grid are judged once.
        """
        proposals: list[Proposal] = []
        for draw in draws:
            tries = _TRIES
            while len(proposals) < count and tries:
                proposal = draw()
                if proposal is not None:
                    form = simplest(proposal.expression, proposal.scope, self.space)
                    proposal = proposal._replace(expression=form)
                if proposal is not None and self.is_new(proposal):
                    proposals.append(proposal)
                    tries = _TRIES
                else:
                    tries -= 1
        return proposals


def best_first(results: Iterable[Result]) -> list[Result]:
    """The results sorted by key, ties by number."""
    return sorted(results, key=lambda result: (result[1].key, result[0].number))


def _seeds(metrics: Sequence[Metric], space: SearchSpace) -> list[Proposal]:
    """The known metrics, each under its own scope, or under all scopes if the space has no such.

    Raises PrunerZeroError where a metric needs a terminal that is not in the space.
    """
    for metric in metrics:
        if missing := sorted(metric.needs - set(space.terminals)):
            names = " and ".join(missing)
            raise PrunerZeroError(
                f"the seed metric {excerpt(metric)} needs {names}: leave it out, or add {names} to "
                "`space: {terminals: …}`"
            )
    return [
        Proposal(metric.expression, scope, operation=SEED)
        for metric in metrics
        for scope in space.scopes
        if metric.scope == scope or metric.scope not in space.scopes
    ]
