"""Rungs: every candidate is judged cheaply, and only the promising ones dearly."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pruner_zero.metric import canonical, masks
from pruner_zero.search.archive import Archive, Record
from pruner_zero.search.candidate import Candidate, Evaluation
from pruner_zero.search.evaluator import RUNGS, Outcome, Rung, Task
from pruner_zero.search.executor import Executor


@dataclass(frozen=True)
class Racing:
    """How many candidates climb.

    few_share: the share of a batch that goes from the closed-form error to the loss on a few
    windows. elite: a candidate goes on to the whole search text when
    its loss on the few is among the `elite` lowest seen so far. direct: every distinct
    candidate is judged on the whole search text, as the published search does.
    """

    few_share: float = 0.05
    elite: int = 3
    direct: bool = False


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

    @property
    def alive(self) -> bool:
        return self.reason is None and self.same_as is None


def judge(
    batch: Sequence[Candidate], archive: Archive, executor: Executor, racing: Racing
) -> list[Record]:
    """Judge one batch rung by rung; the records are in order of submission, not yet committed.

    All decisions are made here from outcomes in order of submission, so they are the same
    for any executor, and for a run that was interrupted.
    """
    entries = [_Entry(one, str(canonical(one.expression, one.scope))) for one in batch]
    for entry in entries:
        _check_statically(entry, archive)
    for entry, outcome in _climb("probe", entries, archive, executor):
        if outcome.fingerprint is not None:
            entry.same_as = archive.same_mask(outcome.fingerprint, entry.candidate.number)
            entry.level = "fingerprint" if entry.same_as is not None else None
    if racing.direct:
        _climb("all", entries, archive, executor)
    else:
        _climb("reconstruction", entries, archive, executor)
        _climb("few", _best(entries, racing.few_share), archive, executor)
        _climb("all", _elite(entries, archive, racing.elite), archive, executor)
    earlier = list(archive.records)
    for entry in entries:
        earlier.append(_record(entry, earlier))
    return earlier[len(archive.records) :]


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
        Task(entry.candidate.number, rung, str(entry.candidate.expression), entry.candidate.scope)
        for entry in alive
        if known[entry.candidate.number] is None
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


def _best(entries: Sequence[_Entry], share: float) -> list[_Entry]:
    """The best share by closed-form error, in order of submission."""
    alive = [entry for entry in entries if entry.alive]
    ranked = sorted(alive, key=lambda one: one.results["reconstruction"])
    chosen = {id(entry) for entry in ranked[: math.ceil(share * len(alive))]}
    return [entry for entry in alive if id(entry) in chosen]


def _elite(entries: Sequence[_Entry], archive: Archive, elite: int) -> list[_Entry]:
    """Those whose loss on the few windows is among the lowest of the run so far."""
    before = [
        record.evaluation.results["few"]
        for record in archive.distinct()
        if "few" in record.evaluation.results
    ]
    now = [entry.results["few"] for entry in entries if entry.alive and "few" in entry.results]
    limit = sorted(before + now)[:elite][-1:] or [math.inf]
    return [
        entry for entry in entries if entry.alive and entry.results.get("few", math.inf) <= limit[0]
    ]


def _record(entry: _Entry, earlier: Sequence[Record]) -> Record:
    rung, value = 0, math.inf
    if entry.same_as is not None:
        twin = earlier[entry.same_as].evaluation
        rung, value = twin.rung, twin.value
    elif entry.reason is None:
        highest = max(entry.results, key=_RANK.__getitem__)
        rung, value = _RANK[highest], entry.results[highest]
    evaluation = Evaluation(
        rung, value, entry.results, entry.reason, entry.same_as, entry.level, entry.seconds
    )
    return Record(entry.candidate, evaluation, entry.canonical)
