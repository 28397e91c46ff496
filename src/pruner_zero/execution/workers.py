"""Tasks over workers of any kind, and what happens when a worker dies or hangs."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol, TypeVar

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.execution.executor import TIME_LIMIT, Executor, Work

T = TypeVar("T")
R = TypeVar("R")

# Tasks started ahead of the one waited for, per worker, so that a slow task idles no other worker.
_AHEAD = 8
# How often a worker is started that dies before it can take tasks, until the run gives up.
_STARTS = 3


class Worker(Protocol):
    """Runs one task at a time, outside of this process."""

    def start(self) -> Future[Any]:
        """Done once the worker can take tasks."""

    def run(self, task: Any) -> Future[Any]:
        """The result of the task. The worker has none to do when it is called."""

    def kill(self) -> None:
        """Stop at once, whatever the worker is doing."""


class WorkerExecutor(Executor[T, R], ABC):
    """The executor for workers of any kind, and the only place where tasks are run again.

    A worker has one task at a time, so that it is known which task its death belongs to. A thread
    per worker takes a task to any idle worker and waits for it there; workers start in threads of
    their own, since one of a cluster may wait long for its place.
    """

    # The errors that the futures of a worker raise when the worker has died.
    died: tuple[type[BaseException], ...]

    def __init__(self, work: Work[T, R], count: int, time_limit: float = TIME_LIMIT) -> None:
        self.work, self.count, self.time_limit = work, count, time_limit
        self.closed = False
        self._lock = Lock()
        self._workers: set[Worker] = set()
        # An error says that there will be no more workers.
        self._idle: SimpleQueue[Worker | Exception] = SimpleQueue()
        self._starting, self._running = ThreadPoolExecutor(count), ThreadPoolExecutor(count)
        for _ in range(count):
            self._starting.submit(self._start)

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
        if self.closed:
            raise RuntimeError("the executor is closed")
        source = iter(tasks)
        ahead: deque[Future[R]] = deque()
        try:
            while True:
                for task in islice(source, _AHEAD * self.count - len(ahead)):
                    ahead.append(self._running.submit(self._run, task))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Stop the workers at once."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        self._idle.put(RuntimeError("the executor was closed"))
        for worker in list(self._workers):
            worker.kill()
        for threads in (self._starting, self._running):
            threads.shutdown(cancel_futures=True)

    def _run(self, task: T) -> R:
        """The result of one task from any idle worker; from a second one where the first dies."""
        for last in (False, True):
            worker = self._idle.get()
            if isinstance(worker, Exception):
                self._idle.put(worker)
                raise worker
            future = worker.run(task)
            wait([future], self.time_limit)
            if not future.done():
                self._replace(worker)
                limit = f"the time limit of {self.time_limit:g} s"
                return self.work.reject(task, f"took longer than {limit}")
            error = future.exception()
            if not isinstance(error, self.died):
                self._idle.put(worker)
                if error is not None:
                    # Ray wraps the error of a task and adds the traceback to its text.
                    raise getattr(error, "cause", error)
                result: R = future.result()
                return result
            # A lack of memory is not the task's fault.
            if last and not self.closed and self.ran_out_of_memory(worker, error):
                raise PrunerZeroError(
                    "a worker was killed twice at one task, as happens when memory runs out: "
                    "choose fewer --workers, and go on with --resume"
                )
            self._replace(worker)
        return self.work.reject(task, "its worker died twice")

    def _replace(self, worker: Worker) -> None:
        worker.kill()
        with self._lock:
            self._workers.discard(worker)
            if not self.closed:
                self._starting.submit(self._start)

    def _start(self) -> None:
        """Make a worker and hand it out once it can take tasks."""
        try:
            self._idle.put(self._started())
        except Exception as error:
            self._idle.put(error)

    def _started(self) -> Worker:
        failure: BaseException | None = None
        for _ in range(_STARTS):
            with self._lock:
                if self.closed:
                    raise RuntimeError("the executor was closed")
                worker = self.worker()
                self._workers.add(worker)
                started = worker.start()
            failure = started.exception()
            if failure is None:
                return worker
            if not isinstance(failure, self.died):
                raise failure
            worker.kill()
        raise PrunerZeroError(
            "workers die while they start: choose fewer --workers, for each needs the "
            "model in its memory; a Python script must call search under "
            f"`if __name__ == '__main__':` ({one_line(failure or '')})"
        ) from failure
