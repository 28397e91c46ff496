"""Every executor keeps the same promises."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pruner_zero.search.evaluator import Evaluator, Outcome, Task
from pruner_zero.search.executor import Executor, ProcessExecutor, SerialExecutor
from tests.search.conftest import Build

TASKS = [
    Task(0, "probe", "W * X", "row"),
    Task(1, "reconstruction", "W * X", "row"),
    Task(2, "few", "W * G", "global"),
    Task(3, "all", "W", "matrix"),
    Task(4, "probe", "exp(W / (W - W))", "row"),
    Task(5, "few", "W * X", "block"),
]


def timeless(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Outcomes without the seconds they took."""
    return [{**vars(one), "seconds": 0} for one in outcomes]


@dataclass
class Scripted:
    """Stands in for an evaluator: does what the task's expression says, through files."""

    folder: Path
    masked: Any = field(default_factory=lambda: SimpleNamespace(matrices=()))

    def run(self, task: Task) -> Outcome:
        """`die` kills its worker, `die once` only the first time, `hang` sleeps."""
        mark = self.folder / f"died-{task.number}"
        if task.expression == "die" or (task.expression == "die once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task.expression == "hang":
            time.sleep(600)
        return Outcome(task.number, task.rung, value=float(task.number))


def scripted(folder: Path) -> Evaluator:
    return cast(Evaluator, Scripted(folder))


def script(*lines: str) -> list[Task]:
    return [Task(number, "few", line, "row") for number, line in enumerate(lines)]


@pytest.fixture
def executors() -> Iterator[Callable[[Executor], Executor]]:
    """Closes what a test opened."""
    opened: list[Executor] = []

    def keep(executor: Executor) -> Executor:
        opened.append(executor)
        return executor

    yield keep
    for executor in opened:
        executor.close()


def test_any_executor_gives_the_same_outcomes_in_the_order_of_submission(
    build: Build, executors: Callable[[Executor], Executor]
) -> None:
    serial = executors(SerialExecutor(build()))
    wanted = timeless(list(serial.map(TASKS)))
    assert [one["number"] for one in wanted] == [task.number for task in TASKS]
    assert wanted[4]["reason"]
    assert "non-finite" in wanted[4]["reason"] or "not finite" in wanted[4]["reason"]
    for workers in (1, 2):
        processes = executors(ProcessExecutor(build(), workers))
        assert timeless(list(processes.map(TASKS))) == wanted
        # A second batch goes to the same workers.
        assert timeless(list(processes.map(TASKS[:2]))) == wanted[:2]


def test_the_task_of_a_worker_that_died_is_run_again(
    tmp_path: Path, executors: Callable[[Executor], Executor]
) -> None:
    processes = executors(ProcessExecutor(scripted(tmp_path), 2))
    outcomes = list(processes.map(script("work", "die once", "work", "work")))
    assert [one.value for one in outcomes] == [0.0, 1.0, 2.0, 3.0]


def test_a_task_that_kills_its_worker_twice_is_rejected_and_the_others_are_not(
    tmp_path: Path, executors: Callable[[Executor], Executor]
) -> None:
    processes = executors(ProcessExecutor(scripted(tmp_path), 2))
    outcomes = list(processes.map(script("work", "die", "work", "work")))
    assert [one.number for one in outcomes] == [0, 1, 2, 3]
    assert outcomes[1].reason == "its worker died twice"
    assert [one.value for one in outcomes if one.number != 1] == [0.0, 2.0, 3.0]


def test_a_task_over_the_time_limit_is_rejected_and_the_others_are_not(
    tmp_path: Path, executors: Callable[[Executor], Executor]
) -> None:
    processes = executors(ProcessExecutor(scripted(tmp_path), 2, time_limit=10))
    outcomes = list(processes.map(script("work", "hang", "work")))
    assert outcomes[1].reason is not None
    assert "time limit of 10 s" in outcomes[1].reason
    assert [one.value for one in outcomes if one.number != 1] == [0.0, 2.0]
