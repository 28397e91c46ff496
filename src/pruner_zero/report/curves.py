"""What the figures of a search show: the front, and the best so far."""

import math
from dataclasses import dataclass

from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.hall_of_fame import HallOfFame, complexity
from pruner_zero.report.read import SearchRun
from pruner_zero.report.svg import Point

# More dots than this hide each other and make the page heavy.
MOST_DOTS = 800

LOSSES = {
    "reconstruction": "closed-form error",
    "few": "loss on a few windows, nats a token",
    "all": "loss on the search text, nats a token",
}


@dataclass(frozen=True)
class Cloud:
    """The candidates judged on the dearest rung that any reached, against their complexity.

    front: the best of each complexity. others: those beside it that are drawn, evenly chosen
    where they are many. total: how many were judged; above: how many of them lie so high that
    they would flatten the rest, and are not drawn.
    """

    rung: str
    front: tuple[Record, ...]
    others: tuple[Record, ...]
    total: int
    above: int

    @classmethod
    def of(cls, run: SearchRun) -> "Cloud | None":
        """The cloud of a run; None where no candidate was judged."""
        judged = judged_alike(run)
        hall = HallOfFame.of(judged)
        if not judged:
            return None
        front = {record.candidate.number for record in hall.front}
        losses = sorted(record.evaluation.value for record in judged)
        limit = max(hall.front[0].evaluation.value, losses[3 * len(losses) // 4])
        others = [one for one in judged if one.candidate.number not in front]
        within = [one for one in others if one.evaluation.value <= limit]
        every = math.ceil(len(within) / MOST_DOTS) or 1
        rung = RUNGS[judged[0].evaluation.rung]
        above = len(others) - len(within)
        return cls(rung, hall.front, tuple(within[::every]), len(judged), above)


def judged_alike(run: SearchRun) -> list[Record]:
    """The distinct candidates on the dearest rung that any reached: their values compare."""
    distinct = [record for record in run.records if record.evaluation.counts]
    top = max((record.evaluation.rung for record in distinct), default=0)
    return [
        one
        for one in distinct
        if one.evaluation.rung == top and math.isfinite(one.evaluation.value)
    ]


def place(record: Record) -> Point:
    """Complexity and loss."""
    return complexity(record.candidate.expression), record.evaluation.value


def best_by_evaluations(run: SearchRun) -> list[Point]:
    """(distinct candidates, lowest loss so far), a point where it falls, and one at the end."""
    judged = {record.candidate.number for record in judged_alike(run)}
    points: list[Point] = []
    distinct = 0
    for record in run.records:
        distinct += record.evaluation.counts
        value = record.evaluation.value
        if record.candidate.number in judged and (not points or value < points[-1][1]):
            points.append((distinct, value))
    return [*points, (distinct, points[-1][1])] if points else []


def best_by_time(run: SearchRun) -> list[Point]:
    """(seconds, lowest loss so far), a point for the batch in which it falls, one at the end."""
    values = {one.candidate.number: one.evaluation.value for one in judged_alike(run)}
    points: list[Point] = []
    done, best = 0, math.inf
    for candidates, seconds in run.batches:
        found = [
            values[record.candidate.number]
            for record in run.records[done:candidates]
            if record.candidate.number in values
        ]
        done = candidates
        if min(found, default=math.inf) < best:
            best = min(found)
            points.append((seconds, best))
    return [*points, (run.batches[-1][1], best)] if points else []


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a duration reads well: its seconds and its name."""
    if seconds >= 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 180 else (1.0, "seconds")
