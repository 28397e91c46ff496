"""Rungs: every candidate is judged cheaply, and only promising ones on the expensive rungs."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pruner_zero.evolution.archive import Archive, Record
from pruner_zero.evolution.candidate import TUNE, Candidate, Evaluation, Template
from pruner_zero.evolution.evaluator import RUNGS, Outcome, Rung, Task
from pruner_zero.evolution.surrogate import Surrogate
from pruner_zero.execution.executor import Executor
from pruner_zero.metric.operators import Shape

# The share of a batch that runs on few windows where the closed form ranks nothing, and the least
# trust by which the distance to the lowest error is divided.
_HALF, _LEAST_TRUST = 0.5, 0.1
# The fewest templates among the candidates of a batch that run on few windows.
_TEMPLATES = 4
# The assumed standard deviation, over candidates, of the difference between the losses on all and
# on few windows, in nats, until `_ENOUGH` candidates were judged on all windows.
_SPREAD, _ENOUGH = 0.03, 3


@dataclass(frozen=True)
class Racing:
    """Which candidates are judged on the next rung.

    - All candidates have a closed-form error (rung "reconstruction").
    - On few windows run at most `few_share` of a batch and at most `few_most` candidates: those
      whose expected error (`Surrogate`) or closed-form error is at most `near` above the lowest so
      far. Tuned exponents (`Tuner`) run first. Where the closed form does not rank like the loss
      (`Surrogate.trust` below 1), the share and the distance are larger.
    - On all windows run those whose loss on few is at most `margin` nats above the lowest, or that
      may still get the lowest loss on all, by how much the two losses differ for other candidates.
      A candidate that falls clearly behind the best is stopped (`is_behind`).

    All candidates are judged on the same windows. direct: every candidate is judged on all windows
    and none is stopped, as in the published search.
    """

    near: float = 0.3
    few_share: float = 0.15
    few_most: int = 8
    margin: float = 0.005
    direct: bool = False

    def share(self, trust: float) -> float:
        """The share of a batch that runs on few windows: up to half where trust is 0."""
        return self.few_share + max(0.0, _HALF - self.few_share) * (1 - trust) ** 2

    def reach(self, trust: float) -> float:
        """How far above the lowest error a candidate that runs on few windows may lie."""
        return self.near / max(trust, _LEAST_TRUST)


@dataclass
class _Entry:
    """A candidate of the batch, with its evaluation as far as it has climbed."""

    candidate: Candidate
    canonical: str
    evaluation: Evaluation

    @property
    def alive(self) -> bool:
        return self.evaluation.reason is None and self.evaluation.same_as is None

    def update(self, **changes: Any) -> None:
        self.evaluation = replace(self.evaluation, **changes)


def judge(
    batch: Sequence[Candidate], archive: Archive, executor: Executor[Task, Outcome], racing: Racing
) -> list[Record]:
    """Judge one batch rung by rung. The records are in the order of submission, not committed.

    All decisions are made here, from outcomes in the order of submission, so that they are the
    same for any executor and for a run that was interrupted.
    """
    entries = [_checked(candidate, archive) for candidate in batch]
    if racing.direct:
        _climb("all", entries, archive, executor)
    else:
        _climb("reconstruction", entries, archive, executor)
        surrogate = Surrogate(archive.records)
        for entry in entries:
            entry.update(expected=surrogate.expect(entry.candidate, entry.evaluation.results))
        chosen = _promising(entries, archive, racing, surrogate.trust)
        _climb("few", chosen, archive, executor)
        chosen = _near_the_best(chosen, archive, racing.margin, surrogate.further)
        _climb("all", chosen, archive, executor, _best_losses(archive))
    earlier = list(archive.records)
    for entry in entries:
        if (first := entry.evaluation.same_as) is not None:
            judged = earlier[first].evaluation
            entry.update(rung=judged.rung, value=judged.value)
        earlier.append(Record(entry.candidate, entry.evaluation, entry.canonical))
    after = Surrogate(earlier)
    for entry in entries:
        counts, results = entry.evaluation.counts, entry.evaluation.results
        entry.update(expected=after.expect(entry.candidate, results) if counts else None)
    return [Record(entry.candidate, entry.evaluation, entry.canonical) for entry in entries]


def _checked(candidate: Candidate, archive: Archive) -> _Entry:
    """The entry of a candidate, with what its canonical form alone tells."""
    form = candidate.skeleton.form
    entry = _Entry(candidate, str(form), Evaluation(0, math.inf))
    if form.shape is not Shape.MATRIX:
        entry.update(reason=f"constant within every {candidate.scope}: it masks nothing")
    else:
        entry.update(same_as=archive.first(entry.canonical, candidate))
    return entry


def _climb(
    rung: Rung,
    entries: Sequence[_Entry],
    archive: Archive,
    executor: Executor[Task, Outcome],
    best: tuple[float, ...] = (),
) -> None:
    """Judge the entries that are neither rejected nor duplicates.

    best: the losses of a candidate on all windows; entries clearly behind it are stopped.
    """
    alive = [entry for entry in entries if entry.alive]
    candidates = [entry.candidate for entry in alive]
    outcomes = outcomes_on(rung, candidates, archive, executor, best)
    for entry, outcome in zip(alive, outcomes, strict=True):
        evaluation = entry.evaluation
        entry.update(seconds=evaluation.seconds + outcome.seconds, reason=outcome.reason)
        if outcome.reason is not None:
            entry.update(rung=0, value=math.inf)
        elif outcome.value is not None:
            results = {**evaluation.results, rung: outcome.value}
            entry.update(rung=RUNGS.index(rung) + 1, value=outcome.value, results=results)


def outcomes_on(
    rung: Rung,
    candidates: Sequence[Candidate],
    archive: Archive,
    executor: Executor[Task, Outcome],
    best: tuple[float, ...] = (),
) -> Iterator[Outcome]:
    """The outcomes of the candidates on a rung; those that the archive lacks are judged and noted.

    best: as in `Task`.
    """
    earlier = [archive.outcome(candidate.number, rung) for candidate in candidates]
    pairs = zip(candidates, earlier, strict=True)
    fresh = executor.map(
        [_task_of(candidate, rung, archive, best) for candidate, known in pairs if known is None]
    )
    for known in earlier:
        outcome = known or next(fresh)
        archive.remember(outcome)
        yield outcome


def _task_of(candidate: Candidate, rung: Rung, archive: Archive, best: tuple[float, ...]) -> Task:
    """The task of judging a candidate on a rung; the windows that it has run are not run again."""
    few = archive.outcome(candidate.number, "few") if rung == "all" else None
    known = few.losses if few is not None else ()
    return Task(candidate.number, rung, str(candidate.expression), candidate.scope, known, best)


def _best_losses(archive: Archive) -> tuple[float, ...]:
    """The losses by window of the candidate with the lowest loss on all windows; none before."""
    judged = (record for record in archive.distinct() if "all" in record.evaluation.results)
    best = min(judged, key=lambda record: record.evaluation.results["all"], default=None)
    outcome = None if best is None else archive.outcome(best.candidate.number, "all")
    return () if outcome is None else outcome.losses


def _promising(
    entries: Sequence[_Entry], archive: Archive, racing: Racing, trust: float
) -> list[_Entry]:
    """The entries to run on few windows.

    - Tuned exponents within reach by their expected error, up to half of the number.
    - Then the best by expected error, up to two thirds.
    - Then the best by closed-form error, so that losses of relatives do not decide alone.

    Of the last two no template (`Candidate.template`) gets more than its part, so that variants of
    the best do not take all. Of candidates with exactly the same closed-form error, which nearly
    always have the same masks, only the first of the whole search runs.
    """
    error = _on("reconstruction")
    ran = {error(r.evaluation) for r in archive.records if "few" in r.evaluation.results}
    alive = []
    for entry in entries:
        if entry.alive and error(entry.evaluation) not in ran:
            ran.add(error(entry.evaluation))
            alive.append(entry)
    most = min(racing.few_most, math.ceil(racing.share(trust) * len(alive)))
    # Where all candidates are of one template, it may have all.
    different = len({entry.candidate.template for entry in alive}) or 1
    most_of_template = math.ceil(most / min(_TEMPLATES, different))

    def within_reach(value: Callable[[Evaluation], float]) -> list[_Entry]:
        limit = _lowest([*alive, *archive.distinct()], value) + racing.reach(trust)
        near = [entry for entry in alive if value(entry.evaluation) <= limit]
        return sorted(near, key=lambda entry: value(entry.evaluation))

    expected = within_reach(_expected)
    tuned = [entry for entry in expected if entry.candidate.operation == TUNE]
    # In the order of `Tuner`, the most promising first.
    tuned.sort(key=lambda entry: entry.candidate.number)
    chosen = {entry.candidate.number: entry for entry in tuned[: most // 2]}
    templates: Counter[Template] = Counter()
    for count, best in ((most - most // 3, expected), (most, within_reach(error))):
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
    loss = _on("few")
    now = sorted((e for e in entries if e.alive), key=lambda entry: loss(entry.evaluation))
    lowest = _lowest(now, loss)
    if further:
        lowest = min(lowest, _lowest(archive.distinct(), _on("all")) - statistics.mean(further))
    spread = statistics.stdev(further) if len(further) >= _ENOUGH else _SPREAD
    limit = lowest + max(margin, spread if further else 0.0)
    return [entry for entry in now if loss(entry.evaluation) <= limit]


def _expected(evaluation: Evaluation) -> float:
    return math.inf if evaluation.expected is None else evaluation.expected


def _on(rung: Rung) -> Callable[[Evaluation], float]:
    """The value on a rung, infinite where there is none."""
    return lambda evaluation: evaluation.results.get(rung, math.inf)


def _lowest(judged: Iterable[_Entry | Record], value: Callable[[Evaluation], float]) -> float:
    """The lowest value, infinite where there is none."""
    return min((value(each.evaluation) for each in judged), default=math.inf)
