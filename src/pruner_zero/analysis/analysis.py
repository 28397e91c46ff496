"""What a search teaches: which metrics are good, what they share, and whether rungs agree."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pruner_zero.analysis.correlations import (
    DEAREST,
    Agreement,
    Correlation,
    agreements,
    correlations,
    has,
    loss_rung,
)
from pruner_zero.analysis.features import Structure, structure
from pruner_zero.analysis.lineage import Lineage, lineage
from pruner_zero.analysis.principles import (
    FEWEST_BEST,
    Principle,
    principles_of,
)
from pruner_zero.analysis.statistics import (
    Estimate,
    holm,
    hypergeometric_p,
    interval,
    ratio_draws,
    ratios,
)
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.table import Tabular


@dataclass(frozen=True)
class Counts:
    """What became of the candidates.

    distinct: those with a result of their own. rejected: by reason, its numbers left out.
    avoided: proposals that were never asked, by what gave them away. saved: candidates that
    have the mask of an earlier one, by the level that saw it. ended: the
    distinct ones by the dearest rung they reached. seconds: of all candidates together.
    rung_seconds: (candidates, seconds) by rung, where the run says.
    """

    candidates: int
    distinct: int
    distinct_per_100: float
    rejected: Mapping[str, int]
    avoided: Mapping[str, int]
    saved: Mapping[str, int]
    ended: Mapping[str, int]
    seconds: float
    seconds_per_distinct: float
    rung_seconds: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Share:
    """How often the best use something, beside all distinct candidates.

    kind: terminal, operator or scope. best, everyone: how many use it. ratio: its share
    among the best over its share among all, with an interval. p: `hypergeometric_p`, two-sided;
    p_adjusted: by Holm's method over all shares of the analysis.
    """

    kind: str
    name: str
    best: int
    everyone: int
    ratio: Estimate
    p: float
    p_adjusted: float


@dataclass(frozen=True, repr=False)
class Analysis(Tabular):
    """What the records of a search say.

    top: the share asked for; best_count: how many are called the best, a `top` share of the
    candidates that reached best_rung, which is None where no rung has enough and all count.
    loss_rung: the dearest rung with enough values, which stands for the loss. correlations:
    with the values on that rung, and on the closed form, which is not as close to the loss but
    judges nearly all: those that climbed were chosen by it, which weakens what is seen there.
    Intervals and p-values take candidates as independent draws. An evolution's are relatives,
    so they promise too much.
    """

    shown = ("kind", "name", "best", "everyone", "ratio", "low", "high", "p", "p_adjusted")

    counts: Counts
    top: float
    best_count: int
    best_rung: str | None
    shares: tuple[Share, ...]
    loss_rung: str | None
    correlations: tuple[Correlation, ...]
    agreements: tuple[Agreement, ...]
    principles: tuple[Principle, ...]
    lineage: Lineage | None

    def caption(self) -> str:
        """How many candidates, and which of them count as good."""
        where = f"of those judged on '{self.best_rung}'" if self.best_rung else "of all"
        return (
            f"{self.counts.candidates} candidates, {self.counts.distinct} with a mask of their "
            f"own; what the best {self.best_count} ({self.top:.0%} {where}) use beside all"
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """The shares, with the interval of each ratio; the other tables are fields."""
        return [
            {**vars(one), "ratio": one.ratio.value, "low": one.ratio.low, "high": one.ratio.high}
            for one in self.shares
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; what is not defined is null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def analyze(
    records: Sequence[Record],
    top: float = 0.1,
    seconds: Mapping[str, Sequence[float]] | None = None,
    avoided: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Analysis:
    """Explain a search, finished or not, from its records; few or none give a short answer.

    top: the share of candidates that count as good. seconds, avoided: as
    `SearchJournal` has them. seed: decides the intervals' resamples.
    Raises PrunerZeroError for a share outside 0 … 1.
    """
    if not 0 < top < 1:
        raise PrunerZeroError(f"the top share must lie between 0 and 1, not {top:g}: such as 0.1")
    generator = np.random.default_rng(seed)
    distinct = sorted((one for one in records if one.evaluation.counts), key=_order)
    structures = [structure(record) for record in distinct]
    best_rung, best_count = _how_many_best(distinct, top)
    best, others = structures[:best_count], structures[best_count:]
    rung = loss_rung(distinct)
    found = [
        one
        for name in dict.fromkeys((rung, DEAREST[-1]))
        if name
        for one in correlations(distinct, structures, name, generator)
    ]
    sizes = [(one.kendall, one.n) for one in found if (one.rung, one.feature) == (rung, "size")]
    losses = sum(has(one, rung) for one in distinct) if rung else 0
    winner = HallOfFame.of(records).best
    return Analysis(
        _counts(records, seconds or {}, avoided or {}),
        top,
        best_count,
        best_rung,
        _shares(best, others, generator),
        rung,
        tuple(found),
        agreements(distinct, generator),
        tuple(principles_of(best, others, *(sizes or [(Estimate(), losses)])[0], generator)),
        lineage(winner, records) if winner else None,
    )


def _counts(
    records: Sequence[Record],
    seconds: Mapping[str, Sequence[float]],
    avoided: Mapping[str, int],
) -> Counts:
    evaluations = [record.evaluation for record in records]
    distinct = sum(one.counts for one in evaluations)
    total = math.fsum(one.seconds for one in evaluations)
    reasons = Counter(_kind_of(one.reason) for one in evaluations if one.reason)
    ended = Counter(one.rung for one in evaluations if one.counts)
    return Counts(
        len(records),
        distinct,
        100 * distinct / len(records) if records else math.nan,
        dict(reasons.most_common()),
        dict(avoided),
        dict(Counter(one.level for one in evaluations if one.level).most_common()),
        {name: ended[rank] for rank, name in enumerate(RUNGS) if ended[rank]},
        total,
        total / distinct if distinct else math.nan,
        {rung: (len(seconds[rung]), math.fsum(seconds[rung])) for rung in RUNGS if rung in seconds},
    )


def _kind_of(reason: str) -> str:
    """A reason without the numbers that differ from candidate to candidate."""
    return re.sub(r"[+-]?\d[\d.]*(?:e[+-]?\d+)?", "…", reason)


def _how_many_best(distinct: Sequence[Record], top: float) -> tuple[str | None, int]:
    for rung in DEAREST:
        count = round(top * sum(has(one, rung) for one in distinct))
        if count >= FEWEST_BEST:
            return rung, count
    return None, min(len(distinct), max(1, round(top * len(distinct))))


def _shares(
    best: Sequence[Structure], others: Sequence[Structure], generator: np.random.Generator
) -> tuple[Share, ...]:
    used = [
        {
            *(("terminal", name) for name in one.terminals),
            *(("operator", name) for name in one.operators),
            ("scope", one.scope),
        }
        for one in (*best, *others)
    ]
    traits = sorted(set().union(*used))
    if not traits:
        return ()
    table = np.array([[trait in one for trait in traits] for one in used], dtype=float)
    chosen, rest = table[: len(best)], table[len(best) :]
    draws = ratio_draws(chosen, rest, generator)
    found = ratios(chosen, rest)
    among_best = [int(count) for count in chosen.sum(axis=0)]
    among_all = [int(count) for count in table.sum(axis=0)]
    p_values = [
        hypergeometric_p(k, len(best), n, len(used))
        for k, n in zip(among_best, among_all, strict=True)
    ]
    adjusted = holm(p_values)
    shares = [
        Share(
            *trait,
            among_best[index],
            among_all[index],
            interval(float(found[index]), draws[:, index]),
            p_values[index],
            adjusted[index],
        )
        for index, trait in enumerate(traits)
    ]
    kinds = ("terminal", "operator", "scope")
    return tuple(sorted(shares, key=lambda one: (kinds.index(one.kind), -one.ratio.value)))


def _order(record: Record) -> tuple[tuple[int, float], int, int]:
    candidate = record.candidate
    return record.evaluation.key, candidate.expression.size, candidate.number


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
