"""Analysis of a search: which metrics are good, their features, and agreement of rungs."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pruner_zero.analysis.correlations import (
    VALUE_RUNGS,
    Agreement,
    agreements,
    has_value,
    loss_rung,
)
from pruner_zero.analysis.principles import (
    FEWEST_BEST,
    Principle,
    Traits,
    principles_of,
    traits,
)
from pruner_zero.analysis.statistics import (
    Estimate,
    interval,
    rank_correlation,
    ratio_draws,
    ratios,
)
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.study import Study
from pruner_zero.table import Tabular


@dataclass(frozen=True)
class Counts:
    """Counts of the candidates by their result.

    distinct: candidates whose mask no earlier one has. rejected: counts by reason, without the
    numbers in it. avoided: proposals that were never judged, by the test that found them to be
    duplicates. saved: candidates with the canonical form of an earlier candidate. ended: distinct candidates by the last rung they reached. seconds: of all candidates
    together. rung_seconds: (candidates, seconds) by rung, where the run has them.
    """

    candidates: int
    distinct: int
    rejected: Mapping[str, int]
    avoided: Mapping[str, int]
    saved: int
    ended: Mapping[str, int]
    seconds: float
    rung_seconds: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Share:
    """How often the best candidates use a terminal, operator or scope, compared with all.

    kind: terminal, operator or scope. best, everyone: how many use it. ratio: its share
    among the best over its share among all, with an interval.
    """

    kind: str
    name: str
    best: int
    everyone: int
    ratio: Estimate


@dataclass(frozen=True, repr=False)
class Analysis(Tabular):
    """The statistics of the records of a search.

    top: the share asked for; best_count: how many count as the best, a share `top` of the
    candidates that reached best_rung, which is None where no rung has enough and all count.
    loss_rung: the most expensive rung with enough values, which stands for the loss. Intervals
    take candidates as independent draws; the candidates of an evolution are related, so the
    intervals are too narrow.
    """

    shown = ("kind", "name", "best", "everyone", "ratio", "low", "high")

    counts: Counts
    top: float
    best_count: int
    best_rung: str | None
    shares: tuple[Share, ...]
    loss_rung: str | None
    agreements: tuple[Agreement, ...]
    principles: tuple[Principle, ...]

    def caption(self) -> str:
        """What the shares compare: which candidates count as the best, and how many there are."""
        where = f"of those judged on '{self.best_rung}'" if self.best_rung else "of all"
        return (
            f"what the best {self.best_count} ({self.top:.0%} {where}) use, "
            f"beside all {self.counts.distinct} with distinct masks"
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """The shares, with the interval of each ratio; the other tables are fields."""
        return [
            {**vars(share), "ratio": ratio.value, "low": ratio.low, "high": ratio.high}
            for share in self.shares
            for ratio in (share.ratio,)
        ]

    def to_json(self) -> dict[str, Any]:
        """The whole analysis as JSON values; numbers that are not defined are null."""
        values: dict[str, Any] = plain(asdict(self))
        return values


def analyze(study: Study, top: float = 0.1) -> Analysis:
    """Explain a search, finished or not.

    top: the share of candidates that count as the best. Raises PrunerZeroError for a share outside
    0 … 1.
    """
    if not 0 < top < 1:
        raise PrunerZeroError(f"the top share must lie between 0 and 1, not {top:g}: such as 0.1")
    generator = np.random.default_rng(0)
    records = study.records
    distinct = sorted((record for record in records if record.evaluation.counts), key=_order)
    used = [traits(record) for record in distinct]
    best_rung, best_count = _how_many_best(distinct, top)
    best, others = used[:best_count], used[best_count:]
    rung = loss_rung(distinct)
    sizes_and_losses = [
        (record.candidate.expression.size, record.evaluation.results[rung])
        for record in distinct
        if rung and has_value(record, rung)
    ]
    size = rank_correlation(*zip(*sizes_and_losses, strict=True)) if rung else Estimate()
    return Analysis(
        _counts(study),
        top,
        best_count,
        best_rung,
        _shares(best, others, generator),
        rung,
        agreements(distinct),
        tuple(principles_of(best, others, size, len(sizes_and_losses), generator)),
    )


def _counts(study: Study) -> Counts:
    evaluations = [record.evaluation for record in study.records]
    distinct = sum(evaluation.counts for evaluation in evaluations)
    reasons = Counter(_without_numbers(each.reason) for each in evaluations if each.reason)
    ended = Counter(each.rung for each in evaluations if each.counts)
    return Counts(
        len(evaluations),
        distinct,
        dict(reasons.most_common()),
        dict(study.avoided),
        sum(each.same_as is not None for each in evaluations),
        {name: ended[rank] for rank, name in enumerate(RUNGS, 1) if ended[rank]},
        math.fsum(evaluation.seconds for evaluation in evaluations),
        {
            rung: (len(study.seconds[rung]), math.fsum(study.seconds[rung]))
            for rung in RUNGS
            if rung in study.seconds
        },
    )


def _without_numbers(reason: str) -> str:
    """A reason with `…` for the numbers, which differ from candidate to candidate."""
    return re.sub(r"[+-]?\d[\d.]*(?:e[+-]?\d+)?", "…", reason)


def _how_many_best(distinct: Sequence[Record], top: float) -> tuple[str | None, int]:
    for rung in VALUE_RUNGS:
        count = round(top * sum(has_value(record, rung) for record in distinct))
        if count >= FEWEST_BEST:
            return rung, count
    return None, min(len(distinct), max(1, round(top * len(distinct))))


def _shares(
    best: Sequence[Traits], others: Sequence[Traits], generator: np.random.Generator
) -> tuple[Share, ...]:
    used = [*best, *others]
    every = sorted(frozenset().union(*used))
    if not every:
        return ()
    table = np.array([[trait in facts for trait in every] for facts in used], dtype=float)
    chosen, rest = table[: len(best)], table[len(best) :]
    draws = ratio_draws(chosen, rest, generator)
    values = ratios(chosen, rest)
    among_best = [int(count) for count in chosen.sum(axis=0)]
    among_all = [int(count) for count in table.sum(axis=0)]
    shares = [
        Share(
            *trait,
            among_best[index],
            among_all[index],
            interval(float(values[index]), draws[:, index]),
        )
        for index, trait in enumerate(every)
    ]
    kinds = ("terminal", "operator", "scope")
    return tuple(sorted(shares, key=lambda share: (kinds.index(share.kind), -share.ratio.value)))


def _order(record: Record) -> tuple[tuple[int, float], int, int]:
    candidate = record.candidate
    return record.evaluation.key, candidate.expression.size, candidate.number


def plain(value: Any) -> Any:
    """`value` as JSON values: lists and dictionaries, null for a number that is not defined."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
