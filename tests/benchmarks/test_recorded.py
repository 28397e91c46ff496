"""Judgements taken from a table give the search that makes them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from pruner_zero.evolution.algorithm import make_algorithm
from pruner_zero.evolution.build import JudgedModel, space_of, workers_of
from pruner_zero.evolution.evaluator import Evaluator, Rung, Task
from pruner_zero.evolution.record import Archive
from pruner_zero.evolution.run import run_batches
from pruner_zero.execution.executor import make_executor
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.text.mixture import load_mixture
from tests.evolution.conftest import tiny_settings
from tests.evolution.test_run import journal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

# Opens an executor with what gives its evaluator.
Open = Callable[[Callable[[], Evaluator]], Any]
SETTINGS = tiny_settings(
    evaluations=60,
    search_windows=6,
    final_windows=3,
    algorithm_settings={"initial": 24, "batch": 16},
)


@pytest.fixture
def recorded(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("recorded")


@pytest.fixture
def evaluator(prose: str, tmp_path: Path) -> Evaluator:
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny")
    text = load_mixture([prose])
    return JudgedModel.of(model, SETTINGS, text, text, tmp_path).evaluator(SETTINGS)


def search(executor: Any, folder: Path) -> list[dict[str, Any]]:
    """The journal of a search with seed 0."""
    folder.mkdir()
    chosen = SETTINGS.algorithm_settings
    algorithm = make_algorithm(SETTINGS.algorithm, space_of(SETTINGS), 0, chosen)
    archive = Archive(folder, SETTINGS.identity())
    run_batches(algorithm, archive, executor, SETTINGS, folder, lambda status: None)
    return journal(folder)


def absent() -> Evaluator:
    raise AssertionError("a recorded judgement was made again")


@pytest.fixture
def executor(recorded: ModuleType, tmp_path: Path) -> Open:
    """An executor over the files of one table, as a new process opens them."""

    def opened(evaluator: Callable[[], Evaluator]) -> Any:
        table = recorded.Table(tmp_path / "whole.jsonl", tmp_path / "added.jsonl")
        costs = recorded.Costs(closed_form=0.25, masks=1.0, window=1.5)
        return recorded.Recorded(evaluator, table, costs, {"few": 1, "all": 6, "final": 3})

    return opened


def test_a_replayed_search_is_the_search(
    executor: Open, evaluator: Evaluator, tmp_path: Path
) -> None:
    plain = search(make_executor("serial", evaluator, workers_of(SETTINGS)), tmp_path / "plain")
    first = executor(lambda: evaluator)
    assert search(first, tmp_path / "first") == plain
    from_added = executor(absent)
    assert search(from_added, tmp_path / "from-added") == plain
    from_added.table.pack()
    (tmp_path / "added.jsonl").unlink()
    from_whole = executor(absent)
    assert search(from_whole, tmp_path / "from-whole") == plain
    assert first.clock.seconds == from_added.clock.seconds == from_whole.clock.seconds > 0


def test_judgements_of_another_process_are_read_on_refresh(
    executor: Open, evaluator: Evaluator
) -> None:
    waiting, working = executor(absent), executor(lambda: evaluator)
    task = Task(0, "all", "W * X", "row")
    (made,) = working.map([task])
    waiting.table.refresh()
    assert list(waiting.map([task])) == [made]


def test_the_clock_counts_what_a_judgement_costs(executor: Open, evaluator: Evaluator) -> None:
    counting = executor(lambda: evaluator)

    def seconds(**task: Any) -> float:
        before = counting.clock.seconds
        list(counting.map([Task(0, expression="W * X", scope="row", **task)]))
        return float(counting.clock.seconds - before)

    assert seconds(rung="reconstruction") == pytest.approx(0.25)
    assert seconds(rung="few") == pytest.approx(1.0 + 1.5)
    few = tuple(counting.table.find("W * X", "row", "search"))
    assert seconds(rung="all", known=few) == pytest.approx(1.0 + 5 * 1.5)
    assert seconds(rung="final") == pytest.approx(1.0 + 3 * 1.5)


def test_a_candidate_behind_the_best_stops_where_the_evaluator_stops_it(
    executor: Open, evaluator: Evaluator
) -> None:
    task = Task(0, "all", "W * X", "row")
    whole = evaluator.run(task)
    far_ahead = replace(task, best=tuple(loss - 1 for loss in whole.losses))
    stopped, ended, stopped_again = executor(lambda: evaluator).map([far_ahead, task, far_ahead])
    assert stopped.value is None
    assert stopped.losses == stopped_again.losses == evaluator.run(far_ahead).losses
    assert len(stopped.losses) < 6
    assert (ended.value, ended.losses) == (whole.value, whole.losses)


@pytest.mark.parametrize("rung", ["reconstruction", "few", "all", "final"])
def test_a_failure_is_recorded_with_its_reason(
    executor: Open, evaluator: Evaluator, rung: Rung
) -> None:
    task = Task(0, rung, "W * X", "row")
    with patch.object(Evaluator, "run", lambda self, task: self.reject(task, "not finite")):
        (made,) = executor(lambda: evaluator).map([task])
    (replayed,) = executor(absent).map([task])
    assert made == replayed
    assert replayed.reason == "not finite"


def test_costs_are_measured_on_every_rung(recorded: ModuleType, evaluator: Evaluator) -> None:
    seconds = {"reconstruction": 0.25, "few": 2.5, "all": 10.0}

    def run(self: Evaluator, task: Task) -> Any:
        return replace(self.reject(task, ""), seconds=seconds[task.rung])

    with patch.object(Evaluator, "run", run):
        costs = recorded.measure_costs(evaluator)
    assert costs == recorded.Costs(closed_form=0.25, masks=1.0, window=1.5)
