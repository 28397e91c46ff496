"""The values of a search: candidates and their evaluations."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pruner_zero.choices import Group
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.canonical.skeleton import Skeleton
from pruner_zero.metric.expression import Expression
from pruner_zero.models.next_token import to_perplexity

# The structure and the scope of a candidate.
Template = tuple[Expression, Group]

# The operation of a candidate that the user named.
SEED = "seed"
# The operation of a candidate whose exponents were fitted to losses of its template.
TUNE = "tune"
# The operation of a candidate that is a neighbour of one of the best.
STEP = "step"


def excess(results: Iterable[Mapping[str, float]]) -> list[float]:
    """The loss on all windows minus that on few, of the `Evaluation.results` that have both."""
    return [values["all"] - values["few"] for values in results if {"few", "all"} <= values.keys()]


@dataclass(frozen=True)
class Candidate:
    """A metric to be judged: an expression, its comparison group, and where it comes from.

    number: its index in the order of submission. parents: their numbers. operation: how
    it was made, such as "random", "crossover", "grow".
    """

    number: int
    expression: Expression
    scope: Group
    parents: tuple[int, ...] = ()
    operation: str = "random"

    @cached_property
    def skeleton(self) -> Skeleton:
        """Its canonical form, apart from the exponents."""
        return Skeleton(canonical(self.expression, self.scope), self.scope)

    @property
    def template(self) -> Template:
        """Its structure and scope: candidates of one template differ in exponents alone."""
        return self.skeleton.structure, self.scope


@dataclass(frozen=True)
class Evaluation:
    """The highest rung that a candidate was judged on, and its value there.

    rung: 0 where it was rejected, 1 for the closed form, up to 3 for all windows. value: lower
    is better, comparable only between candidates of the same rung. results: the value on every
    rung that gave one, by name. same_as: the earlier candidate with the same canonical form; such a
    candidate is not evaluated again. expected: a number that can be compared between all rungs, see
    `Surrogate`.
    """

    rung: int
    value: float
    results: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    same_as: int | None = None
    seconds: float = 0.0
    expected: float | None = None

    @property
    def key(self) -> tuple[int, float]:
        """Sorts candidates, best first: by rung, the highest first, and then by value."""
        return (-self.rung, self.value if math.isfinite(self.value) else math.inf)

    def on(self, rung: str) -> float:
        """The value on a rung, or the "expected" value; infinite where there is none."""
        value = self.expected if rung == "expected" else self.results.get(rung)
        return math.inf if value is None else value

    @property
    def perplexity(self) -> float | None:
        """The perplexity of the value, which is a loss of the pruned model from rung 2 on."""
        return to_perplexity(self.value) if self.rung >= 2 else None

    @property
    def counts(self) -> bool:
        """Whether the candidate was judged: neither rejected nor a repeat of an earlier one."""
        return self.rung > 0 and self.same_as is None
