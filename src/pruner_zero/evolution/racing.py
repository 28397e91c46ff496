"""Rungs: every candidate is judged cheaply, and only the promising ones dearly."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pruner_zero.evolution.archive import Archive, Record
from pruner_zero.evolution.candidate import Candidate, Evaluation, Kind
from pruner_zero.evolution.evaluator import RUNGS, Outcome, Rung, Task
from pruner_zero.evolution.executor import Executor
from pruner_zero.evolution.surrogate import Surrogate
from pruner_zero.metric.canonical import canonical, masks


@dataclass(frozen=True)
class Racing:
    """How many candidates climb.

    A candidate goes from the closed-form error to the loss on a few windows when it is at most
    `near` above the lowest of the run so far, by its expectation (`Surrogate`) or by the error
    itself, and among the best `few_share` of its batch; and from there to the whole search text
    when its loss is at most `margin`, in nats, above the lowest on those windows, or may well
    become the lowest on all, by how much the two differed for others. All are judged on the same
    windows, so that a difference is the metrics' and not the text's. The first two bounds widen
    as the run finds that the closed form does not rank like the loss (`Surrogate.trust`).
    direct: every distinct candidate is judged on the whole search text, as the published search
    does.
    """

    near: float = 0.3
    few_share: float = 0.15
    margin: float = 0.005
    direct: bool = False

    def share(self, trust: float) -> float:
        """The part of a batch that runs on a few windows: up to half where trust is 0."""
        return self.few_share + max(0.0, _HALF - self.few_share) * (1 - trust) ** 2

    def reach(self, trust: float) -> float:
        """How far above the lowest a candidate may lie to do so."""
        return self.near / max(trust, _LEAST_TRUST)


_HALF, _LEAST_TRUST = 0.5, 0.1
# Of a batch, the places on a few windows are for so many kinds at least.
_KINDS = 4
# From so many on, how much losses on few and on all windows differ is known.
_FINALISTS = 3

_RANK: Mapping[str, int] = {rung: rank for rank, rung in enumerate(RUNGS)}


@dataclass
class _Entry:
    candidate: Candidate
    canonical: str
    results: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    same_as: int | None = None
    level: str | None = None
    seconds: float = 0.0
    expected: float | None = None

    @property
    def alive(self) -> bool:
        return self.reason is None and self.same_as is None

    def expect(self, surrogate: Surrogate) -> None:
        if self.alive:
            self.expected = surrogate.expect(self.candidate, self.results)


def judge(
    batch: Sequence[Candidate], archive: Archive, executor: Executor, racing: Racing
) -> list[Record]:
    """Judge one batch rung by rung; the records are in order of submission, not yet committed.

    All decisions are made here from outcomes in order of submission, so they are the same
    for any executor, and for a run that was interrupted.
    """
    entries = [_Entry(one, str(canonical(one.expression, one.scope))) for one in batch]
    # Of offsets none are asked twice, and small ones do not show in the few rows of the probe.
    alike = [entry for entry in entries if not entry.candidate.offsets]
    for entry in alike:
        _check_statically(entry, archive)
    for entry, outcome in _climb("probe", alike, archive, executor):
        if outcome.fingerprint is not None:
            entry.same_as = archive.same_mask(outcome.fingerprint, entry.candidate.number)
            entry.level = "fingerprint" if entry.same_as is not None else None
    if racing.direct:
        _climb("all", entries, archive, executor)
    else:
        _climb("reconstruction", entries, archive, executor)
        surrogate = Surrogate(archive.records)
        for entry in entries:
            entry.expect(surrogate)
        near = _promising(entries, archive, racing, surrogate.trust)
        _climb("few", near, archive, executor)
        near = _near_the_best(near, archive, racing.margin, surrogate.further)
        _climb("all", near, archive, executor)
    earlier = list(archive.records)
    for entry in entries:
        earlier.append(_record(entry, earlier))
    after = Surrogate(earlier)
    return [_with_expectation(record, after) for record in earlier[len(archive.records) :]]


def _with_expectation(record: Record, surrogate: Surrogate) -> Record:
    evaluation = record.evaluation
    if not evaluation.counts:
        return record
    expected = surrogate.expect(record.candidate, evaluation.results)
    return replace(record, evaluation=replace(evaluation, expected=expected))


def _check_statically(entry: _Entry, archive: Archive) -> None:
    candidate = entry.candidate
    if not masks(candidate.expression, candidate.scope):
        entry.reason = f"constant within every {candidate.scope}: it masks nothing"
        return
    entry.same_as = archive.twin(entry.canonical, candidate.scope, candidate.number)
    entry.level = "canonical" if entry.same_as is not None else None


def _climb(
    rung: Rung, entries: Sequence[_Entry], archive: Archive, executor: Executor
) -> list[tuple[_Entry, Outcome]]:
    alive = [entry for entry in entries if entry.alive]
    known = {entry.candidate.number: archive.known(entry.candidate.number, rung) for entry in alive}
    tasks = [
        Task(one.number, rung, str(one.expression), one.scope, one.offsets)
        for one in (entry.candidate for entry in alive)
        if known[one.number] is None
    ]
    fresh = executor.map(tasks)
    judged = []
    for entry in alive:
        outcome = known[entry.candidate.number] or next(fresh)
        archive.remember(outcome)
        entry.seconds += outcome.seconds
        entry.reason = outcome.reason
        if outcome.value is not None:
            entry.results[rung] = outcome.value
        judged.append((entry, outcome))
    return judged


def _promising(
    entries: Sequence[_Entry], archive: Archive, racing: Racing, trust: float
) -> list[_Entry]:
    """Those that run on a few windows: the best by expectation, and the best by closed form.

    The second, a third of them at least, see to it that what losses taught of some relatives
    does not decide alone; and no kind (`Candidate.kind`) gets more than a part of the places, so
    that variants of the best do not take all of them.
    """
    alive = [entry for entry in entries if entry.alive]
    most = math.ceil(racing.share(trust) * len(alive))
    # Where all are of one kind, as when shares are evolved, that has all places.
    room = math.ceil(most / min(_KINDS, len({one.candidate.kind for one in alive}) or 1))
    chosen: dict[int, _Entry] = {}
    kinds: Counter[Kind] = Counter()
    for count, value in ((most - most // 3, _expected), (most, _closed)):
        lowest = min((*map(value, alive), *_before(archive, value)), default=math.inf)
        near = [entry for entry in alive if value(entry) <= lowest + racing.reach(trust)]
        for entry in sorted(near, key=value):
            number, kind = entry.candidate.number, entry.candidate.kind
            if number not in chosen and len(chosen) < count and kinds[kind] < room:
                chosen[number] = entry
                kinds[kind] += 1
    return list(chosen.values())


def _near_the_best(
    entries: Sequence[_Entry], archive: Archive, margin: float, further: Sequence[float]
) -> list[_Entry]:
    """Those whose loss on the few windows is near the lowest, or may end up the lowest on all.

    further: how far the one lay above the other so far; the first few run on all to tell.
    """
    now = sorted((entry for entry in entries if entry.alive), key=_loss)
    limit = margin + min((*map(_loss, now), *_before(archive, _loss)), default=math.inf)
    if len(further) >= _FINALISTS:
        usual, spread = statistics.mean(further), statistics.stdev(further)
        limit = max(limit, min(_before(archive, _whole_loss)) - usual + spread)
    missing = max(0, _FINALISTS - len(further))
    return [entry for place, entry in enumerate(now) if place < missing or _loss(entry) <= limit]


Judged = _Entry | Evaluation


def _expected(judged: Judged) -> float:
    return math.inf if judged.expected is None else judged.expected


def _closed(judged: Judged) -> float:
    return judged.results.get("reconstruction", math.inf)


def _loss(judged: Judged) -> float:
    return judged.results.get("few", math.inf)


def _whole_loss(judged: Judged) -> float:
    return judged.results.get("all", math.inf)


def _before(archive: Archive, value: Callable[[Judged], float]) -> list[float]:
    return [value(record.evaluation) for record in archive.distinct()]


def _record(entry: _Entry, earlier: Sequence[Record]) -> Record:
    rung, value = 0, math.inf
    if entry.same_as is not None:
        twin = earlier[entry.same_as].evaluation
        rung, value = twin.rung, twin.value
    elif entry.reason is None:
        highest = max(entry.results, key=_RANK.__getitem__)
        rung, value = _RANK[highest], entry.results[highest]
    evaluation = Evaluation(
        rung,
        value,
        entry.results,
        entry.reason,
        entry.same_as,
        entry.level,
        entry.seconds,
    )
    return Record(entry.candidate, evaluation, entry.canonical)
