"""What goes with the loss, and whether the cheap rungs rank as the dear ones do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pruner_zero.analysis.features import Structure
from pruner_zero.analysis.principles import FEWEST_LOSSES
from pruner_zero.analysis.statistics import Estimate, bootstrap, kendalls, ranks, spearmans
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS, Rung

Array = NDArray[np.float64]

# The rungs that give a value, dearest first.
DEAREST: tuple[Rung, ...] = tuple(reversed(RUNGS[1:]))

_BEST_OF_DEARER = 20
_FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Correlation:
    """A feature and the value on a rung over n candidates; positive: the more of it, the worse."""

    rung: str
    feature: str
    n: int
    kendall: Estimate
    spearman: Estimate


@dataclass(frozen=True)
class Agreement:
    """How alike two rungs rank the candidates that have both, all or those of a group."""

    cheap: str
    dear: str
    among: str
    n: int
    kendall: Estimate
    spearman: Estimate


def has(record: Record, rung: str) -> bool:
    """Whether a candidate has a value on this rung."""
    return math.isfinite(record.evaluation.results.get(rung, math.nan))


def loss_rung(records: Sequence[Record]) -> str | None:
    """The dearest rung with enough values, else the one with the most; None without any."""
    values = {rung: sum(has(one, rung) for one in records) for rung in DEAREST}
    enough = [rung for rung in DEAREST if values[rung] >= FEWEST_LOSSES]
    rung = enough[0] if enough else max(DEAREST, key=values.__getitem__)
    return rung if values[rung] else None


def correlations(
    records: Sequence[Record],
    structures: Sequence[Structure],
    rung: str,
    generator: np.random.Generator,
) -> list[Correlation]:
    """Every feature that varies among the candidates with a value on `rung`, against it.

    structures: those of the records, in their order.
    """
    judged = [
        (one, facts.features)
        for one, facts in zip(records, structures, strict=True)
        if has(one, rung)
    ]
    losses = _comparable([one for one, _ in judged], rung)
    found = []
    for name in judged[0][1] if judged else ():
        values = np.array([features[name] for _, features in judged])
        there = ~np.isnan(values)
        values, own = values[there], losses[there]
        if len(np.unique(values)) > 1:
            by_both = [bootstrap(one, values, own, generator) for one in (kendalls, spearmans)]
            found.append(Correlation(rung, name, len(values), *by_both))
    return found


def _comparable(records: Sequence[Record], rung: str) -> Array:
    """The values on a rung; the closed form's as ranks within each scope, from 0 to 1.

    Its errors have another meaning in another scope.
    """
    values = np.array([one.evaluation.results[rung] for one in records], dtype=float)
    if rung != "reconstruction":
        return values
    scopes = np.array([one.candidate.scope for one in records])
    for scope in np.unique(scopes):
        own = scopes == scope
        values[own] = (ranks(values[own]) - 0.5) / own.sum()
    return values


def agreements(records: Sequence[Record], generator: np.random.Generator) -> tuple[Agreement, ...]:
    """How every two rungs agree: over all that have both, each scope's, the best 20 of the dearer.

    The closed form's errors have another meaning in another scope, so that its agreement over
    all is lower than within scopes.
    """
    found = []
    for dear, cheap in combinations(DEAREST, 2):
        both = [one for one in records if has(one, cheap) and has(one, dear)]
        groups = {"all": both}
        scopes = sorted({one.candidate.scope for one in both})
        if len(scopes) > 1:
            groups |= {
                f"scope {scope}": [one for one in both if one.candidate.scope == scope]
                for scope in scopes
            }
        if len(both) > _BEST_OF_DEARER:
            ordered = sorted(both, key=lambda one: one.evaluation.results[dear])
            groups[f"best {_BEST_OF_DEARER}"] = ordered[:_BEST_OF_DEARER]
        for among, group in groups.items():
            if len(group) >= _FEWEST_PAIRS:
                x, y = ([one.evaluation.results[rung] for one in group] for rung in (cheap, dear))
                by_both = [bootstrap(one, x, y, generator) for one in (kendalls, spearmans)]
                found.append(Agreement(cheap, dear, among, len(group), *by_both))
    return tuple(found)
