"""Judging is the same in this process, in others and on a cluster; lack of memory rejects none."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from pruner_zero.evolution.evaluator import Evaluator, Outcome, Task
from pruner_zero.evolution.record import SearchJournal
from pruner_zero.execution.executor import SerialExecutor
from pruner_zero.execution.processes import ProcessExecutor
from pruner_zero.execution.shared_memory import pack, unpack
from pruner_zero.execution.start import make_executor
from tests.evolution.conftest import Build
from tests.evolution.test_run import journal, run
from tests.text.refusals import refusal

T = TypeVar("T")

TASKS = [
    Task(0, "reconstruction", "W * X", "row"),
    Task(1, "reconstruction", "W * X", "row"),
    Task(2, "few", "W * G", "global"),
    Task(3, "all", "W", "matrix"),
    Task(4, "reconstruction", "exp(W / (W - W))", "row"),
    Task(5, "few", "W * X", "block"),
]


def timeless(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Outcomes without the seconds they took."""
    return [replace(outcome, seconds=0) for outcome in outcomes]


def test_processes_judge_as_this_process_does(build: Build) -> None:
    wanted = timeless(SerialExecutor(build()).map(TASKS))
    assert [outcome.number for outcome in wanted] == [task.number for task in TASKS]
    assert "divides by W - W" in str(wanted[4].reason)
    executor = ProcessExecutor(build(), 2)
    try:
        assert timeless(executor.map(TASKS)) == wanted
        assert timeless(executor.map(TASKS[::-1])) == wanted[::-1]
    finally:
        executor.close()


def test_a_cluster_that_does_not_answer_is_refused_before_the_model_is_read(
    tmp_path: Path,
) -> None:
    missing = tmp_path / "missing"
    line = refusal(lambda: run(missing, tmp_path / "run", missing, ray_address="127.0.0.1:1"))
    assert "no Ray cluster can be used at 127" in line


def test_the_number_of_worker_processes_does_not_change_the_archive(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    run(llama_folder, tmp_path / "serial", text_file)
    run(llama_folder, tmp_path / "several", text_file, workers=3)
    assert journal(tmp_path / "several") == journal(tmp_path / "serial")


def test_more_tensors_than_a_process_can_be_handed_as_files(build: Build) -> None:
    """A real model has hundreds; each would be an open file, and 256 files can be passed on."""
    evaluator = build()
    first = evaluator.sample[0]
    many = [replace(first, name=f"{number}", norms=first.norms.clone()) for number in range(400)]
    work = replace(evaluator, sample=[*evaluator.sample, *many])
    executor = ProcessExecutor(work, 1)
    task = Task(0, "reconstruction", "W * X", "row")
    try:
        (outcome,) = executor.map([task])
    finally:
        executor.close()
    assert outcome.value == work.run(task).value


def test_a_worker_changes_only_weights_of_its_own(build: Build) -> None:
    wanted = timeless(SerialExecutor(build()).map(TASKS))
    stream, arrays = pack(build())
    for array in arrays:
        array.flags.writeable = False
    before = [array.copy() for array in arrays]
    evaluators: list[Evaluator] = [unpack((stream, arrays)) for _ in range(2)]
    for evaluator in evaluators:
        evaluator.set_up()
        assert timeless(SerialExecutor(evaluator).map(TASKS)) == wanted
    assert all((array == was).all() for array, was in zip(arrays, before, strict=True))
    pointers = [
        {matrix.parameter.data_ptr() for matrix in evaluator.masked.matrices}
        for evaluator in evaluators
    ]
    assert not pointers[0] & pointers[1]


@dataclass
class Failing:
    """An evaluator whose model raises an error for one expression while `mark` is there."""

    evaluator: Evaluator
    error: BaseException
    mark: Path

    def set_up(self) -> None:
        self.evaluator.set_up()

    def run(self, task: Task) -> Outcome:
        if task.expression != "W * G" or not self.mark.exists():
            return self.evaluator.run(task)

        def fail(*_: Any, **__: Any) -> Any:
            raise self.error

        broken = replace(self.evaluator)
        object.__setattr__(broken, "reconstruction", fail)
        return broken.run(task)

    def reject(self, task: Task, reason: str) -> Outcome:
        return self.evaluator.reject(task, reason)


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
]
CLOSED = [
    Task(number, "reconstruction", text, "row")
    for number, text in enumerate(("W", "W * G", "X * W"))
]


@pytest.mark.fault("a candidate asks for more memory than there is")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("workers", [1, 2])
def test_lack_of_memory_ends_the_run_and_rejects_no_candidate(
    workers: int, error: BaseException, build: Build, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    executor = make_executor(Failing(build(), error, mark), workers, None)
    try:
        line = refusal(lambda: list(executor.map(CLOSED)))
        assert line.startswith("out of memory at candidate 1 (W * G @row): choose fewer --workers")
        mark.unlink()
        assert [outcome.reason for outcome in executor.map(CLOSED)] == [None, None, None]
    finally:
        executor.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_illegal_memory_access_is_no_lack_of_memory(
    workers: int, build: Build, tmp_path: Path
) -> None:
    (tmp_path / "mark").touch()
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    executor = make_executor(Failing(build(), error, tmp_path / "mark"), workers, None)
    try:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            list(executor.map(CLOSED))
    finally:
        executor.close()


@pytest.mark.fault("a candidate asks for more memory than there is")
def test_a_resumed_search_judges_the_candidate_again(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(llama_folder, tmp_path / "whole", text_file)
    judge, calls = Evaluator.reconstruction, 0

    def starve(self: Evaluator, *arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return judge(self, *arguments)

    monkeypatch.setattr(Evaluator, "reconstruction", starve)
    line = refusal(lambda: run(llama_folder, tmp_path / "run", text_file))
    assert line.startswith("out of memory at candidate")
    reasons = [outcome.reason for outcome in SearchJournal(tmp_path / "run").outcomes]
    assert not any("memory" in reason for reason in reasons if reason)
    run(llama_folder, tmp_path / "run", text_file)
    assert journal(tmp_path / "run") == journal(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_search_on_a_cluster_leaves_the_same_archive(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    run(llama_folder, tmp_path / "serial", text_file)
    run(llama_folder, tmp_path / "ray", text_file, ray_address="auto", workers=2)
    assert journal(tmp_path / "ray") == journal(tmp_path / "serial")
