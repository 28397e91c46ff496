"""Evolving how much of each matrix is pruned: one number a block and one a kind of matrix."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pruner_zero.metric import Expression
from pruner_zero.search.batch import BatchAlgorithm, Proposal, Result
from pruner_zero.search.evolution import on_one_scale
from pruner_zero.search.layout import Layout
from pruner_zero.search.population import best_first
from pruner_zero.search.space import SearchSpace
from pruner_zero.settings import Settings
from pruner_zero.sparsity import Scope

Genes = NDArray[np.float64]

# Finer differences between offsets, in logits, are none.
_DECIMALS = 4


class AllocationSettings(Settings):
    """The evolution of allocations.

    initial, batch: candidates of the first and of every later batch. parents: so many of the
    best have children. crossover: the share of children with two parents. spread, step: the
    standard deviation, in logits, of first offsets, and the range that of a change is drawn from.
    """

    initial: int = Field(48, ge=1)
    batch: int = Field(24, ge=1)
    parents: int = Field(16, ge=2)
    crossover: float = Field(0.3, ge=0, le=1)
    spread: float = Field(0.4, gt=0)
    step: tuple[float, float] = (0.03, 0.5)


class AllocationEvolution(BatchAlgorithm):
    """Offsets under one metric, the best μ of all so far and λ children of them in turn.

    The first candidate has no offsets, others of the first batch are smooth over the depth, with
    noise. A child has some offsets moved, all blocks moved smoothly, all offsets stretched, or
    lies on the line through two parents. Steps are drawn log-uniformly, so that coarse and fine
    ones are always tried. Under a metric of global scope offsets start from the shares that it
    chooses by itself, within matrices from then on. Source: ours; a (μ + λ) evolution strategy.
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
        self.expression, self.depth = expression, layout.depth
        self.scope: Scope = "matrix" if scope == "global" else scope
        self.first = "global" if scope == "global" else "uniform"
        self.count = layout.depth + len(layout.kind_names)
        self._members: list[Result] = []
        self._asked: set[tuple[float, ...]] = set()

    @property
    def population(self) -> Sequence[Result]:
        return self._members

    def start(self) -> list[Proposal]:
        """No offsets, then random ones."""
        first = self._proposal(np.zeros(self.count), (), self.first)
        self.is_new(first)
        return [first, *self.fill(self.settings.initial - 1, self._random)]

    def propose(self) -> list[Proposal]:
        """Children of the best, or random ones where none works."""
        return self.fill(self.settings.batch, self._child if self._members else self._random)

    def learn(self, results: Sequence[Result]) -> None:
        """The best of the old and the new have the next children."""
        news = [(candidate, on_one_scale(one)) for candidate, one in results if one.counts]
        self._members = list(best_first([*self._members, *news]))[: self.settings.parents]

    def is_new(self, proposal: Proposal) -> bool:
        """Whether these offsets were never asked; they count as asked from now on."""
        if proposal.offsets in self._asked:
            self.avoided["identical"] += 1
            return False
        self._asked.add(proposal.offsets)
        return True

    def _random(self) -> Proposal:
        spread = self.settings.spread
        genes = self.generator.normal(0, spread, self.count)
        genes[: self.depth] *= 0.3
        genes[: self.depth] += self._curve(spread)
        return self._proposal(genes, (), "random")

    def _child(self) -> Proposal:
        mother, genes = self._parent()
        if self.generator.random() < self.settings.crossover and len(self._members) > 1:
            father, other = self._parent()
            genes = genes + self.generator.uniform(-0.5, 1.5) * (other - genes)
            return self._proposal(genes, (mother, father), "crossover")
        low, high = np.log(self.settings.step)
        step = float(np.exp(self.generator.uniform(low, high)))
        operation = ("nudge", "curve", "stretch")[self.generator.choice(3, p=(0.6, 0.25, 0.15))]
        if operation == "nudge":
            moved = self.generator.random(self.count) < self.generator.choice((0.05, 0.2, 1.0))
            moved[self.generator.integers(self.count)] = True
            genes[moved] += self.generator.normal(0, step, int(moved.sum()))
        elif operation == "curve":
            genes[: self.depth] += self._curve(step)
        else:
            genes *= np.exp(self.generator.normal(0, step))
        return self._proposal(genes, (mother,), operation)

    def _parent(self) -> tuple[int, Genes]:
        """The better of two of the members, which are sorted, and a copy of its offsets."""
        candidate, _ = self._members[self.generator.integers(len(self._members), size=2).min()]
        return candidate.number, np.array(candidate.offsets)

    def _curve(self, step: float) -> Genes:
        """A slope and a bow over the depth of the model, of random height."""
        place = np.linspace(-1, 1, self.depth)
        slope, bow = self.generator.normal(0, step, 2)
        curve: Genes = slope * place + bow * (1.5 * place**2 - 0.5)
        return curve

    def _proposal(self, genes: Genes, parents: tuple[int, ...], operation: str) -> Proposal:
        blocks, kinds = genes[: self.depth], genes[self.depth :]
        # A constant added to all blocks or all kinds changes no share.
        centred = np.concatenate([blocks - blocks.mean(), kinds - kinds.mean()])
        # Adding 0 makes −0.0 plain.
        offsets = tuple((centred.round(_DECIMALS) + 0.0).tolist())
        return Proposal(self.expression, self.scope, parents, operation, offsets)
