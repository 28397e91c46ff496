"""The hall of fame: the best metric of every complexity."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.record import Record
from pruner_zero.evolution.several_models import Models
from pruner_zero.files import write_json
from pruner_zero.metric.expression import TERMINALS, Expression
from pruner_zero.metric.metric import Metric
from pruner_zero.table import Tabular


def complexity(expression: Expression) -> int:
    """The nodes of the expression, and the cost of the statistics it needs. Source: ours."""
    return expression.size + sum(TERMINALS[name].cost for name in expression.terminals)


def on_the_highest_rung(records: Sequence[Record]) -> list[Record]:
    """The distinct candidates on the highest rung that any reached: their values compare."""
    distinct = [record for record in records if record.evaluation.counts]
    top = max((record.evaluation.rung for record in distinct), default=0)
    return [record for record in distinct if record.evaluation.rung == top]


@dataclass(frozen=True, repr=False)
class HallOfFame(Tabular):
    """The Pareto front of complexity and loss, simplest first, among the highest rung reached.

    winner: of the final race (`FinalRace`); None where there was none. models: the models where
    they are several; a loss is then a share of what Wanda's mask loses and has no perplexity.
    """

    shown = ("complexity", "loss", "perplexity", "expression", "scope", "knee", "best")

    front: tuple[Record, ...]
    winner: Record | None = None
    models: Models | None = None

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        winner: Record | None = None,
        models: Models | None = None,
    ) -> "HallOfFame":
        """The front of `records`. On equal complexity and loss the earlier candidate stays."""
        front: list[Record] = []
        for record in sorted(on_the_highest_rung(records), key=_simplest_first):
            if not front or record.evaluation.value < front[-1].evaluation.value:
                front.append(record)
        return cls(tuple(front), winner, models)

    @property
    def members(self) -> tuple[Record, ...]:
        """The front, and the winner where it is not on it; simplest first."""
        if self.winner is None or self.winner in self.front:
            return self.front
        return tuple(sorted([*self.front, self.winner], key=_simplest_first))

    @property
    def best(self) -> Record | None:
        """The winner of the final race; without one, the record with the lowest loss."""
        return self.winner or (self.front[-1] if self.front else None)

    @property
    def knee(self) -> Record | None:
        """The metric farthest below the line from the simplest to the best: most gain per node."""
        if not self.front:
            return None
        sizes = [complexity(record.candidate.expression) for record in self.front]
        losses = [record.evaluation.value for record in self.front]
        width, height = sizes[-1] - sizes[0], losses[0] - losses[-1]
        if not width or not math.isfinite(height):
            return self.front[0]
        below = [
            (losses[0] - loss) / height - (size - sizes[0]) / width
            for size, loss in zip(sizes, losses, strict=True)
        ]
        return self.front[below.index(max(below))]

    def caption(self) -> str:
        """How many metrics are on the front."""
        return f"{len(self.front)} metrics, the best of each complexity"

    def to_rows(self) -> list[dict[str, Any]]:
        """A row a metric, simplest first; perplexity: None for a closed-form error.

        Of several models, also the loss on each by its name.
        """
        rows: list[dict[str, Any]] = []
        for record in self.members:
            perplexity = None if self.models else record.evaluation.perplexity
            row = {
                "complexity": complexity(record.candidate.expression),
                "loss": record.evaluation.value,
                "perplexity": None if perplexity is None else finite(perplexity),
                "expression": str(record.candidate.expression),
                "scope": record.candidate.scope,
                "number": record.candidate.number,
                "knee": record is self.knee,
                "best": record is self.best,
            }
            for name in self.models.names if self.models else ():
                row[name] = record.evaluation.results.get(name)
            rows.append(row)
        return rows

    def write(self, folder: Path) -> None:
        """Write hall_of_fame.json, best.json and knee.json (trees with their scope) to `folder`."""
        write_json(folder / "hall_of_fame.json", self.to_rows())
        for name, record in (("best", self.best), ("knee", self.knee)):
            if record is not None:
                write_json(folder / f"{name}.json", metric_of(record).to_tree())


def _simplest_first(record: Record) -> tuple[int, float, int]:
    candidate = record.candidate
    return complexity(candidate.expression), record.evaluation.value, candidate.number


def finite(perplexity: float) -> float:
    """The perplexity, the largest number for that of a large loss: JSON has no infinity."""
    return min(perplexity, sys.float_info.max)


def metric_of(record: Record | None) -> Metric:
    """The metric of a record, with its scope. Raises PrunerZeroError where there is none."""
    if record is None:
        raise PrunerZeroError("the search found no metric that works: give it a larger budget")
    return Metric(record.candidate.expression, scope=record.candidate.scope)
