"""Rungs: every candidate is judged cheaply, and only promising ones on the expensive rungs."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pruner_zero.evolution.candidate import (
    SEED,
    STEP,
    TUNE,
    Candidate,
    Evaluation,
    Template,
    excess,
)
from pruner_zero.evolution.evaluator import RUNGS, Outcome, Rung, Task
from pruner_zero.evolution.record import Archive, Record
from pruner_zero.evolution.several_models import Models
from pruner_zero.execution.executor import Executor
from pruner_zero.metric.operators import Shape

# How many pairs of loss and closed-form error the line is fitted to, at least and at most.
_PAIRS, _MEMORY = 8, 64
# How much the closed form rises per nat of loss, where the run has too few pairs; half of it is
# the least slope. Measured in benchmarks/decisions.md over all comparison groups.
_SLOPE = 2.0
# The share of the correction of a candidate that its children inherit.
_INHERITED = 0.7


class Surrogate:
    """The expected closed-form error of candidates, learned from `records`; lower is better.

    - A candidate that ran on windows is expected to have the error on the line (`line`: slope and
      intercept) through the losses and errors of all candidates that ran, at its loss.
    - Any other candidate is expected to have its closed-form error, plus 0.7 times the mean
      correction of its parents. The correction of a candidate is its expected error minus its
      closed-form error.
    - `further`: for each candidate that ran on both, the loss on all windows minus the loss on few,
      in nats.

    Source: fitness inheritance (Smith, Dike & Stegmann 1995); the correction of a closed form is
    ours.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        results = [record.evaluation.results for record in records]
        self.further = excess(results)
        self._usual = sum(self.further) / len(self.further) if self.further else 0.0
        pairs = [
            (self._loss(values), values["reconstruction"])
            for values in results
            if {"few", "reconstruction"} <= values.keys()
        ]
        self.line = _line(np.array(pairs[-_MEMORY:]).reshape(-1, 2))
        self._corrections: list[float] = []
        # Parents come before their children.
        for record in records:
            evaluation, correction = record.evaluation, 0.0
            if evaluation.same_as is not None:
                correction = self._corrections[evaluation.same_as]
            elif "reconstruction" in evaluation.results:
                correction = self._correction(record.candidate, evaluation.results)
            self._corrections.append(correction)

    def expect(self, candidate: Candidate, results: Mapping[str, float]) -> float | None:
        """The expected error of `candidate`; None where it has no closed-form error."""
        if "reconstruction" not in results:
            return None
        return results["reconstruction"] + self._correction(candidate, results)

    def _loss(self, results: Mapping[str, float]) -> float:
        """The loss on the few windows, estimated from that on all windows where there is one."""
        return results["all"] - self._usual if "all" in results else results["few"]

    def _correction(self, candidate: Candidate, results: Mapping[str, float]) -> float:
        """The expected error of a candidate minus its closed-form error."""
        if "few" in results and self.line is not None:
            slope, intercept = self.line
            return intercept + slope * self._loss(results) - results["reconstruction"]
        inherited = [self._corrections[parent] for parent in candidate.parents]
        return _INHERITED * sum(inherited) / len(inherited) if inherited else 0.0


def _line(points: NDArray[np.float64]) -> tuple[float, float] | None:
    """Slope and intercept of the error over the loss, by medians, which outliers do not move.

    None without points. Source: Theil 1950, Sen 1968.
    """
    if not len(points):
        return None
    losses, errors = points.T
    slope = _SLOPE
    if len(points) >= _PAIRS and np.ptp(losses):
        # Its interval, which is not used, may be undefined.
        with np.errstate(invalid="ignore"):
            slope = max(_SLOPE / 2, float(stats.theilslopes(errors, losses).slope))
    return slope, float(np.median(errors - slope * losses))


# The fewest templates among the candidates of a batch that run on few windows.
_TEMPLATES = 4
# How many neighbours of the best run on few windows in a batch, whatever their closed-form error.
_EXPLORED = 2
# The assumed standard deviation, over candidates, of the difference between the losses on all and
# on few windows, in nats, until `_ENOUGH` candidates were judged on all windows.
_SPREAD, _ENOUGH = 0.03, 3


