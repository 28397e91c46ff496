"""Correlation of the results of cheap rungs with those of expensive rungs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from pruner_zero.analysis.principles import FEWEST_LOSSES
from pruner_zero.analysis.statistics import Estimate, rank_correlation
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS, Rung

# The rungs that give a value, the most expensive one first.
VALUE_RUNGS: tuple[Rung, ...] = tuple(reversed(RUNGS))

_BEST = 20
_FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Agreement:
    """How alike two rungs rank the n candidates that have both.

    among: "all" candidates, the candidates of a scope, or the best 20 on the expensive rung.
    """

    cheap: str
    expensive: str
    among: str
    n: int
    kendall: Estimate

    header = ("cheap", "expensive", "among", "n", "Kendall", "95 %")

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of a table below `header`."""
        return self.cheap, self.expensive, self.among, str(self.n), *self.kendall.cells


def has_value(record: Record, rung: str) -> bool:
    """Whether a candidate has a value on this rung."""
    return math.isfinite(record.evaluation.results.get(rung, math.nan))


def loss_rung(records: Sequence[Record]) -> str | None:
    """The most expensive rung with enough values, else the one with the most; None without any."""
    values = {rung: sum(has_value(record, rung) for record in records) for rung in VALUE_RUNGS}
    enough = [rung for rung in VALUE_RUNGS if values[rung] >= FEWEST_LOSSES]
    rung = enough[0] if enough else max(VALUE_RUNGS, key=values.__getitem__)
    return rung if values[rung] else None


def agreements(records: Sequence[Record]) -> tuple[Agreement, ...]:
    """How alike every two rungs rank the candidates.

    Over all candidates that have values on both rungs, those of each scope, and the best 20 on the
    expensive rung.
    """
    rows = []
    for expensive, cheap in combinations(VALUE_RUNGS, 2):
        both = [
            record
            for record in records
            if has_value(record, cheap) and has_value(record, expensive)
        ]
        groups = {"all": both}
        scopes = sorted({record.candidate.scope for record in both})
        if len(scopes) > 1:
            groups |= {
                f"scope {scope}": [record for record in both if record.candidate.scope == scope]
                for scope in scopes
            }
        if len(both) > _BEST:
            ordered = sorted(both, key=lambda record: record.evaluation.results[expensive])
            groups[f"best {_BEST}"] = ordered[:_BEST]
        for among, group in groups.items():
            if len(group) >= _FEWEST_PAIRS:
                x, y = (
                    [record.evaluation.results[rung] for record in group]
                    for rung in (cheap, expensive)
                )
                kendall = rank_correlation(x, y)
                rows.append(Agreement(cheap, expensive, among, len(group), kendall))
    return tuple(rows)
