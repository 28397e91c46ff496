"""Executors in this process and in other processes keep the same promises."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.execution.executor import Executor, SerialExecutor, Work
from pruner_zero.execution.processes import ProcessExecutor
from pruner_zero.execution.start import make_executor
from tests.execution.worker_suite import (
    Scripted,
    Start,
    WorkerSuite,
    opened,
    script,
    scripted,
)
from tests.suites.executors import Doubling, ExecutorSuite

__all__ = ["opened", "scripted"]


class TestSerial(ExecutorSuite):
    def start(self, work: Work[Any, Any]) -> Executor[Any, Any]:
        return SerialExecutor(work)


class TestProcesses(WorkerSuite):
    @pytest.fixture(params=[1, 3])
    def begin(
        self,
        request: pytest.FixtureRequest,
        opened: Callable[[Executor[Any, Any]], Executor[Any, Any]],
    ) -> Start:
        def make(work: Work[Any, Any], time_limit: float = 600.0) -> Executor[Any, Any]:
            return opened(ProcessExecutor(work, request.param, time_limit))

        return make


@pytest.mark.fault("a candidate asks for more memory than there is")
def test_a_worker_that_the_system_kills_twice_at_a_task_ends_the_run(scripted: Scripted) -> None:
    executor = ProcessExecutor(scripted, 2)
    try:
        assert list(executor.map(script("killed once", "slow"))) == [0, 1]
        with pytest.raises(PrunerZeroError, match="memory runs out: choose fewer --workers"):
            list(executor.map(script("work", "work", "killed")))
    finally:
        executor.close()


@pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
def test_workers_that_cannot_start_end_the_run_with_a_clear_line() -> None:
    executor: Executor[int, Any] = ProcessExecutor(DeadOnArrival(), 2)
    try:
        with pytest.raises(PrunerZeroError, match="fewer --workers") as refusal:
            list(executor.map([1]))
        assert "\n" not in str(refusal.value)
    finally:
        executor.close()


class DeadOnArrival(Doubling):
    """Ends the process that unpickles it, as too little memory does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_closed_executor_takes_no_more_tasks() -> None:
    executor: Executor[int, Any] = ProcessExecutor(Doubling(), 1)
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(executor.map([1]))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux confines a process")
def test_by_default_there_is_a_worker_a_core_that_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        # With one worker it is this process.
        assert isinstance(make_executor(Doubling(), None, None), SerialExecutor)
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("count", "shareable", "kind"),
    [
        (1, True, SerialExecutor),
        (2, True, ProcessExecutor),
        (None, False, SerialExecutor),
        (2, False, ProcessExecutor),
    ],
)
def test_several_workers_are_processes_where_they_can_share_memory(
    count: int | None, shareable: bool, kind: type
) -> None:
    executor = make_executor(Doubling(), count, None, shareable=shareable)
    try:
        assert type(executor) is kind
        assert list(executor.map([1, 2])) == [2, 4]
    finally:
        executor.close()
