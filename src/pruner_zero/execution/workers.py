"""The order of work over workers of any kind, and what happens when a worker dies or hangs."""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.execution.executor import Executor, Work, over_time

T = TypeVar("T")
R = TypeVar("R")

# Tasks started ahead of the one waited for, per worker, so that a slow task idles no other worker.
_AHEAD = 8
# Workers that die in a row while they start, before the run gives up.
_FAILED_STARTS = 3


class Worker(Protocol):
    """Runs one task at a time, outside of this process."""

    def start(self) -> Future[Any]:
        """Done once the worker can take tasks."""

    def run(self, task: Any) -> Future[Any]:
        """The result of the task. The worker has none to do when it is called."""

    def kill(self) -> None:
        """Stop at once, whatever the worker is doing."""


@dataclass(eq=False)
class _Job(Generic[T, R]):
    """A task and its progress."""

    task: T
    started: bool = False
    deaths: int = 0
    result: Future[R] = field(default_factory=Future)


@dataclass(eq=False)
class _Place(Generic[T, R]):
    """A worker and what it is doing: a job, or its own start where there is only a future."""

    worker: Worker
    future: Future[Any] | None
    job: _Job[T, R] | None = None
    since: float = 0.0

    def overdue(self, time_limit: float) -> bool:
        """Whether its job takes too long. A start may take as long as a cluster needs for it."""
        return self.job is not None and time.monotonic() - self.since >= time_limit


class WorkerExecutor(Executor[T, R], ABC):
    """The executor for workers of any kind, and the only place where tasks are run again.

    A worker has one task at a time, so that it is known which task its death belongs to.
    """

    # The errors that the futures of a worker raise when the worker has died.
    died: tuple[type[BaseException], ...]

    def __init__(self, work: Work[T, R], count: int, time_limit: float) -> None:
        self.work = work
        self.time_limit = time_limit
        self.failed_starts = 0
        self.places = [self._new_place() for _ in range(count)]

    @abstractmethod
    def worker(self) -> Worker:
        """A new worker."""

    def ran_out_of_memory(self, worker: Worker, error: BaseException) -> bool:
        """Whether the system killed a dead worker because memory ran out, as far as it tells."""
        del worker, error
        return False

    def map(self, tasks: Iterable[T]) -> Iterator[R]:
        """Run tasks in parallel, a bounded number ahead of the one that is waited for.

        Raises PrunerZeroError where workers die before they can take a task, or from a lack of
        memory, and whatever a task raises.
        """
        if not self.places:
            raise RuntimeError("the executor is closed")
        source = iter(tasks)
        ahead: deque[_Job[T, R]] = deque()
        while True:
            ahead.extend(map(_Job, islice(source, _AHEAD * len(self.places) - len(ahead))))
            if not ahead:
                return
            self._advance(ahead)
            while not ahead[0].result.done():
                self._wait()
                self._advance(ahead)
            yield ahead.popleft().result.result()

    def close(self) -> None:
        """Stop the workers at once."""
        while self.places:
            self.places.pop().worker.kill()

    def _advance(self, ahead: Iterable[_Job[T, R]]) -> None:
        """Take results, replace workers that died or hang, start jobs on free workers."""
        for place in self.places:
            if place.future is not None and place.future.done():
                self._take(place)
            elif place.overdue(self.time_limit):
                assert place.job is not None
                self._reject(place.job, over_time(self.time_limit))
                self._replace(place)
        free = (place for place in self.places if place.future is None)
        waiting = (job for job in ahead if not job.started and not job.result.done())
        for place, job in zip(free, waiting, strict=False):
            job.started = True
            place.job, place.since = job, time.monotonic()
            place.future = place.worker.run(job.task)

    def _take(self, place: _Place[T, R]) -> None:
        assert place.future is not None
        future, job = place.future, place.job
        place.future = place.job = None
        error = future.exception()
        if isinstance(error, self.died):
            out_of_memory = self.ran_out_of_memory(place.worker, error)
            self._replace(place)
            self._count_death(job, error, out_of_memory)
        elif error is not None:
            # Ray wraps the error of a task and adds the traceback to its text.
            raise getattr(error, "cause", error)
        elif job is None:
            self.failed_starts = 0
        else:
            job.result.set_result(future.result())

    def _count_death(
        self, job: _Job[T, R] | None, error: BaseException, out_of_memory: bool
    ) -> None:
        """Run the job again once; a lack of memory is not the task's fault and ends the run."""
        if job is None:
            self.failed_starts += 1
            if self.failed_starts == _FAILED_STARTS:
                raise PrunerZeroError(
                    "workers die while they start: choose fewer --workers, for each needs the "
                    "model in its memory; a Python script must call search under "
                    f"`if __name__ == '__main__':` ({one_line(error)})"
                ) from error
            return
        job.started = False
        job.deaths += 1
        if job.deaths == 2 and out_of_memory:
            raise PrunerZeroError(
                "a worker was killed twice at one task, as happens when memory runs out: choose "
                "fewer --workers, and go on with --resume"
            )
        if job.deaths == 2:
            self._reject(job, "its worker died twice")

    def _reject(self, job: _Job[T, R], reason: str) -> None:
        job.result.set_result(self.work.reject(job.task, reason))

    def _replace(self, place: _Place[T, R]) -> None:
        place.worker.kill()
        self.places[self.places.index(place)] = self._new_place()

    def _new_place(self) -> _Place[T, R]:
        worker = self.worker()
        return _Place(worker, worker.start())

    def _wait(self) -> None:
        """Wait until a worker is done or overdue."""
        ends = [place.since + self.time_limit for place in self.places if place.job is not None]
        seconds = max(0.0, min(ends) - time.monotonic()) if ends else None
        futures = [place.future for place in self.places if place.future is not None]
        wait(futures, seconds, FIRST_COMPLETED)