@dataclass(frozen=True)
class Racing:
    """Which candidates are judged on the next rung.

    - All candidates have a closed-form error (rung "reconstruction").
    - On few windows run at most `few_share` of a batch and at most `few_most` candidates: those
      whose expected error (`Surrogate`) or closed-form error is at most `near` above the lowest so
      far. Tuned exponents (`Tuner`) run first.
    - On all windows run those whose loss on few is at most `margin` nats above the lowest, or that
      may still get the lowest loss on all, by how much the two losses differ for other candidates.
      A candidate that falls clearly behind the best is stopped (`is_behind`).

    All candidates are judged on the same windows. direct: every candidate is judged on all windows
    and none is stopped, as in the published search. models: the models where they are several: few
    windows are of the first one, and what others gained on further ones says who is stopped.
    """

    near: float = 0.3
    few_share: float = 0.15
    few_most: int = 8
    margin: float = 0.005
    direct: bool = False
    models: Models | None = None


@dataclass
class _Entry:
    """A candidate of the batch, with its evaluation as far as it has climbed."""

    candidate: Candidate
    canonical: str
    evaluation: Evaluation

    @property
    def alive(self) -> bool:
        return self.evaluation.reason is None and self.evaluation.same_as is None

    @property
    def record(self) -> Record:
        return Record(self.candidate, self.evaluation, self.canonical)

    def update(self, **changes: Any) -> None:
        self.evaluation = replace(self.evaluation, **changes)


def judge(
    batch: Sequence[Candidate], archive: Archive, executor: Executor[Task, Outcome], racing: Racing
) -> list[Record]:
    """Judge one batch rung by rung. The records are in the order of submission, not committed.

    All decisions are made here, from outcomes in the order of submission, so that they are the
    same for any executor and for a run that was interrupted.
    """
    entries = []
    for candidate in batch:
        form = candidate.skeleton.form
        entry = _Entry(candidate, str(form), Evaluation(0, math.inf))
        if form.shape is Shape.MATRIX:
            entry.update(same_as=archive.first(entry.canonical, candidate))
        else:
            entry.update(reason=f"constant within every {candidate.scope}: it masks nothing")
        entries.append(entry)
    if racing.direct:
        _climb("all", entries, archive, executor)
    else:
        _climb("reconstruction", entries, archive, executor)
        surrogate = Surrogate(archive.records)
        for entry in entries:
            entry.update(expected=surrogate.expect(entry.candidate, entry.evaluation.results))
        chosen = _promising(entries, archive, racing)
        _climb("few", chosen, archive, executor)
        chosen = _near_the_best(chosen, archive, racing.margin, surrogate.further)
        _climb("all", chosen, archive, executor, _to_beat(archive, racing.models))
    earlier = list(archive.records)
    for entry in entries:
        if (first := entry.evaluation.same_as) is not None:
            judged = earlier[first].evaluation
            entry.update(rung=judged.rung, value=judged.value)
        earlier.append(entry.record)
    after = Surrogate(earlier)
    for entry in entries:
        counts, results = entry.evaluation.counts, entry.evaluation.results
        entry.update(expected=after.expect(entry.candidate, results) if counts else None)
    return [entry.record for entry in entries]


