"""The evolution of the paper, as far as it is described: one population, steady state."""

from collections.abc import Sequence

from numpy.random import Generator
from pydantic import Field

from pruner_zero.evolution.ask import BatchAlgorithm, Proposal, Result, best_first
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace, positions
from pruner_zero.evolution.variation import Child, apply_operator, operands_of, pick
from pruner_zero.metric.canonical.form import simplify_opposing
from pruner_zero.metric.expression import Call, Expression, Terminal
from pruner_zero.metric.metric import Metric
from pruner_zero.metric.operators import OPERATORS, PUBLISHED
from pruner_zero.settings.base import Settings

# Enough to keep some workers busy, and few enough that a stopped run loses little.
_FOUNDERS = 10
# The share of the population that is drawn, which the paper leaves open (half is ours), and the
# chance that a child is mutated at one node (the paper does not say at how many; one is ours).
_DRAWN, _MUTATION = 0.5, 0.5


class PublishedSettings(Settings):
    """Settings of the paper's evolution.

    population: random trees, asked ten at a time, so that a run that is stopped before all are
    judged has a result. parents: this many of the best drawn members may have a child.
    """

    population: int = Field(50, ge=2)
    parents: int = Field(10, ge=1)


class Published(BatchAlgorithm):
    """Tournament, subtree crossover, node mutation, simplification of opposing operations.

    One child at a time; the worst member leaves. The comparison group is the first of the space.
    Trees are not typed: trees that give no mask are asked too, count as the worst of the
    population, and leave first. A child equal to a parent is replaced by a random tree. Nothing
    else is compared, so that a tree can be asked again, as in the paper.
    Source: Dong 2024, arXiv 2406.02924.
    """

    settings_type = PublishedSettings
    default_space = PUBLISHED_SPACE
    settings: PublishedSettings

    def __init__(
        self,
        space: SearchSpace = PUBLISHED_SPACE,
        seed: int = 0,
        settings: PublishedSettings | None = None,
        seed_metrics: Sequence[Metric] = (),
    ) -> None:
        self.scope = space.scopes[0]
        narrow = space.model_copy(update={"scopes": (self.scope,)})
        super().__init__(narrow, seed, settings, seed_metrics)
        self.members: Sequence[Result] = []
        self._founded = 0

    def propose(self) -> list[Proposal]:
        return self._founders() or [self._child()]

    def learn(self, results: Sequence[Result]) -> None:
        """The results join the population, and the worst beyond its size leave."""
        self.members = best_first([*self.members, *results])[: self.settings.population]

    def _founders(self) -> list[Proposal]:
        """More of the first population; none where it is complete."""
        count = min(_FOUNDERS, self.settings.population - self._founded)
        self._founded += count
        return [self._random() for _ in range(count)]

    def _random(self) -> Proposal:
        tree = random_published_tree(self.generator, self.space.terminals)
        return Proposal(simplify_opposing(tree), self.scope)

    def _child(self) -> Proposal:
        members = self.members
        contestants = max(2, round(_DRAWN * len(members)))
        drawn = self.generator.choice(
            len(members), size=min(contestants, len(members)), replace=False
        )
        # Members are sorted: the lowest indices are the best.
        best = sorted(drawn.tolist())[: self.settings.parents]
        pair = self.generator.choice(best, size=2, replace=len(best) < 2)
        mother, father = (members[index][0] for index in pair)
        child = published_crossover(
            self.generator, mother.expression, father.expression, self.space
        )
        operation = "crossover"
        if child is not None and self.generator.random() < _MUTATION:
            child = node_mutation(self.generator, child, self.space)
            operation = "mutation"
        if child is not None:
            child = simplify_opposing(child)
        if child is None or child in (mother.expression, father.expression):
            return self._random()._replace(operation="immigrant")
        parents = (mother.number, father.number)
        return Proposal(child, self.scope, parents, operation)


def random_published_tree(
    generator: Generator, terminals: Sequence[str], min_depth: int = 3, max_depth: int = 5
) -> Expression:
    """A random tree as the released generator makes it, regardless of shapes.

    Levels above `min_depth` hold functions, drawn evenly from 11 unary and 4 binary ones. Below,
    grow ends a path at every second node, and full continues to the limit, which is drawn from
    min_depth … max_depth. Leaves are `terminals` with equal chance: of W, G and X, the paper's,
    about a fifth of the trees contain only X.
    Source: Dong 2024, released code (gptree), tinyGP's ramped start.
    """
    limit = int(generator.integers(min_depth, max_depth + 1))
    grow = bool(generator.random() < 0.5)

    def tree(level: int) -> Expression:
        inner = level < min_depth or (
            level < limit and (not grow or bool(generator.random() < 0.5))
        )
        if not inner or level >= limit:
            return Terminal(terminals[int(generator.integers(len(terminals)))])
        operator = OPERATORS[PUBLISHED[generator.integers(len(PUBLISHED))]]
        return Call(operator, tuple(tree(level + 1) for _ in range(operator.arity)))

    return tree(1)


def published_crossover(
    generator: Generator, mother: Expression, father: Expression, space: SearchSpace
) -> Child:
    """The mother with any subtree replaced by any of the father's, regardless of shapes.

    None where the child is larger or deeper than the space allows. Source: Dong 2024.
    """
    index, _ = pick(generator, list(positions(mother)))
    _, subtree = pick(generator, list(positions(father)))
    child = mother.replace(index, subtree)
    return child if child.size <= space.max_size and child.depth <= space.max_depth else None


def node_mutation(generator: Generator, expression: Expression, space: SearchSpace) -> Expression:
    """One node takes another symbol of the same arity.

    The new symbol can be the old one. Source: Dong 2024, which does not say how many nodes.
    """
    index, node = pick(generator, list(positions(expression)))
    if not isinstance(node, Call):
        return expression.replace(index, Terminal(pick(generator, list(space.terminals))))
    count = node.operator.expressions
    alike = [name for name in space.operators if OPERATORS[name].expressions == count]
    symbol = OPERATORS[pick(generator, alike)] if alike else node.operator
    return expression.replace(index, apply_operator(generator, symbol, *operands_of(node)))
