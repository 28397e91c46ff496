"""Judging is the same in this process, in others and on a cluster; lack of memory rejects none."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import Evaluator, Outcome, Rung, Task
from pruner_zero.evolution.record import SearchJournal
from pruner_zero.execution.executor import (
    Executor,
    SerialExecutor,
    TimeLimit,
    Workers,
    make_executor,
)
from pruner_zero.execution.processes import ProcessExecutor
from pruner_zero.execution.shared_memory import pack, unpack
from pruner_zero.metric.grammar import parse
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.settings.search_settings import SearchSettings
from tests.evolution.conftest import Build, tiny_settings
from tests.evolution.test_run import journal, run
from tests.text.refusals import refusal
from tests.tiny import fingerprint

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
    executor = ProcessExecutor(build(), Workers(2))
    try:
        assert timeless(executor.map(TASKS)) == wanted
        assert timeless(executor.map(TASKS[::-1])) == wanted[::-1]
    finally:
        executor.close()


@pytest.mark.fault("a worker hangs at a candidate")
@pytest.mark.parametrize("rung", ["reconstruction", "few", "all"])
def test_without_workers_too_a_candidate_over_the_limit_is_rejected(
    rung: Rung, build: Build
) -> None:
    tasks = [Task(number, rung, "W * X", "row") for number in range(2)]
    executor = make_executor("serial", build(), Workers(1, time_limit=1e-9))
    assert [outcome.reason for outcome in executor.map(tasks)] == [
        "took longer than the time limit of 1e-09 s"
    ] * 2
    assert isinstance(make_executor("serial", build(), Workers()), SerialExecutor)
    within = make_executor("serial", build(), Workers(1))
    assert [outcome.reason for outcome in within.map(tasks)] == [None, None]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"executor": "serial", "workers": 4}, "give --workers 1"),
        ({"executor": "ray", "ray_address": "127.0.0.1:1"}, "no Ray cluster can be used at 127"),
    ],
)
def test_an_executor_that_cannot_run_is_refused_before_the_model_is_read(
    options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    assert line in refusal(lambda: run(missing, tmp_path / "run", missing, **options))


class Countdown(TimeLimit):
    """Lets as many steps pass as it has seconds."""

    def check(self) -> None:
        object.__setattr__(self, "seconds", self.seconds - 1)
        if self.seconds < 0:
            raise PrunerZeroError("over")


def test_whenever_the_time_is_over_the_dense_weights_are_back(build: Build) -> None:
    evaluator = build(update="obs", search_windows=3)
    masked, windows = evaluator.masked, evaluator.windows
    before = fingerprint(masked.model)
    # Each matrix is looked at and masked, each window judged.
    needed = 2 * len(masked.matrices) + len(windows)
    for steps in (0, 1, 2, len(masked.matrices), needed - 4, needed - 1):
        with pytest.raises(PrunerZeroError, match="over"):
            masked.losses(parse("W * X"), "row", windows, limit=Countdown(steps))
        assert fingerprint(masked.model) == before
    assert len(masked.losses(parse("W * X"), "row", windows, limit=Countdown(needed))) == 3


def test_the_number_of_worker_processes_does_not_change_the_archive(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    run(llama_folder, tmp_path / "serial", text_file)
    for name, spread in (("one", {"executor": "processes"}), ("several", {"workers": 3})):
        run(llama_folder, tmp_path / name, text_file, **spread)
        assert journal(tmp_path / name) == journal(tmp_path / "serial")


def test_more_tensors_than_a_process_can_be_handed_as_files(build: Build) -> None:
    """A real model has hundreds; each would be an open file, and 256 files can be passed on."""
    evaluator = build()
    first = evaluator.sample[0]
    many = [replace(first, name=f"{number}", norms=first.norms.clone()) for number in range(400)]
    work = replace(evaluator, sample=[*evaluator.sample, *many])
    executor = ProcessExecutor(work, Workers(1))
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

    def run(self, task: Task, limit: TimeLimit) -> Outcome:
        if task.expression != "W * G" or not self.mark.exists():
            return self.evaluator.run(task, limit)

        def fail(*_: Any, **__: Any) -> Any:
            raise self.error

        broken = replace(self.evaluator)
        object.__setattr__(broken, "reconstruction", fail)
        return broken.run(task, limit)

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


def executor_of(name: str, work: Failing) -> Executor[Task, Outcome]:
    return make_executor(name, work, Workers(2 if name == "processes" else 1))


@pytest.mark.fault("a candidate asks for more memory than there is")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["serial", "processes"])
def test_lack_of_memory_ends_the_run_and_rejects_no_candidate(
    name: str, error: BaseException, build: Build, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    executor = executor_of(name, Failing(build(), error, mark))
    try:
        line = refusal(lambda: list(executor.map(CLOSED)))
        assert line.startswith("out of memory at candidate 1 (W * G @row): choose fewer --workers")
        mark.unlink()
        assert [outcome.reason for outcome in executor.map(CLOSED)] == [None, None, None]
    finally:
        executor.close()


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_an_illegal_memory_access_is_no_lack_of_memory(
    name: str, build: Build, tmp_path: Path
) -> None:
    (tmp_path / "mark").touch()
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    executor = executor_of(name, Failing(build(), error, tmp_path / "mark"))
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
    run(llama_folder, tmp_path / "ray", text_file, executor="ray", workers=2)
    assert journal(tmp_path / "ray") == journal(tmp_path / "serial")


def test_the_settings_of_ray_do_not_change_the_identity_of_a_run() -> None:
    plain = tiny_settings()
    texts = tiny_settings(executor="ray", ray_resources=["num_cpus=2", "special=0.5"])
    assert texts.ray_resources == {"num_cpus": 2.0, "special": 0.5}
    assert texts.identity() == plain.identity()
    assert tiny_settings(ray_resources={"num_gpus": 1}, ray_address="auto").identity() == (
        plain.identity()
    )


@pytest.mark.parametrize(
    ("resources", "line"),
    [(["num_gpus"], "such as num_gpus=1"), (["a=b"], "--ray-resources"), ({"a": -1}, "greater")],
)
def test_bad_resources_are_refused_in_one_line(resources: Any, line: str) -> None:
    settings = {**tiny_settings().model_dump(exclude_unset=True), "ray_resources": resources}
    with pytest.raises(PrunerZeroError, match=line):
        read_settings(SearchSettings, settings)