def _climb(
    rung: Rung,
    entries: Sequence[_Entry],
    archive: Archive,
    executor: Executor[Task, Outcome],
    to_beat: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> None:
    """Judge the entries that are neither rejected nor duplicates."""
    alive = [entry for entry in entries if entry.alive]
    candidates = [entry.candidate for entry in alive]
    outcomes = outcomes_on(rung, candidates, archive, executor, to_beat)
    for entry, outcome in zip(alive, outcomes, strict=True):
        evaluation = entry.evaluation
        entry.update(seconds=evaluation.seconds + outcome.seconds, reason=outcome.reason)
        if outcome.reason is not None:
            entry.update(rung=0, value=math.inf)
        elif outcome.value is not None:
            results = {**evaluation.results, **outcome.parts, rung: outcome.value}
            entry.update(rung=RUNGS.index(rung) + 1, value=outcome.value, results=results)


def outcomes_on(
    rung: Rung,
    candidates: Sequence[Candidate],
    archive: Archive,
    executor: Executor[Task, Outcome],
    to_beat: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> Iterator[Outcome]:
    """The outcomes of the candidates on a rung; those that the archive lacks are judged and noted.

    to_beat: fields of each `Task`.
    """
    earlier = [archive.outcome(candidate.number, rung) for candidate in candidates]
    tasks = []
    for candidate, outcome in zip(candidates, earlier, strict=True):
        # The windows that a candidate has run are not run again.
        few = archive.outcome(candidate.number, "few") if rung == "all" else None
        known = few.losses if few is not None else ()
        text, scope = str(candidate.expression), candidate.scope
        if outcome is None:
            tasks.append(Task(candidate.number, rung, text, scope, known, **to_beat))
    fresh = executor.map(tasks)
    for outcome in earlier:
        judged = outcome or next(fresh)
        archive.remember(judged)
        yield judged


def _to_beat(archive: Archive, models: Models | None) -> dict[str, tuple[float, ...]]:
    """The fields `best` and `slack` of tasks on all windows, of the candidates judged there."""
    judged = [record for record in archive.distinct() if "all" in record.evaluation.results]
    judged.sort(key=lambda record: record.evaluation.results["all"])
    outcomes = [archive.outcome(record.candidate.number, "all") for record in judged]
    losses = [outcome.losses for outcome in outcomes if outcome is not None]
    return {"best": losses[0] if losses else (), "slack": models.slack(losses) if models else ()}


def _promising(entries: Sequence[_Entry], archive: Archive, racing: Racing) -> list[_Entry]:
    """The entries to run on few windows.

    - Metrics that the user named, all of them.
    - Tuned exponents within reach by their expected error, up to half of the number.
    - The first `_EXPLORED` neighbours of the best whose template never ran, whatever their error:
      the closed form is wrong about scores relative to a norm, and about shares of matrices, by
      more than `near`.
    - Then the best by expected error, up to two thirds.
    - Then the best by closed-form error, so that losses of relatives do not decide alone.

    Of the last two no template (`Candidate.template`) gets more than its part, so that variants of
    the best do not take all. Of candidates with exactly the same closed-form error, which nearly
    always have the same masks, only the first of the whole search runs.
    """
    ran = {r.evaluation.on("reconstruction") for r in archive.records if r.evaluation.rung > 1}
    alive = []
    for entry in entries:
        error = entry.evaluation.on("reconstruction")
        if entry.alive and error not in ran:
            ran.add(error)
            alive.append(entry)
    most = min(racing.few_most, math.ceil(racing.few_share * len(alive)))
    # Where all candidates are of one template, it may have all.
    different = len({entry.candidate.template for entry in alive}) or 1
    most_of_template = math.ceil(most / min(_TEMPLATES, different))

    def within_reach(rung: str) -> list[_Entry]:
        judged: list[_Entry | Record] = [*alive, *archive.distinct()]
        limit = min((each.evaluation.on(rung) for each in judged), default=0.0) + racing.near
        near = [entry for entry in alive if entry.evaluation.on(rung) <= limit]
        return sorted(near, key=lambda entry: entry.evaluation.on(rung))

    expected = within_reach("expected")
    tuned = [entry for entry in expected if entry.candidate.operation == TUNE]
    # In the order of `Tuner`, the most promising first.
    tuned.sort(key=lambda entry: entry.candidate.number)
    named = [entry for entry in alive if entry.candidate.operation == SEED]
    chosen = {entry.candidate.number: entry for entry in [*named, *tuned[: most // 2]]}
    most += len(named)
    seen = {r.candidate.template for r in archive.records if r.evaluation.rung > 1}
    explored = 0
    for entry in alive:
        candidate = entry.candidate
        free = explored < _EXPLORED and len(chosen) < most
        if free and candidate.operation == STEP and candidate.template not in seen:
            explored += 1
            chosen[candidate.number] = entry
            seen.add(candidate.template)
    templates: Counter[Template] = Counter()
    for count, best in ((most - most // 3, expected), (most, within_reach("reconstruction"))):
        for entry in best:
            number, template = entry.candidate.number, entry.candidate.template
            free = len(chosen) < count and templates[template] < most_of_template
            if free and number not in chosen:
                chosen[number] = entry
                templates[template] += 1
    return list(chosen.values())


def _near_the_best(
    entries: Sequence[_Entry], archive: Archive, margin: float, further: Sequence[float]
) -> list[_Entry]:
    """The entries whose loss on few windows is near the lowest, or may be the lowest on all.

    further: the differences between losses on all and on few windows so far, which tell the usual
    loss on few windows of the candidate that is best on all, and how far a candidate may still
    fall.
    """
    alive = sorted((e for e in entries if e.alive), key=lambda entry: entry.evaluation.on("few"))
    lowest = alive[0].evaluation.on("few") if alive else math.inf
    if further:
        best = min(record.evaluation.on("all") for record in archive.distinct())
        lowest = min(lowest, best - statistics.mean(further))
    spread = statistics.stdev(further) if len(further) >= _ENOUGH else _SPREAD
    limit = lowest + max(margin, spread if further else 0.0)
    return [entry for entry in alive if entry.evaluation.on("few") <= limit]
