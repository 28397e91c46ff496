"""Cheap rungs judge all candidates, expensive rungs judge promising candidates."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pruner_zero.evolution.candidate import SEED, STEP, Candidate
from pruner_zero.evolution.evaluator import Outcome, Task
from pruner_zero.evolution.racing import Racing, judge
from pruner_zero.evolution.record import Archive
from pruner_zero.metric.grammar import parse

TEXTS = ("W * X", "W", "W * G", "G", "W * X * G", "W * G^0.5", "G * X", "W * X^0.5", "W + X")


class Fake:
    """Judges by a table: the closed-form error of a text; its loss is ten times that."""

    def __init__(self, values: dict[str, float]):
        self.values = values
        self.asked: list[tuple[str, str]] = []

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for task in tasks:
            self.asked.append((task.rung, task.expression))
            if self.values[task.expression] < 0:
                yield Outcome(task.number, task.rung, reason="non-finite scores")
            else:
                times = 1 if task.rung == "reconstruction" else 10
                yield Outcome(task.number, task.rung, value=times * self.values[task.expression])

    def close(self) -> None:
        """Nothing to let go."""

    def on(self, rung: str) -> list[str]:
        return [text for task_rung, text in self.asked if task_rung == rung]


def batch(texts: Iterable[str], first: int = 0) -> list[Candidate]:
    return [Candidate(first + at, parse(text), "row") for at, text in enumerate(texts)]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path, {})


def values() -> dict[str, float]:
    return {text: float(place) for place, text in enumerate(TEXTS)}


def test_only_the_best_share_of_a_batch_is_run_on_windows(archive: Archive) -> None:
    fake = Fake(values())
    records = judge(batch(TEXTS), archive, fake, Racing(near=10, few_share=0.4, margin=10))
    assert fake.on("reconstruction") == list(TEXTS)
    assert fake.on("few") == list(TEXTS[:4])
    assert fake.on("all") == list(TEXTS[:2])
    assert [record.evaluation.rung for record in records] == [3, 3, 2, 2, *[1] * 5]
    assert records[3].evaluation.results == {"reconstruction": 3.0, "few": 30.0}


def test_a_large_batch_runs_no_more_candidates_on_windows_than_the_bound(archive: Archive) -> None:
    fake = Fake(values())
    judge(batch(TEXTS), archive, fake, Racing(near=10, few_share=1, few_most=3, margin=0))
    assert fake.on("few") == list(TEXTS[:3])


def test_two_new_neighbours_of_the_best_run_whatever_their_closed_form_says(
    archive: Archive,
) -> None:
    """Of each template one, and none whose template ran before."""
    fake = Fake(values())
    archive.commit(judge(batch(TEXTS[:1]), archive, fake, Racing(few_share=1)), 1.0)
    steps = [
        replace(candidate, operation=STEP)
        for candidate in batch(["W * X^0.5", "G * X", "G", "W * G^0.5", "W * G"], first=1)
    ]
    fake = Fake(values())
    judge(steps, archive, fake, Racing(near=0.5, few_share=1))
    assert fake.on("few") == ["G * X", "G"]


def test_metrics_that_the_user_named_run_beside_the_most_promising(archive: Archive) -> None:
    fake = Fake(values())
    named = replace(batch(TEXTS)[8], operation=SEED)
    judge([*batch(TEXTS)[:8], named], archive, fake, Racing(near=0.5, few_share=0.1))
    assert fake.on("few") == [TEXTS[8], TEXTS[0]]


def test_variants_of_one_metric_do_not_take_all_the_places(archive: Archive) -> None:
    """Of eight places, two are for powers of the best; then come candidates of other kinds."""
    texts = [f"W * X^{1 + place / 50:.2f}" for place in range(12)]
    texts += ["W * G", "W - X", "W * G * X", "W + X", "max(W, X)", "W * exp(X)"]
    texts = [str(parse(text)) for text in texts]
    fake = Fake({text: float(place) for place, text in enumerate(texts)})
    judge(batch(texts), archive, fake, Racing(near=100, few_share=8 / 18, margin=0))
    assert fake.on("few") == [*texts[:2], *texts[12:]]


@pytest.mark.parametrize(("luck", "climb"), [(0.5, TEXTS[3:6]), (0.0, TEXTS[3:4])])
def test_a_candidate_that_may_still_become_the_best_is_run_on_all_windows(
    luck: float, climb: tuple[str, ...], archive: Archive
) -> None:
    """Losses on few and on all windows differ by luck: a slightly higher loss on few may climb."""
    by_text = {str(parse(text)): place for place, text in enumerate(TEXTS)}

    class Lucky(Fake):
        def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
            for task, outcome in zip(tasks := list(tasks), super().map(tasks), strict=True):
                place = by_text[task.expression]
                if task.rung == "few":
                    yield replace(outcome, value=5 + 0.1 * (place % 3))
                elif task.rung == "all":
                    further = -luck * (-1) ** place
                    yield replace(outcome, value=6 + 0.1 * (place % 3) + further)
                else:
                    yield outcome

    fake = Lucky({text: 1.0 + 1e-9 * place for text, place in by_text.items()})
    everything = Racing(near=10, few_share=1, margin=1)
    archive.commit(judge(batch(TEXTS[:3]), archive, fake, everything), 0.0)
    fake.asked.clear()
    judge(batch(TEXTS[3:6], first=3), archive, fake, Racing(near=10, few_share=1, margin=0.005))
    assert fake.on("all") == list(climb)


def test_a_candidate_level_with_the_run_but_behind_its_batch_is_not_run_on_all_windows(
    archive: Archive,
) -> None:
    """The others must come near the best of the batch, which is far below the earlier run."""
    fake = Fake({str(parse(text)): 1.0 + place / 1000 for place, text in enumerate(TEXTS)})
    archive.commit(
        judge(batch(TEXTS[:3]), archive, fake, Racing(near=10, few_share=1, margin=1)), 0.0
    )
    fake.values |= {str(parse(TEXTS[3])): 0.9, str(parse(TEXTS[4])): 1.001}
    fake.asked.clear()
    judge(batch(TEXTS[3:5], first=3), archive, fake, Racing(near=10, few_share=1, margin=0.005))
    assert fake.on("all") == [TEXTS[3]]


def test_later_batches_must_come_near_the_best_of_the_run(archive: Archive) -> None:
    first = judge(
        batch(TEXTS[:4]), archive, Fake(values()), Racing(near=10, few_share=1, margin=10)
    )
    archive.commit(first, 0.0)
    fake = Fake(values())
    judge(batch(TEXTS[4:], first=4), archive, fake, Racing(near=10, few_share=1, margin=10))
    assert fake.on("few") == list(TEXTS[4:])
    assert fake.on("all") == []


def test_a_batch_far_from_the_best_closed_form_runs_no_window(archive: Archive) -> None:
    first = judge(batch(TEXTS[:2]), archive, Fake(values()), Racing(near=0.5, few_share=1))
    assert [record.evaluation.rung for record in first] == [3, 1]
    archive.commit(first, 0.0)
    fake = Fake(values())
    judge(batch(TEXTS[2:], first=2), archive, fake, Racing(near=0.5, few_share=1))
    assert fake.on("reconstruction") == list(TEXTS[2:])
    assert fake.on("few") == []


def test_an_equal_canonical_form_is_never_judged_twice(archive: Archive) -> None:
    fake = Fake({"W * X": 1.0})
    records = judge(batch(["W * X", "sqr(W * X)"]), archive, fake, Racing())
    assert fake.on("reconstruction") == ["W * X"]
    assert records[1].evaluation.same_as == 0
    assert records[1].evaluation.value == records[0].evaluation.value
    assert not records[1].evaluation.counts


def test_of_candidates_with_the_same_closed_form_error_one_runs_on_windows(
    archive: Archive,
) -> None:
    """They nearly always have the same masks; but none takes the loss of another."""
    fake = Fake({"W": 1.0, "W * X": 1.0, "G": 1.0})
    everyone = Racing(few_share=1, few_most=40)
    archive.commit(judge(batch(["W", "W * X"]), archive, fake, everyone), 1.0)
    archive.commit(judge(batch(["G"], 2), archive, fake, everyone), 2.0)
    assert fake.on("few") == ["W"]
    assert [record.evaluation.rung for record in archive.records] == [3, 1, 1]
    assert all(record.evaluation.counts for record in archive.records)


def test_a_metric_that_masks_nothing_is_rejected_before_any_work(archive: Archive) -> None:
    fake = Fake({})
    (record,) = judge(batch(["W - W"]), archive, fake, Racing())
    assert record.evaluation.rung == 0
    assert record.evaluation.reason
    assert fake.asked == []


def test_a_rejection_ends_the_climb_with_its_reason(archive: Archive) -> None:
    fake = Fake({"W": -1.0, "G": 1.0})
    records = judge(batch(["W", "G"]), archive, fake, Racing(few_share=1))
    assert (records[0].evaluation.rung, records[0].evaluation.reason) == (0, "non-finite scores")
    assert fake.on("few") == ["G"]


def test_direct_judging_skips_the_cheap_rungs(archive: Archive) -> None:
    fake = Fake(values())
    records = judge(batch(TEXTS[:3]), archive, fake, Racing(direct=True))
    assert fake.on("all") == list(TEXTS[:3])
    assert fake.on("reconstruction") == fake.on("few") == []
    assert [record.evaluation.rung for record in records] == [3, 3, 3]


def test_direct_judging_stops_no_candidate(archive: Archive) -> None:
    racing, workers = Racing(direct=True), ByWindow()
    archive.commit(judge(batch(TEXTS[:1]), archive, workers, racing), 1.0)
    judge(batch(TEXTS[1:2], 1), archive, workers, racing)
    assert [task.best for task in workers.tasks] == [()] * 2


def test_known_outcomes_are_not_asked_for_again(tmp_path: Path) -> None:
    judge(batch(TEXTS), Archive(tmp_path, {}), Fake(values()), Racing())
    fake = Fake(values())
    judge(batch(TEXTS), Archive(tmp_path, {}), fake, Racing())
    assert fake.asked == []


class ByWindow:
    """Judges on six windows, two of them on the rung `few`; keeps its tasks."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for task in tasks:
            self.tasks.append(task)
            if task.rung == "reconstruction":
                yield Outcome(task.number, "reconstruction", value=1.0 + task.number / 1e6)
            else:
                level = 4.0 + task.number
                losses = (level,) * (2 if task.rung == "few" else 6)
                yield Outcome(task.number, task.rung, value=level, losses=losses)

    def close(self) -> None:
        """Nothing to let go."""


