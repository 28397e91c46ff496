"""What all algorithms share: numbering, the order of ask and tell, no candidate asked twice."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric import Expression, Metric, Shape, simplify_opposing
from pruner_zero.metric.canonical import canonical
from pruner_zero.sparsity import Scope

Result = tuple[Candidate, Evaluation]

# So many draws in a row without anything new: the source is dry.
_TRIES = 100


class Proposal(NamedTuple):
    """A candidate without its number."""

    expression: Expression
    scope: Scope
    parents: tuple[int, ...] = ()
    operation: str = "random"
    offsets: tuple[float, ...] = ()


class BatchAlgorithm(ABC):
    """An algorithm that asks a batch, waits for all its results, and asks the next.

    Its state depends on the seed and on what was told, so that replaying the asks and tells
    of a run restores it. avoided: how many proposals were dropped without being asked, by what
    gave them away: "no mask" (nothing to rank by), "identical" (the same tree), "opposing"
    (the same after the paper's simplification) or "canonical" (the same in canonical form).
    Source: ours.
    """

    def __init__(self, space: SearchSpace, seed: int, seed_metrics: Sequence[Metric] = ()) -> None:
        self.space = space
        self.generator = np.random.default_rng(np.random.SeedSequence(seed))
        self.avoided: Counter[str] = Counter()
        self._seeds = _planted(seed_metrics, space)
        self._open: tuple[Candidate, ...] = ()
        self._count = 0
        self._known: dict[str, set[tuple[Expression, Scope, tuple[float, ...]]]] = {
            "identical": set(),
            "opposing": set(),
            "canonical": set(),
        }

    def ask(self) -> list[Candidate]:
        """The next batch, numbered on from the last; an empty one where nothing new was found.

        Raises ValueError while the results of the last batch are missing.
        """
        if self._open:
            raise ValueError(f"tell the {len(self._open)} results of the last batch first")
        if self._count == 0:
            proposals = [*filter(self.is_new, self._seeds), *self.start()]
        else:
            proposals = self.propose()
        self._open = tuple(
            Candidate(number, *proposal) for number, proposal in enumerate(proposals, self._count)
        )
        self._count += len(self._open)
        return list(self._open)

    def tell(self, results: Sequence[Result]) -> None:
        """What became known of the whole batch, in the order of submission.

        Raises ValueError, and learns nothing, where the candidates are not those of the batch.
        """
        told = tuple(candidate for candidate, _ in results)
        if told != self._open:
            raise ValueError(
                f"tell the results of candidates {[one.number for one in self._open]} "
                f"in this order, not of {[one.number for one in told]}"
            )
        self._open = ()
        self.learn(results)

    @property
    @abstractmethod
    def population(self) -> Sequence[Result]:
        """The candidates that parents are drawn from, best first."""

    @abstractmethod
    def start(self) -> list[Proposal]:
        """The first batch."""

    @abstractmethod
    def propose(self) -> list[Proposal]:
        """Every later batch."""

    @abstractmethod
    def learn(self, results: Sequence[Result]) -> None:
        """Take in the results of a batch."""

    def is_new(self, proposal: Proposal) -> bool:
        """Whether it can mask and was never asked; it counts as asked from now on."""
        expression, scope, offsets = proposal.expression, proposal.scope, proposal.offsets
        if (expression, scope, offsets) in self._known["identical"]:
            self.avoided["identical"] += 1
            return False
        self._known["identical"].add((expression, scope, offsets))
        form = canonical(expression, scope)
        # What `masks` says, without working out the canonical form twice.
        if form.shape is not Shape.MATRIX:
            self.avoided["no mask"] += 1
            return False
        forms = {"canonical": form, "opposing": simplify_opposing(expression)}
        marks = {level: (one, scope, offsets) for level, one in forms.items()}
        seen = [level for level, mark in marks.items() if mark in self._known[level]]
        for level, mark in marks.items():
            self._known[level].add(mark)
        # The paper's simplification is no proof of equal masks (it takes sqrt(sqr(x)) for x):
        # it is only credited with what the canonical form confirms.
        if "canonical" in seen:
            self.avoided[seen[-1]] += 1
        return "canonical" not in seen

    def fill(self, count: int, *draws: Callable[[], Proposal | None]) -> list[Proposal]:
        """So many new proposals of the first of `draws` that still gives any; fewer in the end."""
        found: list[Proposal] = []
        for draw in draws:
            tries = _TRIES
            while len(found) < count and tries:
                proposal = draw()
                if proposal is not None and self.is_new(proposal):
                    found.append(proposal)
                    tries = _TRIES
                else:
                    tries -= 1
        return found


def _planted(metrics: Sequence[Metric], space: SearchSpace) -> list[Proposal]:
    """Every known metric under its own scope, or under all where it names none."""
    return [
        Proposal(metric.expression, scope, operation="seed")
        for metric in metrics
        for scope in space.scopes
        if metric.scope in (None, scope)
    ]
