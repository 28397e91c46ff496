"""In this process or in others beside it, the same promises."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.search.evaluator import Evaluator, Task
from pruner_zero.search.executor import Executor, ProcessExecutor, SerialExecutor
from tests.search.conftest import Build
from tests.search.executor_suite import (
    ExecutorSuite,
    Scripted,
    Start,
    WorkerSuite,
    opened,
    script,
    scripted,
)
from tests.search.test_search import journal, run

__all__ = ["opened", "scripted"]


class TestSerial(ExecutorSuite):
    @pytest.fixture
    def start(self, opened: Callable[[Executor], Executor]) -> Start:
        def make(evaluator: Any, time_limit: float = 600.0) -> Executor:
            return opened(SerialExecutor(evaluator))

        return make


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