def test_a_task_on_all_windows_has_the_losses_that_ran_and_the_losses_to_beat(
    archive: Archive,
) -> None:
    """The losses to beat are of earlier batches, so that the number of workers changes nothing."""
    racing, workers = Racing(near=10, few_share=1, margin=10), ByWindow()
    archive.commit(judge(batch(TEXTS[:2]), archive, workers, racing), 1.0)
    first = [task for task in workers.tasks if task.rung == "all"]
    assert [task.known for task in first] == [(4.0, 4.0), (5.0, 5.0)]
    assert [task.best for task in first] == [(), ()]
    judge(batch(TEXTS[2:4], 2), archive, workers, racing)
    later = [task for task in workers.tasks if task.rung == "all"][2:]
    assert [task.best for task in later] == [(4.0,) * 6] * 2
    assert all(task.known == task.best == () for task in workers.tasks if task.rung != "all")


def test_a_stopped_candidate_keeps_its_last_rung_and_its_value_there(archive: Archive) -> None:
    class Stopping(ByWindow):
        def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
            for outcome in super().map(tasks):
                stopped = outcome.rung == "all" and outcome.number == 1
                yield replace(outcome, value=None) if stopped else outcome

    racing = Racing(near=10, few_share=1, margin=10)
    records = judge(batch(TEXTS[:2]), archive, Stopping(), racing)
    assert [record.evaluation.rung for record in records] == [3, 2]
    assert records[1].evaluation.value == 5.0
    assert "all" not in records[1].evaluation.results


@pytest.mark.parametrize(
    ("near", "run"),
    [
        (100, (*TEXTS[5:7], *TEXTS[:3])),
        (5.5, (*TEXTS[5:6], *TEXTS[:4])),
        (3.5, TEXTS[:4]),
    ],
)
def test_tuned_exponents_within_reach_run_on_windows_before_others(
    archive: Archive, near: float, run: tuple[str, ...]
) -> None:
    """Tuned candidates have half of the places at most, and no kind is left out for them."""
    fake = Fake(values())
    candidates = batch(TEXTS)
    tuned = [replace(candidate, operation="tune") for candidate in candidates[5:]]
    judge([*candidates[:5], *tuned], archive, fake, Racing(near=near, few_share=0.5, margin=0))
    assert fake.on("few") == [str(parse(text)) for text in run]
