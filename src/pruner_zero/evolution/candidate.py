"""What a search passes around: candidates and what became known of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pruner_zero.metric import Call, Expression, Terminal
from pruner_zero.models import to_perplexity
from pruner_zero.sparsity import Scope

Kind = frozenset[str]


@dataclass(frozen=True)
class Candidate:
    """A metric to be judged: an expression, which weights compete under it, where it comes from.

    number: its place in the order of submission, from 0, which also names it as a parent.
    operation: how it was made, such as "random", "crossover", "grow". offsets: how much of each
    matrix is pruned, as `Layout` reads it; empty where all are pruned alike, or as a global
    scope has it.
    """

    number: int
    expression: Expression
    scope: Scope
    parents: tuple[int, ...] = ()
    operation: str = "random"
    offsets: tuple[float, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is made of: the names of leaves and operators."""
        return frozenset(
            node.operator.name if isinstance(node, Call) else str(node)
            for node in self.expression.walk()
            if isinstance(node, Call | Terminal)
        )

    @property
    def applied_scope(self) -> Scope:
        """Which weights compete once the share of each matrix is settled."""
        return "matrix" if self.offsets and self.scope == "global" else self.scope


@dataclass(frozen=True)
class Evaluation:
    """What is known of a candidate: the last rung it was judged on, and its value there.

    rung: 0 where it was rejected, else 1 for the cheapest, more for a dearer one. value:
    lower is better, comparable only between candidates judged on the same rung. results:
    the value on every rung passed, by name. same_as: the earlier candidate whose mask is
    the same, found by `level` ("canonical" or "fingerprint") and not evaluated again.
    expected: one number for candidates of all rungs, see `Surrogate`.
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
        """Sorts candidates, best first: a dearer rung was only reached by beating others."""
        return (-self.rung, self.value if math.isfinite(self.value) else math.inf)

    @property
    def perplexity(self) -> float:
        """That of the value, where its rung judges by the loss of the pruned model."""
        return to_perplexity(self.value)

    @property
    def counts(self) -> bool:
        """Whether it is a result of its own: neither rejected nor the same as an earlier one."""
        return self.rung > 0 and self.same_as is None
