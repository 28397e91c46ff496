"""`analyze`: what the good metrics of a search share, and whether its rungs agree."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from typing import Any

from scipy import stats

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.record import Record
from pruner_zero.evolution.study import Study
from pruner_zero.metric.grammar import parse
from pruner_zero.table import Tabular

# A rung tells which candidates are the best, and a share has an interval, where there are at least
# this many of the best.
_FEWEST_BEST = 10
# The agreement of two rungs is also computed over this many of the best on the expensive rung, and
# for no fewer candidates than `_FEWEST_PAIRS`.
_BEST, _FEWEST_PAIRS = 20, 3


@dataclass(frozen=True)
class Counts:
    """Counts of the candidates by their result.

    distinct: candidates with a result of their own. rejected: counts by reason, without the numbers
    in it. avoided: proposals that were never judged, by the reason. repeats: candidates with the
    canonical form of an earlier one. ended: distinct candidates by the last rung they reached.
    seconds: (judgements, seconds) by rung.
    """

    candidates: int
    distinct: int
    rejected: Mapping[str, int]
    avoided: Mapping[str, int]
    repeats: int
    ended: Mapping[str, int]
    seconds: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Share:
    """How often the best candidates use a terminal, an operator or a scope, beside the others.

    feature: "terminal", "operator" or "scope". best, others: how many use it. ratio: its share
    among the best over its share among the others, with a 95 % interval (low, high) that takes
    candidates as independent, which those of an evolution are not; nan where they are not defined,
    or too few for an interval. Source: the relative risk of scipy (Katz 1978).
    """

    feature: str
    name: str
    best: int
    others: int
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How alike two rungs, or two models, rank the n candidates that have a value on both.

    among: "all" candidates, the candidates of a scope, or the best 20 on the expensive rung.
    kendall: Kendall's τ-b; nan where all values of a rung are equal.
    """

    cheap: str
    expensive: str
    among: str
    n: int
    kendall: float


@dataclass(frozen=True, repr=False)
class Analysis(Tabular):
    """The statistics of a search.

    top: the share asked for; best_count: how many count as the best, a share `top` of the
    candidates that reached best_rung, which is None where no rung has enough and all count.
    """

    shown = ("feature", "name", "best", "others", "ratio", "low", "high")

    counts: Counts
    top: float
    best_count: int
    best_rung: str | None
    shares: tuple[Share, ...]
    agreements: tuple[Agreement, ...]

    def caption(self) -> str:
        """What the shares compare: which candidates count as the best, and how many there are."""
        where = f"of those judged on '{self.best_rung}'" if self.best_rung else "of all"
        others = self.counts.distinct - self.best_count
        return (
            f"what the best {self.best_count} ({self.top:.0%} {where}) use, "
            f"beside {others} other candidates"
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """The shares; the other tables are fields."""
        return [vars(share) for share in self.shares]

    def to_json(self) -> dict[str, Any]:
        """The whole analysis as JSON values; numbers that are not defined are null."""
        values: dict[str, Any]
        values = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return values


def analyze(study: Study, top: float = 0.1) -> Analysis:
    """Explain a search, finished or not.

    top: the share of candidates that count as the best. Raises PrunerZeroError for a share outside
    0 … 1.
    """
    if not 0 < top < 1:
        raise PrunerZeroError(f"the top share must lie between 0 and 1, not {top:g}: such as 0.1")
    distinct = sorted(
        (record for record in study.records if record.evaluation.counts),
        key=lambda r: (r.evaluation.key, r.candidate.expression.size, r.candidate.number),
    )
    rung, count = _how_many_best(distinct, top)
    shares = _shares(distinct[:count], distinct[count:])
    models = study.models.names if study.models else ()
    return Analysis(_counts(study), top, count, rung, shares, agreements(distinct, models))


def agreements(records: Sequence[Record], models: Sequence[str] = ()) -> tuple[Agreement, ...]:
    """How alike every two rungs, and every two of `models`, rank those with values on both.

    Over all of them, those of each scope, and the best 20 on the expensive rung.
    """
    rows = []
    for expensive, cheap in chain(combinations(reversed(RUNGS), 2), combinations(models, 2)):
        both = [r for r in records if _has_value(r, cheap) and _has_value(r, expensive)]
        groups = {"all": both}
        scopes = sorted({record.candidate.scope for record in both})
        for scope in scopes if len(scopes) > 1 else ():
            groups[f"scope {scope}"] = [r for r in both if r.candidate.scope == scope]
        if len(both) > _BEST:
            ordered = sorted(both, key=lambda record: record.evaluation.results[expensive])
            groups[f"best {_BEST}"] = ordered[:_BEST]
        for among, group in groups.items():
            if len(group) >= _FEWEST_PAIRS:
                results = [record.evaluation.results for record in group]
                tau = stats.kendalltau([r[cheap] for r in results], [r[expensive] for r in results])
                rows.append(Agreement(cheap, expensive, among, len(group), float(tau.statistic)))
    return tuple(rows)


def features(record: Record) -> set[tuple[str, str]]:
    """The terminals, operators and scope of a candidate.

    Terminals are those of the canonical form, since no other terminal can change the mask;
    operators are those of the expression as it was written.
    """
    candidate = record.candidate
    found = {("operator", name) for name in candidate.expression.operator_counts()}
    found |= {("terminal", name) for name in parse(record.canonical).terminals}
    return found | {("scope", candidate.scope)}


def _shares(best: Sequence[Record], others: Sequence[Record]) -> tuple[Share, ...]:
    among_best, among_others = (
        Counter(feature for record in group for feature in features(record))
        for group in (best, others)
    )
    shares = []
    for feature in among_best | among_others:
        counts = among_best[feature], among_others[feature]
        ratio = low = high = math.nan
        if others and any(counts):
            risk = stats.contingency.relative_risk(counts[0], len(best), counts[1], len(others))
            ratio = float(risk.relative_risk)
            if min(len(best), len(others)) >= _FEWEST_BEST:
                interval = risk.confidence_interval()
                low, high = float(interval.low), float(interval.high)
        shares.append(Share(*feature, *counts, ratio, low, high))
    order = ("terminal", "operator", "scope")
    return tuple(sorted(shares, key=lambda s: (order.index(s.feature), -s.ratio, s.name)))


def _how_many_best(distinct: Sequence[Record], top: float) -> tuple[str | None, int]:
    """The rung that tells which candidates are the best, and how many are."""
    for rung in reversed(RUNGS):
        count = round(top * sum(_has_value(record, rung) for record in distinct))
        if count >= _FEWEST_BEST:
            return rung, count
    return None, min(len(distinct), max(1, round(top * len(distinct))))


def _counts(study: Study) -> Counts:
    evaluations = [record.evaluation for record in study.records]
    # The numbers in a reason differ from candidate to candidate.
    number = re.compile(r"[+-]?\d[\d.]*(?:e[+-]?\d+)?")
    reasons = Counter(number.sub("…", each.reason) for each in evaluations if each.reason)
    ended = Counter(each.rung for each in evaluations if each.counts)
    seconds = study.seconds
    return Counts(
        len(evaluations),
        ended.total(),
        dict(reasons.most_common()),
        dict(study.avoided),
        sum(each.same_as is not None for each in evaluations),
        {name: ended[rank] for rank, name in enumerate(RUNGS, 1) if ended[rank]},
        {name: (len(seconds[name]), math.fsum(seconds[name])) for name in RUNGS if name in seconds},
    )


def _has_value(record: Record, rung: str) -> bool:
    return math.isfinite(record.evaluation.results.get(rung, math.nan))
