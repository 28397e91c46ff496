"""The final race: the best metrics of a search, judged again on unseen windows."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scipy import stats

from pruner_zero.evolution.candidate import Candidate, Template
from pruner_zero.evolution.evaluator import Outcome, Task
from pruner_zero.evolution.hall_of_fame import complexity, finite, on_the_highest_rung
from pruner_zero.evolution.racing import outcomes_on
from pruner_zero.evolution.record import Archive, Record
from pruner_zero.evolution.several_models import Models
from pruner_zero.execution.executor import Executor
from pruner_zero.models.next_token import to_perplexity
from pruner_zero.table import Tabular

# Candidates of the final race, each the best of its skeleton.
FINALISTS = 6
# The share of a search's minutes that is kept for the final race.
FINAL_SHARE = 1 / 8


@dataclass(frozen=True)
class Finalist:
    """A candidate of the final race with its loss on every fresh window, in nats."""

    record: Record
    losses: tuple[float, ...]
    models: Models | None = None

    @property
    def loss(self) -> float:
        """The mean over the windows; over the models too where they are several."""
        if self.models is None:
            return statistics.mean(self.losses)
        return statistics.mean([*self.models.parts(self.losses).values()])

    @property
    def perplexity(self) -> float | None:
        """The perplexity of the mean; None where losses are relative to those of Wanda's mask."""
        return to_perplexity(self.loss) if self.models is None else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval by Student's t over windows, of the perplexity where there is one."""
        error = self._error(self.losses)
        width = float(stats.t.ppf(0.975, len(self.losses) - 1)) * error if error else 0.0
        low, high = self.loss - width, self.loss + width
        if self.models is not None:
            return low, high
        return finite(to_perplexity(low)), finite(to_perplexity(high))

    def behind(self, other: "Finalist") -> tuple[float, float]:
        """How far it is behind another one on the same windows, and the standard error of that."""
        differences = [a - b for a, b in zip(self.losses, other.losses, strict=True)]
        return self.loss - other.loss, self._error(differences)

    def _error(self, values: Sequence[float]) -> float:
        """The standard error of the mean of a value a window; 0 where it is not known."""
        if self.models is not None:
            return self.models.error(values)
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True, repr=False)
class FinalRace(Tabular):
    """The best metric of each of the best skeletons on fresh windows, the lowest loss first.

    The search chose these metrics by their losses on its own windows, which favours lucky
    candidates; the fresh windows decide. The simplest metric within one standard error (of the
    paired difference) of the lowest loss wins. Source: the final race on fresh instances of irace
    (López-Ibáñez et al. 2016); the rule of one standard error of CART (Breiman et al. 1984).
    """

    shown = ("perplexity", "loss", "interval", "behind", "behind_error", "expression", "scope")

    finalists: tuple[Finalist, ...]

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        outcomes: Iterable[Outcome],
        finalists: Sequence[int] | None = None,
        models: Models | None = None,
    ) -> "FinalRace":
        """The race of the records that finished the rung "final".

        finalists: the numbers of its candidates; a search that went on after a race may have
        another. All where None. models: the models where they are several. Outcomes of candidates
        that are not among the records yet, as in a replay, are left out.
        """
        judged = [
            Finalist(records[outcome.number], outcome.losses, models)
            for outcome in outcomes
            if outcome.rung == "final"
            and outcome.value is not None
            and outcome.number < len(records)
            and (finalists is None or outcome.number in finalists)
        ]
        judged.sort(key=lambda finalist: (finalist.loss, finalist.record.candidate.number))
        return cls(tuple(judged))

    @cached_property
    def winner(self) -> Finalist | None:
        """The simplest finalist within one standard error of the lowest loss."""
        level = []
        for finalist in self.finalists:
            behind, error = finalist.behind(self.finalists[0])
            if behind <= error:
                level.append(finalist)
        return min(
            level, key=lambda each: complexity(each.record.candidate.expression), default=None
        )

    @property
    def choice(self) -> Record | None:
        """The record of the winner; None where there was no race."""
        return self.winner.record if self.winner else None

    def caption(self) -> str:
        """The winner, and its perplexity with a 95 % interval."""
        if (winner := self.winner) is None:
            return "no final race"
        low, high = winner.interval
        candidate = winner.record.candidate
        if winner.models is None:
            measured = f"perplexity {winner.perplexity:.2f} (95 %: {low:.2f} to {high:.2f})"
        else:
            parts = winner.models.parts(winner.losses).items()
            measured = (
                f"{winner.loss:+.1%} beside Wanda's divergence (95 %: {low:+.1%} to {high:+.1%}; "
                + ", ".join(f"{name} {part:+.1%}" for name, part in parts)
                + ")"
            )
        return (
            f"final race on {len(winner.losses)} fresh windows: {measured}, "
            f"{candidate.expression} @{candidate.scope}"
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """A row a finalist, the lowest loss first; behind: the winner, in nats."""
        rows = []
        for finalist in self.finalists:
            candidate, perplexity = finalist.record.candidate, finalist.perplexity
            assert self.winner is not None
            behind, error = finalist.behind(self.winner)
            row: dict[str, Any] = {
                "perplexity": None if perplexity is None else finite(perplexity),
                "loss": finalist.loss,
                "interval": list(finalist.interval),
                "behind": behind,
                "behind_error": error,
                "expression": str(candidate.expression),
                "scope": candidate.scope,
                "number": candidate.number,
                "winner": finalist is self.winner,
            }
            rows.append(row | (finalist.models.parts(finalist.losses) if finalist.models else {}))
        return rows


def race_finalists(
    archive: Archive,
    executor: Executor[Task, Outcome],
    most: int = FINALISTS,
    models: Models | None = None,
) -> FinalRace:
    """Judge the best of each of the `most` best skeletons on the fresh windows; note the losses."""
    best: dict[Template, Candidate] = {}
    for record in sorted(on_the_highest_rung(archive.records), key=lambda r: r.evaluation.value):
        best.setdefault(record.candidate.template, record.candidate)
    chosen = [*best.values()][:most]
    outcomes = outcomes_on("final", chosen, archive, executor)
    return FinalRace.of(archive.records, outcomes, models=models)


def affordable(outcomes: Sequence[Outcome], elapsed: float, windows: int, seconds: float) -> int:
    """How many finalists, two at least, can be judged on `windows` windows in `seconds`.

    outcomes: of a search that took `elapsed` seconds; they give the time per window and the number
    of parallel judgements.
    """
    known = {outcome.number: len(outcome.losses) for outcome in outcomes if outcome.rung == "few"}
    by_window = [
        outcome.seconds / max(1, len(outcome.losses) - known.get(outcome.number, 0))
        for outcome in outcomes
        if outcome.rung == "all" and outcome.losses
    ]
    if not by_window or not elapsed:
        return 2
    # A resumed run holds outcomes of a final race, whose time is not part of `elapsed`.
    spent = sum(outcome.seconds for outcome in outcomes if outcome.rung != "final")
    at_once = max(1.0, spent / elapsed)
    needed = max(statistics.median(by_window) * windows, 1e-9)
    return max(2, int(min(FINALISTS, at_once * seconds / needed)))
