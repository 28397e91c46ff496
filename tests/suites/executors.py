"""The requirements of executors: every result once, in the order of submission."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

from pruner_zero.execution.executor import Executor, Work

# Tasks that may be taken from the source ahead of the result that is waited for.
MOST_AHEAD = 64


class Doubling:
    """The work of the suite: a task is a number, and its result the double of it."""

    def set_up(self) -> None:
        """Nothing to copy."""

    def run(self, task: int) -> int | str:
        """The double of a number. Raises ValueError for a negative one."""
        if task < 0:
            raise ValueError("a defect")
        return 2 * task

    def reject(self, task: int, reason: str) -> int | str:
        """The reason."""
        return f"{task}: {reason}"


class ExecutorSuite:
    """Tests that any executor must pass. A subclass implements `start`."""

    @abstractmethod
    def start(self, work: Work[Any, Any]) -> Executor[Any, Any]:
        """The executor under test, with two workers where it has any."""

    def test_results_come_in_the_order_of_submission(self) -> None:
        with self._started() as executor:
            assert list(executor.map([3, 0, 7, 1, 2])) == [6, 0, 14, 2, 4]

    def test_batches_follow_each_other_and_may_be_empty(self) -> None:
        batches: list[list[int]] = [[], [0, 1], [], [5, 4]]
        with self._started() as executor:
            assert [list(executor.map(batch)) for batch in batches] == [[], [0, 2], [], [10, 8]]

    def test_an_endless_source_is_not_read_to_its_end(self) -> None:
        taken: list[int] = []

        def endless() -> Iterator[int]:
            for number in count():
                taken.append(number)
                yield number

        with self._started() as executor:
            assert list(islice(executor.map(endless()), 10)) == list(range(0, 20, 2))
        assert len(taken) <= 10 + MOST_AHEAD

    def test_a_batch_that_is_given_up_leaves_nothing_to_the_next(self) -> None:
        with self._started() as executor:
            given_up = executor.map(range(5))
            assert next(given_up) == 0
            del given_up
            assert list(executor.map(range(7, 13))) == list(range(14, 26, 2))

    def test_an_error_of_a_task_is_raised_as_it_is(self) -> None:
        with self._started() as executor:
            raised = ""
            try:
                list(executor.map([1, -1, 2]))
            except ValueError as error:
                raised = str(error)
            assert raised == "a defect"

    def test_closing_twice_is_closing_once(self) -> None:
        with self._started() as executor:
            assert list(executor.map([1])) == [2]
            executor.close()

    @contextmanager
    def _started(self) -> Iterator[Executor[Any, Any]]:
        executor = self.start(Doubling())
        try:
            yield executor
        finally:
            executor.close()
