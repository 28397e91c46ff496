"""Where candidates are judged: in this process, in others beside it, or on a cluster."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

import torch

from pruner_zero.search.evaluator import Evaluator, Outcome, Task


class Executor(Protocol):
    """Runs tasks and yields their outcomes in the order of submission, whatever happens.

    The same tasks give the same outcomes (seconds aside) for any executor and any number of
    workers. A task whose worker dies is run again once; one that hangs, or kills its worker
    twice, is rejected with the reason.
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


class ProcessExecutor:
    """Worker processes on this machine that share the evaluator's tensors.

    Each worker has its own copy of the weights it masks. time_limit: seconds a task may
    take before its workers are stopped and it is rejected.
    """

    def __init__(
        self, evaluator: Evaluator, workers: int, threads: int = 1, time_limit: float = 600.0
    ) -> None:
        self.arguments = (evaluator, threads)
        self.workers = workers
        self.time_limit = time_limit
        self.pool = self._start()

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Judge tasks in parallel, a bounded number ahead of the one that is waited for."""
        waiting: deque[tuple[Task, int]] = deque((task, 0) for task in tasks)
        running: deque[tuple[Task, int, Future[Outcome]]] = deque()
        while waiting or running:
            while waiting and len(running) < 2 * self.workers:
                task, deaths = waiting.popleft()
                running.append((task, deaths, self.pool.submit(_judge, task)))
            task, deaths, future = running.popleft()
            try:
                yield future.result(self.time_limit)
                continue
            except FutureTimeoutError:
                reason: str | None = f"took longer than the time limit of {self.time_limit:g} s"
            except BrokenProcessPool:
                reason = "its worker died twice" if deaths else None
            # Every task in flight went down with the pool; none but the one waited for is to blame.
            again = [(other, count) for other, count, _ in running]
            running.clear()
            self.close()
            self.pool = self._start()
            if reason is None:
                waiting.extendleft(reversed([(task, 1), *again]))
                continue
            waiting.extendleft(reversed(again))
            yield Outcome(task.number, task.rung, reason=reason)

    def close(self) -> None:
        """Stop the workers at once."""
        for process in list((self.pool._processes or {}).values()):
            process.kill()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        # Forked from a server that has imported torch once, workers start in moments.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        pool = ProcessPoolExecutor(
            self.workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=self.arguments,
        )
        # Starting takes seconds, which must not count against the first task's time limit.
        for ready in [pool.submit(_ready) for _ in range(self.workers)]:
            ready.result()
        return pool


_evaluator: Evaluator | None = None


def _start_worker(evaluator: Evaluator, threads: int) -> None:
    global _evaluator
    # An interruption is for the parent to handle; it stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    for parameter in {
        id(one.parameter): one.parameter for one in evaluator.masked.matrices
    }.values():
        parameter.data = parameter.data.clone()
    _evaluator = evaluator


def _ready() -> None:
    """Done once the worker that runs it has started."""


def _judge(task: Task) -> Outcome:
    assert _evaluator is not None
    return _evaluator.run(task)
