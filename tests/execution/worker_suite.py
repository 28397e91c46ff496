"""The promises of an executor whose workers can die, to be run against each of them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.execution.executor import Executor, Work
from tests.suites.executors import ExecutorSuite

Task = tuple[int, str]
Result = int | str


@dataclass
class Scripted:
    """Work that does what the words of a task say, through files in `folder`."""

    folder: Path

    def set_up(self) -> None:
        """Nothing to copy."""

    def run(self, task: Task) -> Result:
        """The number of the task, after what its words say.

        `crash` ends its worker, `killed` and `killed once` kill it as a system does that is short
        of memory; `wait once` waits for a killer from outside; `once` is only the first time.
        `slow` takes a third of a second, `hang` for ever; `starve` finds no memory.
        """
        number, words = task
        mark = self.folder / f"first-{number}"
        again = mark.exists()
        mark.write_text(str(os.getpid()))
        if words == "crash" or (words == "crash once" and not again):
            os.kill(os.getpid(), signal.SIGABRT)
        if words == "killed" or (words == "killed once" and not again):
            os.kill(os.getpid(), signal.SIGKILL)
        if words == "hang" or (words == "wait once" and not again):
            time.sleep(600)
        if words == "slow":
            time.sleep(0.3)
        if words == "starve":
            raise PrunerZeroError("out of memory: choose fewer --workers")
        return number

    def reject(self, task: Task, reason: str) -> Result:
        """The reason."""
        return reason

    def worker(self, number: int) -> int:
        """The process id of the worker that was the last to take up a task, once it has."""
        mark = self.folder / f"first-{number}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if mark.exists() and mark.read_text():
                return int(mark.read_text())
            time.sleep(0.01)
        raise AssertionError(f"no worker took up task {number}")


def script(*lines: str) -> list[Task]:
    return list(enumerate(lines))


class Start(Protocol):
    """Starts the executor under test."""

    def __call__(self, work: Work[Any, Any], time_limit: float = 600.0) -> Executor[Any, Any]: ...


@pytest.fixture
def opened() -> Iterator[Callable[[Executor[Any, Any]], Executor[Any, Any]]]:
    """Closes the executors that a test opened."""
    executors: list[Executor[Any, Any]] = []

    def keep(executor: Executor[Any, Any]) -> Executor[Any, Any]:
        executors.append(executor)
        return executor

    yield keep
    for executor in executors:
        executor.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


class WorkerSuite(ExecutorSuite):
    """Holds for any executor whose workers can die. A subclass gives the fixture `begin`."""

    @pytest.fixture(autouse=True)
    def _give_start(self, begin: Start) -> None:
        self.start = begin  # type: ignore[method-assign]

    @pytest.mark.fault(
        "a worker dies: once, twice on one candidate, while idle, with its machine",
        "the candidate is judged again once, then rejected with the reason; no other is",
    )
    def test_the_task_of_a_worker_that_is_killed_is_run_again(
        self, begin: Start, scripted: Scripted
    ) -> None:
        executor = begin(scripted)
        killer = threading.Thread(target=lambda: os.kill(scripted.worker(1), signal.SIGKILL))
        killer.start()
        results = list(executor.map(script("work", "wait once", "work", "slow", "work")))
        killer.join()
        assert results == [0, 1, 2, 3, 4]

    @pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
    def test_a_task_that_kills_its_worker_twice_is_rejected_and_no_other_is(
        self, begin: Start, scripted: Scripted
    ) -> None:
        executor = begin(scripted)
        # A slow task that runs beside a task that kills its worker is not the guilty task.
        results = list(executor.map(script("work", "slow", "crash", "work", "crash once", "slow")))
        assert results == [0, 1, "its worker died twice", 3, 4, 5]
        assert list(executor.map(script("work", "work"))) == [0, 1]

    @pytest.mark.fault("a candidate asks for more memory than there is")
    def test_lack_of_memory_ends_the_run_and_rejects_no_task(
        self, begin: Start, scripted: Scripted
    ) -> None:
        with pytest.raises(PrunerZeroError) as refusal:
            list(begin(scripted).map(script("work", "starve", "work")))
        assert str(refusal.value) == "out of memory: choose fewer --workers"

    @pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
    def test_a_worker_that_dies_with_nothing_to_do_is_replaced(
        self, begin: Start, scripted: Scripted
    ) -> None:
        executor = begin(scripted)
        assert list(executor.map(script("work"))) == [0]
        os.kill(scripted.worker(0), signal.SIGKILL)
        results = list(executor.map(script("work", "slow", "work", "slow")))
        assert results == [0, 1, 2, 3]

    @pytest.mark.fault(
        "a worker hangs at a candidate",
        "it is stopped at the time limit, the candidate rejected; no other is",
    )
    def test_a_task_over_the_time_limit_is_stopped_and_rejected_and_no_other_is(
        self, begin: Start, scripted: Scripted
    ) -> None:
        executor = begin(scripted, time_limit=1.5)
        results = list(executor.map(script("work", "hang", "slow", "work")))
        assert results == [0, "took longer than the time limit of 1.5 s", 2, 3]
        assert ended(scripted.worker(1))
        assert list(executor.map(script("slow", "work"))) == [0, 1]

    @pytest.mark.fault("a worker hangs at a candidate")
    def test_closing_stops_what_still_runs(self, begin: Start, scripted: Scripted) -> None:
        executor = begin(scripted)
        batch = executor.map(script("work", "hang"))
        assert next(batch) == 0
        worker = scripted.worker(1)
        executor.close()
        assert ended(worker)


def ended(process: int) -> bool:
    """Whether a process is gone within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
