"""Where candidates are judged: in this process, in others beside it, or on a cluster."""

import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import Evaluator, Outcome, Task
from pruner_zero.evolution.time_limit import over_time
from pruner_zero.packing import PackedFile
from pruner_zero.plugins import Registry

# Tasks taken up ahead of the one waited for, per worker: enough that a slow one idles no other.
AHEAD = 8
# Workers that die while they start, one after the other, before the search gives up.
FAILED_STARTS = 3


class Executor(Protocol):
    """Runs tasks and yields their outcomes in the order of submission, whatever happens.

    The same tasks give the same outcomes (seconds aside) for any executor and any number of
    workers. A task whose worker dies is run again once; one that hangs, or kills its worker
    twice, is rejected with the reason. No other task is.
    """

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """The outcomes of `tasks` in their order, each once it and those before it are there."""

    def close(self) -> None:
        """Let the workers go."""


class SerialExecutor:
    """One task after the other in this process, with a fixed number of threads."""

    def __init__(self, evaluator: Evaluator, threads: int = 1) -> None:
        self.evaluator = evaluator
        self.threads = threads

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Judge each task when its outcome is asked for."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            for task in tasks:
                yield self.evaluator.run(task)
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """Nothing to let go."""


class Worker(Protocol):
    """Judges one task at a time, away from this process."""

    def start(self) -> Future[Any]:
        """Done once the worker can take tasks."""

    def judge(self, task: Task) -> Future[Outcome]:
        """The outcome to come."""

    def kill(self) -> None:
        """Stop at once, whatever it is at."""


@dataclass(eq=False)
class _Job:
    task: Task
    given: bool = False
    deaths: int = 0
    outcome: Outcome | None = None

    def reject(self, reason: str) -> None:
        self.outcome = Outcome(self.task.number, self.task.rung, reason=reason)


@dataclass(eq=False)
class _Place:
    """A worker and what it is at: a job, or (with a future alone) its own start."""

    worker: Worker
    future: Future[Any] | None
    job: _Job | None = None
    since: float = 0.0

    def overdue(self, time_limit: float) -> bool:
        """Whether its job takes too long. To start may take as long as a cluster needs."""
        return self.job is not None and time.monotonic() - self.since >= time_limit


