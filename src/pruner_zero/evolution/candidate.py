"""The values of a search: candidates and their evaluations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pruner_zero.metric import Call, Expression, Terminal
from pruner_zero.models import to_perplexity
from pruner_zero.sparsity import Scope

Kind = frozenset[str]


@dataclass(frozen=True)
class Candidate:
    """A metric to be judged: an expression, its comparison group, and where it comes from.

    number: its place in the order of submission, from 0. parents: their numbers. operation: how
    it was made, such as "random", "crossover", "grow".
    """

    number: int
    expression: Expression
    scope: Scope
    parents: tuple[int, ...] = ()
    operation: str = "random"

    @property
    def kind(self) -> Kind:
        """The names of its leaves and operators."""
        return frozenset(
            node.operator.name if isinstance(node, Call) else str(node)
            for node in self.expression.walk()
            if isinstance(node, Call | Terminal)
        )


@dataclass(frozen=True)
class Evaluation:
    """The highest rung that a candidate was judged on, and its value there.

    rung: 0 where it was rejected, 1 for the closed form, up to 3 for all windows. value: lower
    is better, comparable only between candidates of the same rung. results: the value on every
    rung that gave one, by name. same_as: the earlier candidate with the same mask, found by
    `level` ("canonical" or "fingerprint"); such a candidate is not evaluated again. expected: a
    number that can be compared between all rungs, see `Surrogate`.
    """

    rung: int
    value: float
    results: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    same_as: int | None = None
    level: str | None = None
    seconds: float = 0.0
    expected: float | None = None

    @property
    def key(self) -> tuple[int, float]:
        """Sorts candidates, best first: a higher rung was only reached by beating others."""
        return (-self.rung, self.value if math.isfinite(self.value) else math.inf)

    @property
    def perplexity(self) -> float:
        """The perplexity of the value, where its rung judges by the loss of the pruned model."""
        return to_perplexity(self.value)

    @property
    def counts(self) -> bool:
        """Whether the result is the candidate's own: neither rejected nor that of a twin."""
        return self.rung > 0 and self.same_as is None
