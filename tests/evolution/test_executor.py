"""In this process or in others beside it, the same promises."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import Evaluator, Rung, Task
from pruner_zero.evolution.executor import EXECUTORS, Executor, ProcessExecutor, SerialExecutor
from pruner_zero.evolution.time_limit import TimeLimit
from pruner_zero.metric import parse
from pruner_zero.models import fingerprint
from tests.evolution.conftest import Build
from tests.evolution.executor_suite import (
    ExecutorSuite,
    Scripted,
    Start,
    WorkerSuite,
    opened,
    script,
    scripted,
)
from tests.evolution.test_run import journal, run

__all__ = ["opened", "scripted"]

T = TypeVar("T")


class TestSerial(ExecutorSuite):
    @pytest.fixture
    def start(self, opened: Callable[[Executor], Executor]) -> Start:
        def make(evaluator: Any, time_limit: float = 600.0) -> Executor:
            return opened(SerialExecutor(evaluator))

        return make


@pytest.mark.fault("a worker hangs at a candidate")
@pytest.mark.parametrize("rung", ["probe", "reconstruction", "few", "all"])
def test_without_workers_too_a_candidate_over_the_limit_is_rejected(
    rung: Rung, build: Build
) -> None:
    tasks = [Task(number, rung, "W * X", "row") for number in range(2)]
    executor = EXECUTORS["serial"](build(), 1, 1, 1e-9)
    assert [one.reason for one in executor.map(tasks)] == [
        "took longer than the time limit of 1e-09 s"
    ] * 2
    within = EXECUTORS["serial"](build(), 1, 1, 600.0)
    assert [one.reason for one in within.map(tasks)] == [None, None]


class Countdown(TimeLimit):
    """Lets so many steps pass."""

    def steps(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            object.__setattr__(self, "seconds", self.seconds - 1)
            if self.seconds < 0:
                raise PrunerZeroError("over")
            yield item


def test_whenever_the_time_is_over_the_dense_weights_are_back(build: Build) -> None:
    evaluator = build(update="obs", search_windows=3)
    masked, windows = evaluator.masked, evaluator.windows
    before = fingerprint(masked.model)
    # Each matrix is looked at and masked, each window judged.
    needed = 2 * len(masked.matrices) + len(windows)
    for steps in (0, 1, 2, len(masked.matrices), needed - 4, needed - 1):
        with pytest.raises(PrunerZeroError, match="over"):
            masked.losses(parse("W * X"), "row", windows, None, Countdown(steps))
        assert fingerprint(masked.model) == before
    assert len(masked.losses(parse("W * X"), "row", windows, None, Countdown(needed))) == 3


class TestProcesses(WorkerSuite):
    @pytest.fixture(params=[1, 2, 4])
    def start(
        self, request: pytest.FixtureRequest, opened: Callable[[Executor], Executor]
    ) -> Start:
        def make(evaluator: Any, time_limit: float = 600.0) -> Executor:
            return opened(ProcessExecutor(evaluator, request.param, time_limit=time_limit))

        return make


@pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
def test_workers_that_cannot_start_end_the_search_with_a_clear_line() -> None:
    executor = ProcessExecutor(cast(Evaluator, DeadOnArrival()), 2)
    try:
        with pytest.raises(PrunerZeroError, match="fewer --workers") as refusal:
            list(executor.map(script("work")))
        assert "\n" not in str(refusal.value)
    finally:
        executor.close()


class DeadOnArrival:
    """Kills the process that unpickles it, as too little memory does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_closed_executor_takes_no_more_tasks(scripted: Scripted) -> None:
    executor = ProcessExecutor(cast(Evaluator, scripted), 1)
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(executor.map(script("work")))


def test_the_number_of_worker_processes_does_not_change_the_archive(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    run(llama_folder, tmp_path / "serial", text_file)
    for workers in (1, 4):
        output = tmp_path / f"{workers}"
        run(llama_folder, output, text_file, executor="processes", workers=workers)
        assert journal(output) == journal(tmp_path / "serial")


def test_more_tensors_than_a_process_can_be_handed_as_files(build: Build) -> None:
    """A real model has hundreds; each would be an open file, of which 256 can be passed on."""
    evaluator = build()
    many = [replace(evaluator.sample[0], norms=torch.rand(1)) for _ in range(400)]
    executor = ProcessExecutor(replace(evaluator, sample=[*evaluator.sample, *many]), 1)
    task = Task(0, "probe", "W * X", "row")
    try:
        (outcome,) = executor.map([task])
    finally:
        executor.close()
    assert outcome.fingerprint == evaluator.run(task).fingerprint
