"""Correlations of features with the loss, and of cheap rungs with expensive rungs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pruner_zero.analysis.features import Structure
from pruner_zero.analysis.principles import FEWEST_LOSSES
from pruner_zero.analysis.statistics import Estimate, rank_correlation
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS, Rung

Array = NDArray[np.float64]

# The rungs that give a value, the most expensive one first.
VALUE_RUNGS: tuple[Rung, ...] = tuple(reversed(RUNGS[1:]))

_BEST = 20
_FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Correlation:
    """A feature and the value on a rung over n candidates; positive: the more of it, the worse."""

    rung: str
    feature: str
    n: int
    kendall: Estimate


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


def correlations(
    records: Sequence[Record], structures: Sequence[Structure], rung: str
) -> list[Correlation]:
    """Every feature that varies among the candidates with a value on `rung`, against that value.

    structures: those of the records, in their order.
    """
    judged = [
        (record, facts.features)
        for record, facts in zip(records, structures, strict=True)
        if has_value(record, rung)
    ]
    losses = _comparable([record for record, _ in judged], rung)
    rows = []
    for name in judged[0][1] if judged else ():
        values = np.array([features[name] for _, features in judged])
        applies = ~np.isnan(values)
        if len(np.unique(values[applies])) > 1:
            kendall = rank_correlation(values[applies], losses[applies])
            rows.append(Correlation(rung, name, int(applies.sum()), kendall))
    return rows


def _comparable(records: Sequence[Record], rung: str) -> Array:
    """The values on a rung; the closed form's as ranks within each scope, from 0 to 1.

    The errors of the closed form do not compare between scopes.
    """
    values = np.array([record.evaluation.results[rung] for record in records], dtype=float)
    if rung != "reconstruction":
        return values
    scopes = np.array([record.candidate.scope for record in records])
    for scope in np.unique(scopes):
        alike = scopes == scope
        values[alike] = (rankdata(values[alike]) - 0.5) / alike.sum()
    return values


def agreements(records: Sequence[Record]) -> tuple[Agreement, ...]:
    """How alike every two rungs rank the candidates.

    Over all candidates that have values on both rungs, those of each scope, and the best 20 on the
    expensive rung. The errors of the closed form do not compare between scopes, so that its
    agreement over all is lower than within scopes.
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