class WorkerExecutor(ABC):
    """The order of work for workers of any kind.

    A worker has one task at a time, so that its death is laid to that task alone.
    time_limit: seconds a task may take before its worker is stopped and it is rejected.
    """

    # What a worker's futures raise when it has died.
    died: tuple[type[BaseException], ...]

    def __init__(self, workers: int, time_limit: float) -> None:
        self.time_limit = time_limit
        self.failed_starts = 0
        self.places = [self._new_place() for _ in range(workers)]

    @abstractmethod
    def worker(self) -> Worker:
        """A new worker."""

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Judge tasks in parallel, a bounded number ahead of the one that is waited for.

        Raises PrunerZeroError where workers die before they can take a task.
        """
        if not self.places:
            raise RuntimeError("the executor is closed")
        source = iter(tasks)
        ahead: deque[_Job] = deque()
        while True:
            room = AHEAD * len(self.places) - len(ahead)
            ahead.extend(_Job(task) for task in islice(source, room))
            if not ahead:
                return
            self._advance(ahead)
            while (outcome := ahead[0].outcome) is None:
                self._wait()
                self._advance(ahead)
            ahead.popleft()
            yield outcome

    def close(self) -> None:
        """Stop the workers at once."""
        while self.places:
            self.places.pop().worker.kill()

    def _advance(self, ahead: Iterable[_Job]) -> None:
        """Take what is done, replace workers that died or hang, hand out what is to be done."""
        for place in self.places:
            if place.future is not None and place.future.done():
                self._take(place)
            elif place.overdue(self.time_limit):
                assert place.job is not None
                place.job.reject(over_time(self.time_limit))
                self._replace(place)
        free = (place for place in self.places if place.future is None)
        open_jobs = (job for job in ahead if not job.given and job.outcome is None)
        for place, job in zip(free, open_jobs, strict=False):
            job.given = True
            place.job, place.since = job, time.monotonic()
            place.future = place.worker.judge(job.task)

    def _take(self, place: _Place) -> None:
        assert place.future is not None
        future, job = place.future, place.job
        place.future = place.job = None
        error = future.exception()
        if isinstance(error, self.died):
            self._replace(place)
            self._lay_death_to(job, error)
        elif error is not None:
            raise error
        elif job is None:
            self.failed_starts = 0
        else:
            job.outcome = future.result()

    def _lay_death_to(self, job: _Job | None, error: BaseException) -> None:
        if job is None:
            self.failed_starts += 1
            if self.failed_starts == FAILED_STARTS:
                raise PrunerZeroError(
                    "workers die while they start: choose fewer --workers, for each needs the "
                    f"model in its memory ({' '.join(str(error).split()):.200})"
                ) from error
            return
        job.given = False
        job.deaths += 1
        if job.deaths == 2:
            job.reject("its worker died twice")

    def _replace(self, place: _Place) -> None:
        place.worker.kill()
        self.places[self.places.index(place)] = self._new_place()

    def _new_place(self) -> _Place:
        worker = self.worker()
        return _Place(worker, worker.start())

    def _wait(self) -> None:
        """Until a worker is done or overdue."""
        ends = [place.since + self.time_limit for place in self.places if place.job is not None]
        left = max(0.0, min(ends) - time.monotonic()) if ends else None
        futures = [place.future for place in self.places if place.future is not None]
        wait(futures, left, FIRST_COMPLETED)


class ProcessExecutor(WorkerExecutor):
    """Worker processes on this machine that share the evaluator's tensors, mapped from a file.

    Each worker has its own copy of the weights it masks.
    """

    died = (BrokenProcessPool,)

    def __init__(
        self, evaluator: Evaluator, workers: int, threads: int = 1, time_limit: float = 600.0
    ) -> None:
        self.arguments = (PackedFile(evaluator), threads)
        super().__init__(workers, time_limit)

    def worker(self) -> Worker:
        """A new process."""
        return _Process(*self.arguments)


class _Process:
    """A pool of one, so that it is known which task a death is to be laid to."""

    def __init__(self, evaluator: PackedFile, threads: int) -> None:
        # Forked from a server that has imported torch once, workers start in moments.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_start_worker, initargs=(evaluator, threads)
        )

    def start(self) -> Future[Any]:
        return self.pool.submit(_ready)

    def judge(self, task: Task) -> Future[Outcome]:
        try:
            return self.pool.submit(_judge, task)
        except BrokenProcessPool as error:
            # It died while it had nothing to do.
            dead: Future[Outcome] = Future()
            dead.set_exception(error)
            return dead

    def kill(self) -> None:
        for process in list((self.pool._processes or {}).values()):
            process.kill()
        self.pool.shutdown(wait=True, cancel_futures=True)


def own_parameters(evaluator: Evaluator) -> Evaluator:
    """`evaluator` with memory of its own for the parameters that it masks, changed in place."""
    parameters = {id(one.parameter): one.parameter for one in evaluator.masked.matrices}
    for parameter in parameters.values():
        parameter.data = parameter.data.clone()
    return evaluator


_evaluator: Evaluator | None = None


def _start_worker(packed: PackedFile, threads: int) -> None:
    global _evaluator
    # An interruption is for the parent to handle; it stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _evaluator = own_parameters(packed.read())


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its workers, which would hold their models for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ready() -> None:
    """Done once the worker that runs it has started."""


def _judge(task: Task) -> Outcome:
    assert _evaluator is not None
    return _evaluator.run(task)


def _serial(evaluator: Evaluator, workers: int, threads: int, time_limit: float) -> Executor:
    del workers
    # Nobody is beside this process to stop it: the evaluator looks at the clock itself.
    return SerialExecutor(replace(evaluator, time_limit=time_limit), threads)


# Evaluator, workers, threads of each, seconds a task may take. Ray takes more, and stands apart.
EXECUTORS: Registry[Callable[[Evaluator, int, int, float], Executor]] = Registry(
    "executors", object, {"serial": _serial, "processes": ProcessExecutor}
)
