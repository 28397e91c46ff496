"""Running tasks in their order: the interface of executors, the serial one, and all by name."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from pruner_zero.devices import torch_threads
from pruner_zero.errors import PrunerZeroError
from pruner_zero.plugins import Registry

T = TypeVar("T")
R = TypeVar("R")
Task = TypeVar("Task", contravariant=True)
Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True)
class TimeLimit:
    """Ends work between two of its steps once `seconds` are over; a step is never cut short."""

    seconds: float = math.inf
    since: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raise PrunerZeroError after the limit."""
        if time.monotonic() - self.since >= self.seconds:
            raise PrunerZeroError(over_time(self.seconds))


def over_time(seconds: float) -> str:
    """The reason with which a task over the limit is rejected."""
    return f"took longer than the time limit of {seconds:g} s"


UNLIMITED = TimeLimit()


class Work(Protocol[Task, Result]):
    """The work done for every task. It is pickled, and each worker has a copy of it."""

    def set_up(self) -> None:
        """Called once in each worker before its first task.

        The tensors that a worker gets are shared with the other workers and must not be written to:
        `set_up` copies the tensors that tasks change. Not called in the process of the search.
        """

    def run(self, task: Task, limit: TimeLimit) -> Result:
        """The result of one task. An error that it raises ends the whole run."""

    def reject(self, task: Task, reason: str) -> Result:
        """The result of a task that took too long or whose worker died twice."""


@dataclass(frozen=True)
class Workers:
    """The number of workers and the resources of each.

    count: how many; None for one a core, or as many as the Ray cluster holds. threads: CPU threads
    of each. time_limit: seconds that a task may take. ray_address, ray_resources: as `RayExecutor`
    takes them.
    """

    count: int | None = None
    threads: int = 1
    time_limit: float = 600.0
    ray_address: str | None = None
    ray_resources: Mapping[str, float] = field(default_factory=dict)


class Executor(Protocol[Task, Result]):
    """Runs tasks and yields their results in the order of submission.

    The same tasks give the same results for any executor and any number of workers. A task whose
    worker dies is run again once. A task that takes longer than the time limit, or whose worker
    dies twice, is rejected with the reason; no other task is.
    """

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """The results of `tasks` in their order, each as soon as it and those before it exist."""

    def close(self) -> None:
        """Stop the workers."""


class SerialExecutor(Executor[T, R]):
    """One task after the other in this process, with a fixed number of threads.

    The time limit is checked by the work itself, between its steps.
    """

    def __init__(self, work: Work[T, R], workers: Workers | None = None) -> None:
        self.work = work
        self.workers = workers or Workers(time_limit=math.inf)

    def map(self, tasks: Iterable[T]) -> Iterator[R]:
        """Run each task when its result is asked for."""
        with torch_threads(self.workers.threads):
            for task in tasks:
                yield self.work.run(task, TimeLimit(self.workers.time_limit))

    def close(self) -> None:
        """There are no workers to stop."""


AnyWork = Work[Any, Any]


def _processes(work: AnyWork, workers: Workers) -> Executor[Any, Any]:
    from pruner_zero.execution.processes import ProcessExecutor

    return ProcessExecutor(work, workers)


def _ray(work: AnyWork, workers: Workers) -> Executor[Any, Any]:
    # Ray is optional, and takes seconds to import.
    from pruner_zero.execution.ray_actors import RayExecutor

    return RayExecutor(work, workers)


EXECUTORS = Registry[Callable[[AnyWork, Workers], Executor[Any, Any]]](
    "executors", object, {"serial": SerialExecutor, "processes": _processes, "ray": _ray}
)


def check_executor(name: str | None, workers: Workers) -> None:
    """Check what `make_executor` needs, before the work is there, which takes minutes.

    Raises PrunerZeroError for several workers of the serial executor, and for a missing Ray.
    """
    if name == "serial" and (workers.count or 1) > 1:
        raise PrunerZeroError(
            "--executor serial is one worker: give --workers 1, or --executor processes"
        )
    if name == "ray":
        from pruner_zero.execution.ray_actors import check_cluster

        check_cluster(workers.ray_address)


def make_executor(
    name: str | None, work: Work[T, R], workers: Workers, *, shareable: bool = True
) -> Executor[T, R]:
    """The executor of that name; by default processes where there is more than one worker.

    shareable: whether the work lies in main memory, where processes share it. Where it does not,
    one worker is the default.
    """
    if workers.count is None and name != "ray":
        cores = usable_cores() if shareable and name != "serial" else 1
        workers = replace(workers, count=max(1, cores // workers.threads))
    return EXECUTORS[name or ("serial" if workers.count == 1 else "processes")](work, workers)


def usable_cores() -> int:
    """How many CPU cores this process may use: a container may be confined to some."""
    # Only Linux tells.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
