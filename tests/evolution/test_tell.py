"""Exponents of a skeleton are moved to where a quadratic model of its losses is lowest."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from pruner_zero.evolution.candidate import TUNE, Candidate, Evaluation
from pruner_zero.evolution.space import SearchSpace, simplest
from pruner_zero.evolution.tell import Tuner
from pruner_zero.metric.grammar import parse

SPACE = SearchSpace(terminals=("W", "G", "X", "O"))


def judged(
    number: int, text: str, loss: float, further: float | None = None
) -> tuple[Candidate, Evaluation]:
    """A candidate that ran on few windows, and on all where `further` is given."""
    results = {"reconstruction": 0.0, "few": loss}
    if further is not None:
        results["all"] = loss + further
    return Candidate(number, parse(text), "global"), Evaluation(2, loss, results)


def tune(
    text: str, loss: Callable[[tuple[float, ...]], float], rounds: int
) -> list[tuple[float, ...]]:
    """The exponents that the tuner tries for this loss, from `text` on, two in each round."""
    tuner, generator = Tuner(SPACE), np.random.default_rng(1)
    first = Candidate(0, parse(text), "global")
    tried = [first.skeleton.exponents]
    tuner.add([judged(0, text, loss(tried[0]))])
    for _ in range(rounds):
        for proposal in tuner.propose(generator, 2):
            candidate = Candidate(len(tried), *proposal)
            tried.append(candidate.skeleton.exponents)
            tuner.add([judged(len(tried), str(candidate.expression), loss(tried[-1]))])
    return tried


def test_one_exponent_is_found_within_four_candidates() -> None:
    tried = tune("W * G", lambda exponents: 4 + 1.35 * (exponents[0] - 0.73) ** 2, rounds=2)
    assert min(abs(exponent - 0.73) for (exponent,) in tried) <= 0.031


def test_two_exponents_that_interact_are_found() -> None:
    def loss(exponents: tuple[float, ...]) -> float:
        first, second = exponents[0] - 0.85, exponents[1] - 0.6
        return 4 + first**2 + second**2 + first * second

    tried = tune("W * O * X", loss, rounds=7)
    assert min(map(loss, tried)) <= 4.004


def test_exponents_near_the_lowest_losses_are_tried_first() -> None:
    """The losses are those of a search, whose best exponents are 0.75 and 0.75."""
    tuner = Tuner(SPACE)
    points = {
        (0.9, 0.9): 4.019,
        (1.0, 1.0): 4.041,
        (0.65, 1.1): 4.153,
        (0.7, 1.1): 4.089,
        (0.9, 1.15): 4.069,
        (0.9, 1.1): 4.057,
        (0.6, 0.6): 4.017,
        (1.1, 1.1): 4.074,
    }
    tuner.add(
        [
            judged(number, f"W * O^{first} * X^{second}", loss)
            for number, ((first, second), loss) in enumerate(points.items())
        ]
    )
    proposals = tuner.propose(np.random.default_rng(0), 4)
    tried = [Candidate(0, *proposal).skeleton.exponents for proposal in proposals]
    assert tried[0] == pytest.approx((0.75, 0.75), abs=0.11)


def test_a_finished_skeleton_is_left_alone() -> None:
    """Around the lowest loss of many exponents no lower loss is plausible."""
    tuner = Tuner(SPACE)
    points = [0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9]
    tuner.add(
        [
            judged(number, f"W * G^{point}", 4 + 1.35 * (point - 0.7) ** 2, further=0.1)
            for number, point in enumerate(points)
        ]
    )
    assert tuner.propose(np.random.default_rng(1), 4) == []


def test_proposals_come_from_the_best_skeletons_and_name_their_parent() -> None:
    tuner = Tuner(SPACE)
    tuner.add([judged(0, "W * G", 4.0), judged(1, "W * X", 6.0), judged(2, "W", 3.0)])
    twin, rejected = (Candidate(number, parse("X * G"), "global") for number in (3, 4))
    tuner.add([(twin, Evaluation(2, 2.0, {"few": 2.0}, same_as=0))])
    tuner.add([(rejected, Evaluation(0, math.inf, reason="constant"))])
    proposals = tuner.propose(np.random.default_rng(1), 4)
    assert proposals, "W alone has nothing to tune"
    assert {proposal.parents for proposal in proposals} == {(0,)}
    assert {proposal.operation for proposal in proposals} == {TUNE}
    assert all(SPACE.allows(proposal.expression) for proposal in proposals)


def test_a_loss_on_few_windows_is_set_beside_losses_on_all() -> None:
    """Without the usual difference between the two losses, the second metric would be the best."""
    tuner = Tuner(SPACE)
    tuner.add([judged(0, "W * G^0.7", 4.0, further=1.0), judged(1, "W * G^1.5", 4.5)])
    assert {proposal.parents for proposal in tuner.propose(np.random.default_rng(1), 4)} == {(0,)}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("W^0.667 * (W * G)^1.85", "W * G^0.75"),
        ("W^2 * G^2", "G * W"),
        ("W * G^0.75", "W * G^0.75"),
        ("sqr(W) * X", "W * sqrt(X)"),
        ("exp(W * G)", "exp(G * W)"),
        # The exponent of the simpler form would be outside the range of the space.
        ("W^0.1 * G", "W^0.1 * G"),
    ],
)
def test_candidates_are_written_in_their_simplest_form(text: str, form: str) -> None:
    assert str(simplest(parse(text), "global", SPACE)) == str(parse(form))
