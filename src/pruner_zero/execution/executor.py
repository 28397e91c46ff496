"""Running tasks in their order: the interface of executors, and the one in this process."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from pruner_zero.devices import torch_threads

T = TypeVar("T")
R = TypeVar("R")
Task = TypeVar("Task", contravariant=True)
Result = TypeVar("Result", covariant=True)

# Seconds that a task may take in a worker. A judgement takes seconds to minutes, so that a worker
# that is still at it hangs.
TIME_LIMIT = 600.0


class Work(Protocol[Task, Result]):
    """The work done for every task. It is pickled, and each worker has a copy of it."""

    def set_up(self) -> None:
        """Called once in each worker before its first task.

        The tensors that a worker gets are shared with the other workers and must not be written to:
        `set_up` copies the tensors that tasks change. Not called in the process of the search.
        """

    def run(self, task: Task) -> Result:
        """The result of one task. An error that it raises ends the whole run."""

    def reject(self, task: Task, reason: str) -> Result:
        """The result of a task that took too long or whose worker died twice."""


AnyWork = Work[Any, Any]


class Executor(Protocol[Task, Result]):
    """Runs tasks and yields their results in the order of submission.

    The same tasks give the same results for any executor and any number of workers. A task whose
    worker dies is run again once. A task whose worker dies twice, or takes longer than the time
    limit, is rejected with the reason; no other task is.
    """

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """The results of `tasks` in their order, each as soon as it and those before it exist."""

    def close(self) -> None:
        """Stop the workers."""


class SerialExecutor(Executor[T, R]):
    """One task after the other in this process, with one thread as in a worker."""

    def __init__(self, work: Work[T, R]) -> None:
        self.work = work

    def map(self, tasks: Iterable[T]) -> Iterator[R]:
        """Run each task when its result is asked for."""
        with torch_threads(1):
            for task in tasks:
                yield self.work.run(task)

    def close(self) -> None:
        """There are no workers to stop."""


def usable_cores() -> int:
    """How many CPU cores this process may use: a container may be confined to some."""
    # Only Linux tells.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
