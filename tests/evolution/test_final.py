"""The final race: the best candidates of the best skeletons on fresh windows."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Outcome, Task, is_behind
from pruner_zero.evolution.final import FINALISTS, FinalRace, affordable, race_finalists
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.evolution.record import Archive, Record
from pruner_zero.metric.grammar import parse


def record(number: int, text: str, value: float, rung: int = 3) -> Record:
    expression = parse(text)
    results = {"few": value, "all": value}
    evaluation = Evaluation(rung, value, results)
    return Record(Candidate(number, expression, "global"), evaluation, text)


class Fresh:
    """Judges by a table of losses, by expression."""

    def __init__(self, losses: dict[str, tuple[float, ...]]) -> None:
        self.losses = losses
        self.asked: list[str] = []

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for task in tasks:
            assert task.rung == "final"
            self.asked.append(task.expression)
            losses = self.losses[task.expression]
            yield Outcome(task.number, "final", sum(losses) / len(losses), losses=losses)

    def close(self) -> None:
        """There is nothing to release."""


def race(losses: Mapping[str, tuple[float, ...]]) -> FinalRace:
    records = [record(number, text, 4.0) for number, text in enumerate(losses)]
    outcomes = [
        Outcome(number, "final", statistics.mean(values), losses=values)
        for number, values in enumerate(losses.values())
    ]
    return FinalRace.of(records, outcomes)


def winner(result: FinalRace) -> str:
    assert result.winner is not None
    return str(result.winner.record.candidate.expression)


def test_only_the_finalists_of_the_last_race_that_finished_count() -> None:
    """Of a resumed search some outcomes are of candidates that are not told again yet."""
    records = [record(number, text, 4.0) for number, text in enumerate(("W", "W * X", "W * G"))]
    outcomes = [Outcome(number, "final", 3.0, losses=(3.0,)) for number in (3, 1, 0)]
    outcomes += [Outcome(2, "final", reason="out of time"), Outcome(2, "all", 4.0, losses=(4.0,))]

    def numbers(finalists: tuple[int, ...] | None = None) -> list[int]:
        judged = FinalRace.of(records, outcomes, finalists).finalists
        return [finalist.record.candidate.number for finalist in judged]

    assert numbers() == [0, 1]
    assert numbers((1, 2, 3)) == [1]


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({"W * G": (4.0, 4.2, 4.1), "W * X": (3.8, 4.0, 3.9)}, "W * X"),
        # The differences are +0.1 and -0.08: a mean of 0.01 with a standard error of 0.09.
        ({"W * X * G^0.5": (3.9, 4.08), "W * X": (4.0, 4.0), "W": (4.5, 4.6)}, "W * X"),
        # As of the same masks.
        ({"W * X * G^0.5": (4.0, 4.1), "W * X": (4.0, 4.1)}, "W * X"),
    ],
)
def test_the_simplest_of_the_candidates_level_with_the_lowest_loss_wins(
    losses: dict[str, tuple[float, ...]], best: str
) -> None:
    assert winner(race(losses)) == best


def test_a_candidate_that_is_behind_in_every_window_is_not_level() -> None:
    result = race({"W * X * G^0.5": (3.9, 5.0, 4.4), "W * X": (3.93, 5.02, 4.44)})
    assert winner(result) == "W * X * G^0.5"
    behind, error = result.finalists[1].behind(result.finalists[0])
    assert behind == pytest.approx(0.03)
    assert error < 0.01


def test_the_caption_has_an_interval() -> None:
    caption = race({"W * X": (3.0, 3.1, 3.2)}).caption()
    assert caption == (
        "final race on 3 fresh windows: perplexity 22.20 (95 %: 17.32 to 28.46), W * X @global"
    )
    assert FinalRace(()).caption() == "no final race"


def test_the_interval_is_as_wide_as_so_few_windows_demand() -> None:
    """Student's t: 12.71 standard errors of two windows, 2.20 of twelve."""
    for losses, errors in (((3.0, 3.2), 12.706), ((3.0, 3.2) * 6, 2.201)):
        [row] = race({"W * X": losses}).to_rows()
        error = statistics.stdev(losses) / math.sqrt(len(losses))
        low, high = (math.log(bound) for bound in row["interval"])
        assert (low + high) / 2 == pytest.approx(3.1)
        assert (high - low) / 2 == pytest.approx(errors * error, rel=1e-3)


