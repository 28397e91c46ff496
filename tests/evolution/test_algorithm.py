"""Promises of every algorithm: order, numbers, determinism, resumption by replay."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.algorithm import ALGORITHMS, RandomSearch, make_algorithm
from pruner_zero.evolution.ask import BatchAlgorithm
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.run import search
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.metric import Metric
from tests.evolution.synthetic import by_rank, run

FITNESS = by_rank("W * G^0.5 * X^0.25")

SMALL = {
    "default": {"initial": 20, "batch": 12, "population": 8},
    "published": {"population": 12, "parents": 4},
    "random": {"batch": 12},
}
every = pytest.mark.parametrize("name", sorted(ALGORITHMS))


def small(name: str, seed: int = 3, metrics: Sequence[Metric] = ()) -> BatchAlgorithm:
    return make_algorithm(name, None, seed, SMALL[name], metrics)


def judged(batch: Sequence[Candidate]) -> list[tuple[Candidate, Evaluation]]:
    return [(candidate, FITNESS(candidate)) for candidate in batch]


@every
def test_candidates_are_new_numbered_and_of_the_space(name: str) -> None:
    algorithm, space = small(name), ALGORITHMS[name].default_space
    candidates = [candidate for candidate, _ in run(algorithm, FITNESS, 200)]
    assert [candidate.number for candidate in candidates] == list(range(len(candidates)))
    for candidate in candidates:
        assert all(parent < candidate.number for parent in candidate.parents)
        assert candidate.scope in space.scopes
    if name != "published":
        assert all(space.allows(candidate.expression) for candidate in candidates)
        forms = {(canonical(each.expression, each.scope), each.scope) for each in candidates}
        assert len(forms) == len(candidates)
        assert algorithm.avoided["canonical"] > 0


@every
def test_replaying_the_results_restores_the_run_wherever_it_broke(name: str) -> None:
    undisturbed, journal = small(name), []
    for _ in range(5):
        batch = judged(undisturbed.ask())
        undisturbed.tell(batch)
        journal.append(batch)
    for broken in range(5):
        resumed = small(name)
        for batch in journal[:broken]:
            assert resumed.ask() == [candidate for candidate, _ in batch]
            resumed.tell(batch)
        for batch in journal[broken:]:
            assert resumed.ask() == [candidate for candidate, _ in batch]
            resumed.tell(batch)
        assert resumed.avoided == undisturbed.avoided
    assert small(name, seed=4).ask() != [candidate for candidate, _ in journal[0]]


@pytest.mark.slow
def test_the_run_does_not_depend_on_the_hashes_of_the_process() -> None:
    program = (
        "from tests.evolution.test_algorithm import *\n"
        "for name in sorted(ALGORITHMS):\n"
        "    for candidate, _ in run(small(name), FITNESS, 100):\n"
        "        print(candidate.expression, candidate.scope, candidate.parents)\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(printed) == 1


@every
def test_only_the_whole_batch_in_its_order_is_accepted(name: str) -> None:
    algorithm = small(name)
    batch = judged(algorithm.ask())
    for wrong in (batch[1:], batch[::-1], [*batch, batch[0]], []):
        with pytest.raises(ValueError, match="in this order"):
            algorithm.tell(wrong)
    with pytest.raises(ValueError, match="results of the last batch first"):
        algorithm.ask()
    algorithm.tell(batch)
    with pytest.raises(ValueError, match="in this order"):
        algorithm.tell(batch)


@every
def test_a_run_in_which_everything_is_rejected_goes_on(name: str) -> None:
    algorithm = small(name)
    refused = run(algorithm, lambda _: Evaluation(0, float("inf"), reason="no"), 60)
    assert len(refused) >= 60


@every
def test_known_metrics_open_the_first_batch(name: str) -> None:
    metrics = [Metric.of("wanda"), Metric(Metric.of("W * G").expression, scope="row")]
    first = small(name, metrics=metrics).ask()
    planted = [candidate for candidate in first if candidate.operation == "seed"]
    scopes = 1 if name == "published" else 4
    assert first[: len(planted)] == planted
    assert [str(candidate.expression) for candidate in planted] == ["W * X"] * scopes + ["W * G"]
    assert not any(candidate.operation == "seed" for candidate in small(name).ask())
    # A metric of another scope, as the best of a search over all, in a search over rows.
    metric = Metric(Metric.of("wanda").expression, scope="global")
    space = ALGORITHMS[name].default_space.model_copy(update={"scopes": ("row",)})
    [other, *_] = make_algorithm(name, space, 0, SMALL[name], [metric]).ask()
    assert (str(other.expression), other.scope, other.operation) == ("W * X", "row", "seed")


def test_a_known_metric_with_a_terminal_outside_the_space_is_refused() -> None:
    with pytest.raises(PrunerZeroError, match="needs D: leave it out, or add D to `space:"):
        small("default", metrics=[Metric.of("sparsegpt-score")])
    space = SearchSpace(terminals=("W", "X", "O"))
    with pytest.raises(PrunerZeroError, match="needs G"):
        make_algorithm("default", space, 0, {}, [Metric.of("pruner-zero")])


@pytest.mark.parametrize("name", ["default", "random"])
@pytest.mark.parametrize(
    ("limits", "fewest"),
    [
        ({"operators": ("mul", "add"), "max_size": 3}, 2),
        # Its operators take more levels than there are.
        ({"operators": ("mul", "small", "abs"), "max_depth": 1}, 1),
    ],
)
def test_an_exhausted_space_ends_in_an_empty_batch(
    name: str, limits: dict[str, Any], fewest: int
) -> None:
    space = SearchSpace(terminals=("W", "X"), scopes=("row",), **limits)
    algorithm = make_algorithm(name, space, 0)
    evaluated = run(algorithm, FITNESS, 1000)
    assert fewest <= len(evaluated) <= 6
    assert algorithm.ask() == []


class Narrow(RandomSearch):
    """An algorithm of a user."""

    default_space = SearchSpace(terminals=("W", "X"), max_size=5)


def test_search_takes_a_class(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"windows": 2, "seqlen": 16, "search_windows": 2, "final_windows": 0}
    study = search(
        llama_folder,
        calibration=text_file,
        output=tmp_path / "run",
        algorithm=Narrow,
        algorithm_settings={"batch": 4},
        sparsity=0.5,
        evaluations=8,
        workers=1,
        **sizes,
    )
    assert study.settings["algorithm"] == "Narrow"
    assert [count for count, _ in study.batches] == [4, 8]
    for record in study.records:
        assert record.candidate.expression.size <= 5
        assert record.candidate.expression.terminals <= {"W", "X"}


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(PrunerZeroError, match="did you mean 'default'"):
        make_algorithm("defualt", None, 0)
    with pytest.raises(PrunerZeroError, match="no setting 'population_size'"):
        make_algorithm("default", None, 0, {"population_size": 3})
    with pytest.raises(PrunerZeroError, match=r"^`algorithm_settings: \{initial: 0\}`: input"):
        make_algorithm("default", None, 0, {"initial": 0})
