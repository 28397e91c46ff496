"""The evolution of the paper follows its description, and it works."""

from statistics import median

import pytest

from pruner_zero.evolution import published
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.published import Published, PublishedSettings
from pruner_zero.evolution.space import PUBLISHED_SPACE
from pruner_zero.metric.canonical.form import simplify_opposing
from tests.evolution.synthetic import best, by_rank, run

FITNESS = by_rank("W * G^0.5 * X^0.25")


def test_the_defaults_are_the_papers() -> None:
    algorithm = Published(PUBLISHED_SPACE)
    first: list[Candidate] = []
    while len(first) < 50:
        founders = algorithm.ask()
        assert len(founders) == 10
        algorithm.tell([(candidate, FITNESS(candidate)) for candidate in founders])
        first += founders
    assert all(candidate.operation == "random" and candidate.scope == "row" for candidate in first)
    assert all(
        candidate.expression == simplify_opposing(candidate.expression) for candidate in first
    )
    assert len(algorithm.ask()) == 1


def test_a_run_stopped_among_the_first_trees_has_a_population() -> None:
    algorithm = Published(PUBLISHED_SPACE)
    algorithm.tell([(candidate, FITNESS(candidate)) for candidate in algorithm.ask()])
    assert len(algorithm.members) == 10
    assert {candidate.operation for candidate in algorithm.ask()} == {"random"}


def test_it_searches_the_first_scope_of_its_space() -> None:
    space = PUBLISHED_SPACE.model_copy(update={"scopes": ("global", "row")})
    assert {candidate.scope for candidate in Published(space).ask()} == {"global"}


def test_its_first_trees_have_the_terminals_of_its_space() -> None:
    space = PUBLISHED_SPACE.model_copy(update={"terminals": ("W", "O")})
    first = Published(space).ask()
    assert frozenset("WO") == frozenset[str]().union(*(each.expression.terminals for each in first))


def test_only_the_best_trees_have_children_and_the_worst_trees_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(published, "_DRAWN", 1)
    algorithm = Published(PUBLISHED_SPACE, 1, PublishedSettings(population=20, parents=3))
    for _ in range(2):
        founders = algorithm.ask()
        algorithm.tell(
            [(candidate, Evaluation(1, float(candidate.number))) for candidate in founders]
        )
    for _ in range(5):
        [child] = algorithm.ask()
        assert set(child.parents) <= {0, 1, 2}
        algorithm.tell([(child, Evaluation(1, 9.5))])
    members = [candidate.number for candidate, _ in algorithm.members]
    assert members == [*range(10), *range(20, 25), *range(10, 15)]


def test_a_child_differs_from_its_parents() -> None:
    evaluated = run(Published(PUBLISHED_SPACE, 2), FITNESS, 200)
    operations = {candidate.operation for candidate, _ in evaluated[50:]}
    assert operations == {"crossover", "mutation", "immigrant"}
    for child, _ in evaluated[50:]:
        assert child.expression not in [evaluated[parent][0].expression for parent in child.parents]
        assert child.expression.depth <= PUBLISHED_SPACE.max_depth


def test_it_improves_on_its_start() -> None:
    def gain(seed: int) -> float:
        evaluated = run(Published(PUBLISHED_SPACE, seed), FITNESS, 300)
        return best(evaluated)[1].value / best(evaluated[:50])[1].value

    assert median(gain(seed) for seed in range(3)) < 0.8
