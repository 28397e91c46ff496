"""Judgements taken from a table give the search that makes them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from pruner_zero.evolution.algorithm import make_algorithm
from pruner_zero.evolution.archive import Archive
from pruner_zero.evolution.build import build_evaluator, search_windows
from pruner_zero.evolution.evaluator import Evaluator, Task
from pruner_zero.evolution.run import run_batches
from pruner_zero.execution import make_executor
from pruner_zero.models import LanguageModel
from pruner_zero.text import load_mixture
from tests.evolution.conftest import tiny_settings
from tests.evolution.test_run import journal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

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
    windows, judged, fresh = search_windows(SETTINGS, text, text, model)
    return build_evaluator(model, SETTINGS, windows, judged, fresh=fresh, cache=tmp_path)


def search(executor: Any, folder: Path) -> list[dict[str, Any]]:
    """The journal of a search with seed 0."""
    folder.mkdir()
    chosen = SETTINGS.algorithm_settings
    algorithm = make_algorithm(SETTINGS.algorithm, SETTINGS.search_space, 0, chosen)
    archive = Archive(folder, SETTINGS.identity())
    run_batches(algorithm, archive, executor, SETTINGS, folder, lambda status: None)
    return journal(folder)


def absent() -> Evaluator:
    raise AssertionError("a recorded judgement was made again")


def test_a_replayed_search_is_the_search(
    recorded: ModuleType, evaluator: Evaluator, tmp_path: Path
) -> None:
    file = tmp_path / "table.jsonl"
    costs = recorded.Costs(probe=0.01, closed_form=0.25, masks=1.0, window=1.5)
    windows = {"few": 1, "all": 6, "final": 3}
    first = recorded.Recorded(lambda: evaluator, recorded.Table(file), costs, windows)
    again = recorded.Recorded(absent, recorded.Table(file), costs, windows)
    plain = search(make_executor("serial", evaluator, SETTINGS.spread), tmp_path / "plain")
    # The first executor fills the table that the second one has opened.
    assert search(first, tmp_path / "first") == plain
    again.table.refresh()
    assert search(again, tmp_path / "again") == plain
    assert first.clock.seconds == again.clock.seconds > 0


def test_the_clock_counts_what_a_judgement_costs(
    recorded: ModuleType, evaluator: Evaluator, tmp_path: Path
) -> None:
    costs = recorded.Costs(probe=0.01, closed_form=0.25, masks=1.0, window=1.5)
    table = recorded.Table(tmp_path / "table.jsonl")
    executor = recorded.Recorded(lambda: evaluator, table, costs, {"few": 1, "all": 6, "final": 3})

    def seconds(**task: Any) -> float:
        before = executor.clock.seconds
        list(executor.map([Task(0, expression="W * X", scope="row", **task)]))
        return float(executor.clock.seconds - before)

    assert seconds(rung="probe") == pytest.approx(0.01)
    assert seconds(rung="reconstruction") == pytest.approx(0.25)
    assert seconds(rung="few") == pytest.approx(1.0 + 1.5)
    few = tuple(table.find("W * X", "row", "search")["losses"])
    assert seconds(rung="all", known=few) == pytest.approx(1.0 + 5 * 1.5)
    assert seconds(rung="final") == pytest.approx(1.0 + 3 * 1.5)


def test_a_candidate_behind_the_best_stops_where_the_evaluator_stops_it(
    recorded: ModuleType, evaluator: Evaluator, tmp_path: Path
) -> None:
    task = Task(0, "all", "W * X", "row")
    whole = evaluator.run(task)
    far_ahead = replace(task, best=tuple(loss - 1 for loss in whole.losses))
    table = recorded.Table(tmp_path / "table.jsonl")
    costs = recorded.Costs(probe=0.01, closed_form=0.25, masks=1.0, window=1.5)
    executor = recorded.Recorded(lambda: evaluator, table, costs, {"all": 6})
    stopped, ended, stopped_again = executor.map([far_ahead, task, far_ahead])
    assert stopped.value is None
    assert stopped.losses == stopped_again.losses == evaluator.run(far_ahead).losses
    assert len(stopped.losses) < 6
    assert (ended.value, ended.losses) == (whole.value, whole.losses)


def test_a_failure_is_recorded_with_its_reason(
    recorded: ModuleType, evaluator: Evaluator, tmp_path: Path
) -> None:
    table = recorded.Table(tmp_path / "table.jsonl")
    costs = recorded.Costs(probe=0.01, closed_form=0.25, masks=1.0, window=1.5)
    task = Task(0, "few", "log(W - W)", "row")
    with patch.object(Evaluator, "run", lambda self, task: self.reject(task, "not finite")):
        executor = recorded.Recorded(lambda: evaluator, table, costs, {"few": 1})
        (made,) = executor.map([task])
    executor = recorded.Recorded(absent, recorded.Table(table.file), costs, {"few": 1})
    (replayed,) = executor.map([task])
    assert made == replayed
    assert replayed.reason == "not finite"


def test_costs_are_measured_on_every_rung(recorded: ModuleType, evaluator: Evaluator) -> None:
    seconds = {"probe": 0.01, "reconstruction": 0.25, "few": 2.5, "all": 10.0}

    def run(self: Evaluator, task: Task) -> Any:
        return replace(self.reject(task, ""), seconds=seconds[task.rung])

    with patch.object(Evaluator, "run", run):
        costs = recorded.measure_costs(evaluator)
    assert costs == recorded.Costs(probe=0.01, closed_form=0.25, masks=1.0, window=1.5)
