"""What an executor promises: every outcome once, in the order of submission."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

from pruner_zero.devices import CPU
from pruner_zero.evolution.evaluator import Outcome, Task
from pruner_zero.evolution.executor import Executor

# Tasks that may be taken from the source ahead of the outcome that is waited for.
MOST_AHEAD = 64


class Numbering:
    """Stands in for an evaluator, in this process or another: a task's value is its number."""

    masked: Any = SimpleNamespace(matrices=(), device=CPU)

    def run(self, task: Task) -> Outcome:
        """The number as the value; a task of the expression `refused` is rejected."""
        if task.expression == "refused":
            return Outcome(task.number, task.rung, reason="refused")
        return Outcome(task.number, task.rung, value=float(task.number))


class ExecutorSuite:
    """Holds for any executor. A subclass gives `start`."""

    @abstractmethod
    def start(self, evaluator: Any) -> Executor:
        """The executor under test, with two workers where it has any."""

    def test_outcomes_come_in_the_order_of_submission(self) -> None:
        numbers = [3, 0, 7, 1, 2]
        outcomes = self._run(lambda executor: list(executor.map(map(_task, numbers))))
        assert [one.number for one in outcomes] == numbers
        assert [one.value for one in outcomes] == [float(number) for number in numbers]

    def test_a_rejection_is_an_outcome_like_any_other(self) -> None:
        tasks = [_task(0), _task(1, "refused"), _task(2)]
        outcomes = self._run(lambda executor: list(executor.map(tasks)))
        assert [one.reason for one in outcomes] == [None, "refused", None]

    def test_batches_follow_each_other_and_may_be_empty(self) -> None:
        def batches(executor: Executor) -> list[list[int]]:
            given: list[list[int]] = [[], [0, 1], [], [5, 4]]
            return [[one.number for one in executor.map(map(_task, one))] for one in given]

        assert self._run(batches) == [[], [0, 1], [], [5, 4]]

    def test_an_endless_source_is_not_read_to_its_end(self) -> None:
        taken: list[int] = []

        def endless() -> Iterator[Task]:
            for number in count():
                taken.append(number)
                yield _task(number)

        outcomes = self._run(lambda executor: list(islice(executor.map(endless()), 10)))
        assert [one.number for one in outcomes] == list(range(10))
        assert len(taken) <= 10 + MOST_AHEAD

    def _run(self, use: Callable[[Executor], Any]) -> Any:
        executor = self.start(Numbering())
        try:
            return use(executor)
        finally:
            executor.close()


def _task(number: int, expression: str = "W") -> Task:
    return Task(number, "few", expression, "row")
