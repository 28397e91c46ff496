"""The default algorithm: niches, migration, parsimony, and its results on hidden targets."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import pytest

from pruner_zero.evolution import niches, variation
from pruner_zero.evolution.algorithm import RandomSearch
from pruner_zero.evolution.ask_tell import BatchAlgorithm, Result, best_first
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.niches import Evolution, EvolutionSettings, survivors, tournament
from pruner_zero.evolution.space import SearchSpace, simplest
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.grammar import parse
from tests.evolution.synthetic import EXACT, Fitness, best, by_loss, by_rank, run


def result(number: int, text: str, value: float, rung: int = 1) -> tuple[Candidate, Evaluation]:
    return Candidate(number, parse(text), "row"), Evaluation(rung, value)


def numbers(members: Sequence[Result]) -> list[int]:
    return [candidate.number for candidate, _ in members]


def test_the_worst_candidates_leave() -> None:
    members = [result(0, "W", 0.5), result(1, "W * X", 0.1), result(2, "W * G", 0.3)]
    assert numbers(survivors([*members, result(3, "G * X", 0.9)], 3)) == [1, 2, 0]


def test_a_crowded_template_gives_way() -> None:
    kin = ["W^0.5 * X", "W^1.5 * X", "W^2.0 * X", "W^3.0 * X"]
    members = [result(number, f"{text}^0.5", 0.1 * number) for number, text in enumerate(kin)]
    members += [result(4, "W + G", 0.9), result(5, "W - G", 0.8)]
    assert numbers(survivors(members, 4)) == [0, 1, 5, 4]
    assert numbers(survivors(members, 5)) == [0, 1, 2, 5, 4]


def test_rejected_and_repeated_candidates_do_not_join() -> None:
    algorithm = Evolution(SearchSpace(), 0, EvolutionSettings(initial=4))
    batch = algorithm.ask()
    rejected = Evaluation(0, float("inf"), reason="constant")
    evaluations = [Evaluation(1, 0.5), rejected, Evaluation(1, 0.5, same_as=0), Evaluation(1, 0.7)]
    algorithm.tell([*zip(batch, evaluations, strict=True)])
    assert numbers(algorithm.population) == [0, 3]


def test_a_tournament_prefers_the_smaller_of_nearly_equal_candidates() -> None:
    members = [result(0, "W * G * X", 0.100), result(1, "W", 0.101), result(2, "G", 1.0)]
    generator = np.random.default_rng(0)
    winners = [tournament(generator, members, 50, share)[0].number for share in (0.0, 0.9, 5.0)]
    assert winners == [0, 0, 1] or winners == [0, 1, 1]
    assert tournament(generator, members, 50, 0.0)[0].number == 0


def test_a_higher_rung_wins_a_tournament_whatever_the_value() -> None:
    members = best_first([result(0, "W", 0.1), result(1, "W * G * X", 3.5, rung=3)])
    assert tournament(np.random.default_rng(0), members, 50, 1.0)[0].number == 1


def test_the_first_batch_is_half_products_half_random_and_small_first() -> None:
    """The smallest products, each in every scope; in a row O changes nothing."""
    first = Evolution(SearchSpace(), seed=0).ask()
    sizes = [candidate.expression.size for candidate in first]
    assert sizes == sorted(sizes)
    products: dict[str, set[str]] = {}
    for candidate in first:
        if candidate.operation in ("product", "step"):
            products.setdefault(candidate.scope, set()).add(str(candidate.expression))
    pairs = {"G * W", "W * X", "O * W"}
    assert products["row"] == {"W", "G * W", "W * X", "G * W * X"}
    assert all(pairs <= products[scope] for scope in ("block", "matrix", "global"))
    assert products["block"] == {*pairs, "G * W * X", "G * O * W", "O * W * X"}
    shares = {f"P * sqr(row_odds({pair}))" for pair in ("W", "G * W", "W * X", "G * W * X")}
    assert products["global"] >= pairs | shares
    random = Counter(candidate.scope for candidate in first if candidate.operation == "random")
    assert [*random.values()] == [6, 6, 6, 6]


def test_a_space_without_products_starts_with_random_expressions() -> None:
    space = SearchSpace(operators=("add", "sub", "sqrt", "column_share"))
    assert {candidate.operation for candidate in Evolution(space, seed=0).ask()} == {"random"}


def test_the_best_candidate_of_a_scope_is_tried_in_every_other_scope_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(variation, "_PRODUCTS", 0)
    monkeypatch.setattr(niches, "_SPREAD", 1)
    algorithm = Evolution(SearchSpace(), 0, EvolutionSettings(initial=40))
    first = algorithm.ask()
    best = max(
        (candidate for candidate in first if candidate.scope == "block"),
        key=lambda candidate: candidate.expression.size,
    )
    algorithm.tell(
        [(candidate, Evaluation(1, float(candidate is not best))) for candidate in first]
    )
    moved = [candidate for candidate in algorithm.ask() if candidate.parents == (best.number,)]
    assert {"row", "matrix", "global"} <= {
        candidate.scope for candidate in moved if candidate.expression == best.expression
    }


def test_what_lies_between_the_best_skeletons_of_a_scope_comes_first() -> None:
    algorithm = Evolution(SearchSpace(scopes=("global",)), 0, EvolutionSettings(initial=4))
    texts = ("row_odds(W * X) * P^0.5", "row_odds(W * X) * P^0.25", "W * G")
    found = [Candidate(number, parse(text), "global") for number, text in enumerate(texts)]
    algorithm.learn([(candidate, Evaluation(1, candidate.number)) for candidate in found])
    steps = [proposal for proposal in algorithm.propose() if proposal.operation == "step"]
    assert steps[0].parents == (0, 2)
    between = parse("row_odds(W * X)^0.5 * P^0.25 * W^0.5 * G^0.5")
    assert canonical(steps[0].expression, "global") == canonical(between, "global")


def test_candidates_of_all_rungs_are_compared_by_their_expected_values() -> None:
    algorithm = Evolution(SearchSpace(scopes=("row",)), 0, EvolutionSettings(initial=20))
    first = algorithm.ask()
    evaluated = [
        (candidate, Evaluation(1 + place % 3, 9.0, expected=float(-place)))
        for place, candidate in enumerate(first)
    ]
    algorithm.tell(evaluated)
    assert [candidate.number for candidate, _ in algorithm.population] == [
        candidate.number for candidate in first
    ][::-1]


def test_every_scope_has_the_same_number_of_children() -> None:
    algorithm = Evolution(SearchSpace(), 0, EvolutionSettings(initial=40, batch=40, steps=0))
    algorithm.tell([(candidate, Evaluation(1, candidate.number)) for candidate in algorithm.ask()])
    children = algorithm.ask()[-40:]
    assert Counter(child.scope for child in children) == dict.fromkeys(SearchSpace().scopes, 10)


def test_a_metric_that_is_good_under_one_scope_is_tried_under_the_others() -> None:
    evaluated = run(Evolution(SearchSpace(), 0), by_loss("W * G"), 400)
    migrants = [candidate for candidate, _ in evaluated if candidate.operation == "migrate"]
    assert migrants
    for migrant in migrants:
        origin = evaluated[migrant.parents[0]][0]
        forms = (origin.expression, simplest(origin.expression, migrant.scope, SearchSpace()))
        assert migrant.expression in forms
        assert origin.scope != migrant.scope


def test_without_other_scopes_nothing_migrates() -> None:
    evaluated = run(Evolution(SearchSpace(scopes=("row",)), 0), by_rank("W * G"), 200)
    assert not any(candidate.operation == "migrate" for candidate, _ in evaluated)


def test_no_niche_outgrows_its_share() -> None:
    algorithm = Evolution(SearchSpace(), 0, EvolutionSettings(population=12))
    run(algorithm, by_loss("W * G"), 300)
    for scope in SearchSpace().scopes:
        members = [member for member in algorithm.population if member[0].scope == scope]
        assert 6 <= len(members) <= 12


def test_the_population_is_sorted_and_holds_nothing_that_was_rejected() -> None:
    algorithm = Evolution(SearchSpace(), 3, EvolutionSettings(initial=20, batch=12, population=8))
    run(algorithm, by_rank("W * G^0.5 * X^0.25"), 150)
    keys = [evaluation.key for _, evaluation in algorithm.population]
    assert keys == sorted(keys)
    assert all(evaluation.counts for _, evaluation in algorithm.population)


def medians(space: SearchSpace, fitness: Fitness, evaluations: int, seeds: int) -> list[float]:
    """The median over seeds of the best value, of our evolution and of random search."""
    algorithms: tuple[Callable[[int], BatchAlgorithm], ...] = (
        lambda seed: Evolution(space, seed),
        lambda seed: RandomSearch(space, seed),
    )
    return [
        median(
            best(run(algorithm(seed), fitness, evaluations, EXACT))[1].value
            for seed in range(seeds)
        )
        for algorithm in algorithms
    ]


@pytest.fixture
def from_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches start from trees alone: a hidden product could be a random product by luck."""
    monkeypatch.setattr(variation, "_PRODUCTS", 0)


@pytest.mark.usefixtures("from_trees")
def test_it_finds_the_hidden_ranking_that_random_search_misses() -> None:
    operators = ("mul", "add", "sub", "max", "power", "sqrt", "sqr", "log", "row_share")
    space = SearchSpace(terminals=("W", "G", "X"), scopes=("row",), operators=operators)
    ours, random = medians(space, by_rank("W * G^0.5 * X^0.25"), evaluations=1000, seeds=1)
    assert ours <= EXACT < 0.1 * random


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "target"),
    [
        ("row", "W * G^0.5 * X^0.25"),
        ("matrix", "row_share(W) * X^0.5 + column_share(W) * G"),
        ("row", "(row_share(W) + column_share(W)) * X^0.5"),
    ],
)
@pytest.mark.usefixtures("from_trees")
def test_it_beats_random_search_on_hidden_targets(scope: str, target: str) -> None:
    space = SearchSpace(scopes=(scope,))
    ours, random = medians(space, by_rank(target), evaluations=2000, seeds=5)
    assert ours < 0.6 * random
