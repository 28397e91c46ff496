"""The default algorithm: niches, migration, parsimony, and its results on hidden targets."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import pytest

from pruner_zero.evolution import niches
from pruner_zero.evolution.algorithm import RandomSearch
from pruner_zero.evolution.ask import BatchAlgorithm, Result
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.niches import Evolution, EvolutionSettings
from pruner_zero.evolution.space import SearchSpace, simplest
from pruner_zero.metric.grammar import parse
from tests.evolution.synthetic import EXACT, Fitness, best, by_loss, by_rank, run


def result(number: int, text: str, value: float, rung: int = 1) -> tuple[Candidate, Evaluation]:
    return Candidate(number, parse(text), "row"), Evaluation(rung, value)


def numbers(members: Sequence[Result]) -> list[int]:
    return [candidate.number for candidate, _ in members]


def test_rejected_and_repeated_candidates_do_not_join() -> None:
    algorithm = Evolution(SearchSpace(), 0, EvolutionSettings(initial=4))
    batch = algorithm.ask()
    rejected = Evaluation(0, float("inf"), reason="constant")
    evaluations = [Evaluation(1, 0.5), rejected, Evaluation(1, 0.5, same_as=0), Evaluation(1, 0.7)]
    algorithm.tell([*zip(batch, evaluations, strict=True)])
    assert numbers(algorithm.population) == [0, 3]


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


def test_the_best_candidate_of_a_scope_is_tried_in_every_other_scope_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_a_metric_that_is_good_under_one_scope_is_tried_under_the_others() -> None:
    evaluated = run(Evolution(SearchSpace(), 0), by_loss("W * G"), 400)
    migrants = [candidate for candidate, _ in evaluated if candidate.operation == "migrate"]
    assert migrants
    for migrant in migrants:
        origin = evaluated[migrant.parents[0]][0]
        forms = (origin.expression, simplest(origin.expression, migrant.scope, SearchSpace()))
        assert migrant.expression in forms
        assert origin.scope != migrant.scope


def test_the_niches_share_the_children_and_keep_the_best_of_each() -> None:
    settings = EvolutionSettings(initial=40, batch=40, steps=0, population=8)
    algorithm = Evolution(SearchSpace(), 0, settings)
    first = algorithm.ask()
    algorithm.tell([(candidate, Evaluation(1, -candidate.number)) for candidate in first])
    population = algorithm.population
    assert numbers(population) == sorted(numbers(population), reverse=True)
    assert Counter(candidate.scope for candidate, _ in population) == dict.fromkeys(
        SearchSpace().scopes, 8
    )
    children = algorithm.ask()[-40:]
    assert Counter(child.scope for child in children) == dict.fromkeys(SearchSpace().scopes, 10)


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


FEW = ("mul", "add", "sub", "max", "power", "sqrt", "sqr", "log", "row_share")
NARROW = SearchSpace(terminals=("W", "G", "X"), scopes=("row",), operators=FEW)


@pytest.mark.parametrize(
    ("space", "target", "evaluations"),
    [
        (NARROW, "W * G^0.5 * X^0.25", 1000),
        *(
            pytest.param(SearchSpace(scopes=(scope,)), target, 2000, marks=pytest.mark.slow)
            for scope, target in (
                ("row", "W * G^0.5 * X^0.25"),
                ("matrix", "row_share(W) * X^0.5 + column_share(W) * G"),
                ("row", "(row_share(W) + column_share(W)) * X^0.5"),
            )
        ),
    ],
)
def test_it_beats_random_search_on_hidden_targets(
    space: SearchSpace, target: str, evaluations: int
) -> None:
    seeds = 1 if space is NARROW else 5
    ours, random = medians(space, by_rank(target), evaluations, seeds)
    assert ours < 0.6 * random
    if space is NARROW:
        assert ours <= EXACT
