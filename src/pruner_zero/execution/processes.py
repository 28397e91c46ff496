"""Worker processes on this machine."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from pruner_zero.execution.executor import TIME_LIMIT, AnyWork, Work
from pruner_zero.execution.shared_memory import PackedFile
from pruner_zero.execution.workers import Worker, WorkerExecutor

T = TypeVar("T")
R = TypeVar("R")


class ProcessExecutor(WorkerExecutor[T, R]):
    """Worker processes on this machine that map the tensors of the work from one file."""

    died = (BrokenProcessPool,)

    def __init__(self, work: Work[T, R], count: int, time_limit: float = TIME_LIMIT) -> None:
        self.packed = PackedFile(work)
        super().__init__(work, count, time_limit)

    def worker(self) -> Worker:
        """A new process."""
        return _Process(self.packed)

    def ran_out_of_memory(self, worker: Worker, error: BaseException) -> bool:
        """Whether the process was killed by SIGKILL, which is how Linux frees memory."""
        return isinstance(worker, _Process) and worker.exit_code() == -signal.SIGKILL


class _Process:
    """A pool of one process, so that it is known which task a death belongs to."""

    def __init__(self, packed: PackedFile) -> None:
        # Forked from a server that has already imported torch, processes start fast.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_start_worker, initargs=(packed,)
        )
        self.processes: list[BaseProcess] = []
        self.lock = threading.Lock()

    def start(self) -> Future[Any]:
        started = self.pool.submit(os.getpid)
        self.processes = list(self.pool._processes.values())
        return started

    def run(self, task: Any) -> Future[Any]:
        try:
            return self.pool.submit(_run, task)
        except RuntimeError as error:
            # The process died, or was stopped, while it had nothing to do.
            dead: Future[Any] = Future()
            dead.set_exception(BrokenProcessPool(str(error)))
            return dead

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        self._await_end()

    def exit_code(self) -> int | None:
        """How the process ended; a negative number is a signal. To be asked once it is dead."""
        # The exit code can be read once, by one thread: the pool's own thread reads it.
        self._await_end()
        (process,) = self.processes
        return process.exitcode

    def _await_end(self) -> None:
        # A pool that two threads shut down at once closes its files twice.
        with self.lock:
            self.pool.shutdown(wait=True)


_work: AnyWork | None = None


def _start_worker(packed: PackedFile) -> None:
    global _work
    # The parent handles an interruption: it stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _work = packed.read()
    _work.set_up()


def _end_with_parent() -> None:
    """End this worker when its parent ends: a parent that is killed cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Any) -> Any:
    assert _work is not None
    return _work.run(task)
