"""What every executor promises, to be run against each of them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from pruner_zero.devices import CPU
from pruner_zero.evolution.evaluator import Outcome, Task
from pruner_zero.evolution.executor import Executor, SerialExecutor
from tests.evolution.conftest import Build

TASKS = [
    Task(0, "probe", "W * X", "row"),
    Task(1, "reconstruction", "W * X", "row"),
    Task(2, "few", "W * G", "global"),
    Task(3, "all", "W", "matrix"),
    Task(4, "probe", "exp(W / (W - W))", "row"),
    Task(5, "few", "W * X", "block"),
]


@dataclass
class Scripted:
    """Stands in for an evaluator: does what the task's expression says, through files."""

    folder: Path
    masked: Any = field(default_factory=lambda: SimpleNamespace(matrices=(), device=CPU))

    def run(self, task: Task) -> Outcome:
        """What each word does:

        `die` kills its worker; `die once` and `wait once` (for a killer from outside) only the
        first time; `slow` takes half a second, `hang` for ever; `broken` is a defect.
        """
        first = self.folder / f"first-{task.number}"
        again = first.exists()
        first.write_text(str(os.getpid()))
        if task.expression == "die" or (task.expression == "die once" and not again):
            os.kill(os.getpid(), signal.SIGKILL)
        if task.expression == "hang" or (task.expression == "wait once" and not again):
            time.sleep(600)
        if task.expression == "slow":
            time.sleep(0.5)
        if task.expression == "broken":
            raise ValueError("a defect")
        return Outcome(task.number, task.rung, value=float(task.number))

    def worker(self, number: int) -> int:
        """The process id of the worker that was the last to take up a task, once it has."""
        mark = self.folder / f"first-{number}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if mark.exists() and mark.read_text():
                return int(mark.read_text())
            time.sleep(0.01)
        raise AssertionError(f"no worker took up task {number}")


def script(*lines: str) -> list[Task]:
    return [Task(number, "few", line, "row") for number, line in enumerate(lines)]