def test_infinite_perplexities_can_be_written_as_json() -> None:
    result = race({"W * X": (800.0, 900.0), "W": (900.0, 1000.0)})
    json.dumps(result.to_rows(), allow_nan=False)


def test_each_skeleton_sends_its_best(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {})
    records = [
        record(0, "W * G", 4.0),
        record(1, "W * G^0.75", 3.9),
        record(2, "W * X", 4.1),
        record(3, "W * G^0.5", 3.95),
        record(4, "W", 3.0, rung=2),
    ]
    archive.commit(records, 1.0)
    fresh = Fresh({"W * G^0.75": (4.0, 4.1), "W * X": (3.5, 3.6)})
    result = race_finalists(archive, fresh)
    assert fresh.asked == ["W * G^0.75", "W * X"]
    assert winner(result) == "W * X"
    again = Archive(tmp_path, {})
    again.commit(records, 1.0)
    assert race_finalists(again, Fresh({})) == result, "its outcomes are read from the journal"


def test_a_limited_number_of_skeletons_race(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {})
    texts = ["W", "W * G", "W * X", "W + G", "W + X", "W - G", "W * G * X", "max(W, G)"]
    archive.commit([record(n, text, 4 + n / 10) for n, text in enumerate(texts)], 1.0)
    fresh = Fresh({str(parse(text)): (4.0,) for text in texts})
    race_finalists(archive, fresh)
    assert fresh.asked == [str(parse(text)) for text in texts[:FINALISTS]]
    assert len(race_finalists(archive, fresh, most=2).finalists) == 2


def test_the_time_limits_the_number_of_finalists() -> None:
    """A window takes 2 s and two run at once: in 60 s, five finalists run on twelve windows."""
    few = Outcome(0, "few", 4.0, losses=(4.0,) * 2, seconds=20.0)
    full = Outcome(0, "all", 4.0, losses=(4.0,) * 12, seconds=20.0)
    assert affordable([few, full], 20.0, windows=12, seconds=120.0) == 6
    assert affordable([few, full], 20.0, windows=12, seconds=60.0) == 5
    assert affordable([few, full], 20.0, windows=12, seconds=20.0) == 2
    assert affordable([few, full], 20.0, windows=12, seconds=9999.0) == FINALISTS
    final = Outcome(0, "final", 4.0, losses=(4.0,) * 12, seconds=999.0)
    assert affordable([few, full, final], 20.0, windows=12, seconds=60.0) == 5
    assert affordable([few], 20.0, windows=12, seconds=9999.0) == 2


def test_a_budget_without_end_affords_all_finalists() -> None:
    outcomes = [Outcome(0, "all", 1.0, losses=(1.0,), seconds=1.0)]
    assert affordable(outcomes, 1.0, 12, 6e307) == FINALISTS


def test_the_winner_is_the_best_of_the_hall_of_fame_and_shown_in_it() -> None:
    records = [record(0, "W * G", 4.0), record(1, "W * G^0.75", 3.9), record(2, "W + X^2", 3.95)]
    hall = HallOfFame.of(records, winner=records[2])
    assert hall.best is records[2]
    assert records[2] in hall.members
    assert [row["number"] for row in hall.to_rows() if row["best"]] == [2]
    assert HallOfFame.of(records).best is records[1]


@pytest.mark.parametrize(
    ("losses", "best", "behind"),
    [
        ((4.1, 4.3, 4.2, 4.2), (4.0, 4.2, 4.1, 4.1), True),
        ((4.1, 4.3, 4.2), (4.0, 4.2, 4.1, 4.1), False),
        ((4.1, 4.1, 4.2, 3.9), (4.0, 4.2, 4.1, 4.0), False),
        ((4.001, 4.201, 4.101, 4.101), (4.0, 4.2, 4.1, 4.1), False),
        ((4.1, 4.3, 4.2, 4.2), (), False),
        ((math.inf,), (), True),
        ((4.0, 4.2, 4.1, math.nan), (4.0, 4.2, 4.1, 4.1), True),
    ],
)
def test_a_candidate_is_behind_where_paired_differences_say_so(
    losses: tuple[float, ...], best: tuple[float, ...], behind: bool
) -> None:
    """After at least four windows, by more than two standard errors of at least 0.0025.

    A loss that is not finite is behind at once.
    """
    assert is_behind(losses, best) is behind
