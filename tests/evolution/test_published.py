"""The evolution of the paper follows its description, and it works."""

from collections import Counter
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.evolution import published
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.published import (
    Published,
    PublishedSettings,
    node_mutation,
    published_crossover,
    random_published_tree,
)
from pruner_zero.evolution.space import PUBLISHED_SPACE
from pruner_zero.metric.canonical.form import simplify_opposing
from pruner_zero.metric.expression import Call, Expression
from tests.evolution.synthetic import best, by_rank, run
from tests.metric.strategies import lightly

seeds = st.integers(0, 2**32)

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


def test_its_trees_are_of_the_first_scope_and_the_terminals_of_its_space() -> None:
    changed = {"scopes": ("global", "row"), "terminals": ("W", "O")}
    first = Published(PUBLISHED_SPACE.model_copy(update=changed)).ask()
    assert {candidate.scope for candidate in first} == {"global"}
    assert {"W", "O"} == set().union(*(each.expression.terminals for each in first))


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


def test_published_trees_are_the_released_generators() -> None:
    generator = np.random.default_rng(0)
    trees = [random_published_tree(generator, PUBLISHED_SPACE.terminals) for _ in range(4000)]
    assert {tree.depth for tree in trees} == {3, 4, 5}
    assert all(tree.size <= 31 for tree in trees)
    used = sum((tree.operator_counts() for tree in trees), Counter[str]())
    assert set(used) == set(PUBLISHED_SPACE.operators)
    assert max(used.values()) < 1.2 * min(used.values())
    only_inputs = sum(tree.terminals == {"X"} for tree in trees) / len(trees)
    assert only_inputs == pytest.approx(0.19, abs=0.02)


@lightly
@given(seeds)
def test_published_children_stay_within_the_limits(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mother, father = (random_published_tree(generator, PUBLISHED_SPACE.terminals) for _ in range(2))
    child = published_crossover(generator, mother, father, PUBLISHED_SPACE)
    if child is not None:
        assert child.size <= 31
        assert child.depth <= 5
        assert child.terminals <= mother.terminals | father.terminals


@lightly
@given(seeds)
def test_node_mutation_changes_one_symbol_and_keeps_the_form_of_the_tree(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tree = random_published_tree(generator, PUBLISHED_SPACE.terminals)
    mutant = node_mutation(generator, tree, PUBLISHED_SPACE)
    pairs = list(zip(tree.walk(), mutant.walk(), strict=True))
    assert all(len(old.operands) == len(new.operands) for old, new in pairs)
    assert sum(label(old) != label(new) for old, new in pairs) <= 1


def label(node: Expression) -> str:
    return node.operator.name if isinstance(node, Call) else str(node)