def timeless(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Outcomes without the seconds they took."""
    return [{**vars(one), "seconds": 0} for one in outcomes]


def values(outcomes: list[Outcome]) -> list[float | None]:
    return [one.value for one in outcomes]


class Start(Protocol):
    """Starts the executor under test."""

    def __call__(self, evaluator: Any, time_limit: float = 600.0) -> Executor: ...


@pytest.fixture
def opened() -> Iterator[Callable[[Executor], Executor]]:
    """Closes what a test opened."""
    executors: list[Executor] = []

    def keep(executor: Executor) -> Executor:
        executors.append(executor)
        return executor

    yield keep
    for executor in executors:
        executor.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


class ExecutorSuite:
    """Holds for any executor. A subclass gives the fixture `start`."""

    def test_outcomes_come_in_the_order_of_submission_as_the_serial_ones(
        self, start: Start, build: Build
    ) -> None:
        wanted = timeless(list(SerialExecutor(build()).map(TASKS)))
        assert [one["number"] for one in wanted] == [task.number for task in TASKS]
        assert "finite" in wanted[4]["reason"]
        executor = start(build())
        assert timeless(list(executor.map(TASKS))) == wanted
        # A second batch goes to the same workers.
        assert timeless(list(executor.map(TASKS[::-1]))) == wanted[::-1]

    def test_a_batch_may_be_empty(self, start: Start, scripted: Scripted) -> None:
        executor = start(scripted)
        assert list(executor.map([])) == []
        assert values(list(executor.map(script("work")))) == [0.0]

    def test_no_more_than_a_few_tasks_are_taken_ahead(
        self, start: Start, scripted: Scripted
    ) -> None:
        taken: list[int] = []

        def endless() -> Iterator[Task]:
            for number in count():
                taken.append(number)
                yield Task(number, "few", "work", "row")

        outcomes = start(scripted).map(endless())
        assert values(list(islice(outcomes, 10))) == [float(number) for number in range(10)]
        assert len(taken) <= 10 + 32

    def test_a_batch_that_is_given_up_leaves_nothing_to_the_next(
        self, start: Start, scripted: Scripted
    ) -> None:
        executor = start(scripted)
        given_up = executor.map(script("work", "slow", "slow", "slow", "slow"))
        assert next(given_up).value == 0.0
        del given_up
        later = [Task(number, "few", "work", "row") for number in range(7, 13)]
        assert [one.number for one in executor.map(later)] == list(range(7, 13))

    def test_a_defect_of_the_program_is_raised_as_it_is(
        self, start: Start, scripted: Scripted
    ) -> None:
        with pytest.raises(ValueError, match="a defect"):
            list(start(scripted).map(script("work", "broken", "work")))

    def test_closing_twice_is_closing_once(self, start: Start, scripted: Scripted) -> None:
        executor = start(scripted)
        assert values(list(executor.map(script("work")))) == [0.0]
        executor.close()
        executor.close()


class WorkerSuite(ExecutorSuite):
    """Holds for any executor whose workers can die."""

    @pytest.mark.fault(
        "a worker dies: once, twice on one candidate, while idle, with its machine",
        "the candidate is judged again once, then rejected with the reason; no other is",
    )
    def test_the_task_of_a_worker_that_is_killed_is_run_again(
        self, start: Start, scripted: Scripted
    ) -> None:
        executor = start(scripted)
        killer = threading.Thread(target=lambda: os.kill(scripted.worker(1), signal.SIGKILL))
        killer.start()
        outcomes = list(executor.map(script("work", "wait once", "work", "slow", "work")))
        killer.join()
        assert values(outcomes) == [0.0, 1.0, 2.0, 3.0, 4.0]

    @pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
    def test_a_task_that_kills_its_worker_twice_is_rejected_and_no_other_is(
        self, start: Start, scripted: Scripted
    ) -> None:
        executor = start(scripted)
        # A slow task that is waited for while another beside it kills is not the guilty one.
        outcomes = list(executor.map(script("work", "slow", "die", "work", "die once", "slow")))
        assert values(outcomes) == [0.0, 1.0, None, 3.0, 4.0, 5.0]
        assert outcomes[2].reason == "its worker died twice"
        assert values(list(executor.map(script("work", "work")))) == [0.0, 1.0]

    @pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
    def test_a_worker_that_dies_with_nothing_to_do_is_replaced(
        self, start: Start, scripted: Scripted
    ) -> None:
        executor = start(scripted)
        assert values(list(executor.map(script("work")))) == [0.0]
        os.kill(scripted.worker(0), signal.SIGKILL)
        outcomes = list(executor.map(script("work", "slow", "work", "slow")))
        assert values(outcomes) == [0.0, 1.0, 2.0, 3.0]

    @pytest.mark.fault(
        "a worker hangs at a candidate",
        "it is stopped at the time limit, the candidate rejected; no other is",
    )
    def test_a_task_over_the_time_limit_is_stopped_and_rejected_and_no_other_is(
        self, start: Start, scripted: Scripted
    ) -> None:
        executor = start(scripted, time_limit=3)
        outcomes = list(executor.map(script("work", "hang", "slow", "work")))
        assert outcomes[1].reason == "took longer than the time limit of 3 s"
        assert values(outcomes) == [0.0, None, 2.0, 3.0]
        assert ended(scripted.worker(1))
        assert values(list(executor.map(script("slow", "work")))) == [0.0, 1.0]

    @pytest.mark.fault("a worker hangs at a candidate")
    def test_closing_stops_what_still_runs(self, start: Start, scripted: Scripted) -> None:
        executor = start(scripted)
        batch = executor.map(script("work", "hang"))
        assert next(batch).value == 0.0
        worker = scripted.worker(1)
        executor.close()
        assert ended(worker)


def ended(process: int) -> bool:
    """Whether a process is gone within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
