"""Allocation by error: against every choice there is, on envelopes drawn chord by chord."""

import time
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity import SemiStructured, by_error, mixed_n

GRID = (0.25, 0.5, 0.75, 0.9)

errors = st.floats(0, 10)
curves = st.dictionaries(
    st.sampled_from("abc"), st.tuples(errors, errors, errors, errors), min_size=1, max_size=3
)
convex = st.lists(st.floats(0, 5), min_size=3, max_size=3).map(
    lambda rises: np.cumsum(np.cumsum(sorted(rises))).tolist()
)


def on_grid(values: Mapping[str, Sequence[float]]) -> dict[str, dict[float, float]]:
    return {name: dict(zip(GRID, one, strict=True)) for name, one in values.items()}


def envelope_at(x: float, points: list[tuple[float, float]]) -> float:
    """The convex lower envelope: the lowest of all chords that pass over x."""
    chords = [
        y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        for x0, y0 in points
        for x1, y1 in points
        if x0 <= x <= x1 and x0 < x1
    ]
    return min([*chords, *(y for x0, y in points if x0 == x)])


@settings(deadline=None, max_examples=60)
@given(curves, st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3), st.data())
def test_no_other_whole_number_of_zeros_has_less_error(
    values: dict[str, tuple[float, ...]], weights: list[float], data: st.DataObject
) -> None:
    sizes = {name: data.draw(st.sampled_from([20, 40])) for name in values}
    total = sum(sizes.values())
    wanted = data.draw(st.integers(0, total * 9 // 10))
    importance = dict(zip("abc", weights, strict=True))
    allocation = by_error(
        on_grid(values), sizes, wanted / total, importance=importance, bounds=(0.0, 0.9)
    )
    points = {name: [(0.0, 0.0), *zip(GRID, one, strict=True)] for name, one in values.items()}
    # The envelope of each matrix after each of its weights.
    table = {
        name: np.array(
            [importance[name] * envelope_at(k / size, points[name]) for k in range(size * 9 // 10)]
            + [importance[name] * values[name][-1]]
        )
        for name, size in sizes.items()
    }
    best = np.zeros(1)
    for one in table.values():
        sums = np.full(len(best) + len(one) - 1, np.inf)
        for k, error in enumerate(one):
            sums[k : k + len(best)] = np.minimum(sums[k : k + len(best)], best + error)
        best = sums
    reached = sum(
        importance[name] * envelope_at(allocation.sparsity[name], points[name]) for name in sizes
    )
    assert reached == pytest.approx(best[wanted], abs=1e-9)
    assert allocation.total(sizes) == pytest.approx(wanted / total, abs=1e-12)


@settings(deadline=None)
@given(curves, st.floats(0.1, 0.8), st.floats(0.1, 0.8))
def test_more_sparsity_never_gives_a_weight_back(
    values: dict[str, tuple[float, ...]], one: float, other: float
) -> None:
    sizes = {name: 100 + 30 * index for index, name in enumerate(values)}
    bounds = (0.1, 0.8)
    less, more = (
        by_error(on_grid(values), sizes, sparsity, bounds=bounds)
        for sparsity in sorted((one, other))
    )
    for name in sizes:
        assert 0.1 <= less.sparsity[name] <= more.sparsity[name] + 1e-12
        assert more.sparsity[name] <= 0.8
    assert more.total(sizes) == pytest.approx(max(one, other), abs=1e-12)


def test_the_cheaper_matrix_is_pruned_first_and_importance_turns_it_round() -> None:
    measured = {"a": {0.5: 1.0, 0.9: 3.0}, "b": {0.5: 2.0, 0.9: 9.0}}
    sizes = {"a": 100, "b": 100}
    assert by_error(measured, sizes, 0.25).sparsity == {"a": 0.5, "b": 0.0}
    turned = by_error(measured, sizes, 0.25, importance={"a": 3.0, "b": 1.0})
    assert turned.sparsity == {"a": 0.0, "b": 0.5}


def test_a_large_matrix_is_pruned_first_at_the_same_error() -> None:
    measured = {"small": {0.5: 1.0}, "large": {0.5: 1.0}}
    sizes = {"small": 100, "large": 300}
    assert by_error(measured, sizes, 0.375).sparsity == {"small": 0.0, "large": 0.5}


def test_a_bump_in_a_curve_is_crossed_not_stopped_at() -> None:
    # To 0.25 it costs much, from there on nothing: its chord to 0.5 beats the other's.
    measured = {"bump": {0.25: 1.0, 0.5: 1.0}, "other": {0.25: 0.7, 0.5: 1.4}}
    sizes = {"bump": 100, "other": 100}
    assert by_error(measured, sizes, 0.25).sparsity == {"bump": 0.5, "other": 0.0}


def test_what_the_curves_cannot_give_is_refused() -> None:
    measured = {"a": {0.5: 1.0}, "b": {0.7: 1.0}}
    sizes = {"a": 100, "b": 100}
    with pytest.raises(PrunerZeroError, match=r"reach a sparsity of 0.6 only, not 0.65"):
        by_error(measured, sizes, 0.65)
    assert by_error(measured, sizes, 0.6).sparsity == {"a": 0.5, "b": 0.7}
    with pytest.raises(PrunerZeroError, match=r"outside the allocation's bounds \[0.3, 0.9\]"):
        by_error(measured, sizes, 0.2, bounds=(0.3, 0.9))
    with pytest.raises(PrunerZeroError, match="errors of b are not finite"):
        by_error({"a": {0.5: 1.0}, "b": {0.5: float("nan")}}, sizes, 0.4)
    with pytest.raises(PrunerZeroError, match="errors of a are not finite"):
        mixed_n({"a": [1.0, 2.0, float("inf")]}, {"a": 100}, 4, 0.5)
    with pytest.raises(ValueError, match="a has 2 errors"):
        mixed_n({"a": [1.0, 2.0]}, {"a": 100}, 4, 0.5)


@settings(deadline=None)
@given(st.lists(convex, min_size=1, max_size=4), st.floats(0.25, 0.75))
def test_n_is_the_best_of_all_choices_where_sizes_are_equal(
    values: list[list[float]], share: float
) -> None:
    errors = {str(index): one for index, one in enumerate(values)}
    chosen = mixed_n(errors, dict.fromkeys(errors, 64), 4, share)
    steps = sum(chosen.values())
    assert 0 <= share * 4 * len(errors) - steps < 1 + 1e-9
    best = min(
        sum(errors[name][n - 1] for name, n in zip(errors, choice, strict=True))
        for choice in product((1, 2, 3), repeat=len(errors))
        if sum(choice) == steps
    )
    assert sum(errors[name][n - 1] for name, n in chosen.items()) == pytest.approx(best)


@settings(deadline=None)
@given(
    st.lists(st.lists(errors, min_size=7, max_size=7), min_size=1, max_size=5),
    st.floats(1 / 8, 7 / 8),
    st.data(),
)
def test_any_errors_give_valid_patterns_near_the_share(
    values: list[list[float]], share: float, data: st.DataObject
) -> None:
    measured = {str(index): one for index, one in enumerate(values)}
    sizes = {name: data.draw(st.sampled_from([64, 128, 512])) for name in measured}
    chosen = mixed_n(measured, sizes, 8, share)
    assert all(str(SemiStructured(n, 8)) for n in chosen.values())
    room = share * sum(sizes.values()) - sum(n * sizes[name] / 8 for name, n in chosen.items())
    assert room >= -1e-9
    for name, n in chosen.items():
        assert n == 7 or sizes[name] / 8 > room - 1e-9


@settings(deadline=None)
@given(st.lists(convex, min_size=2, max_size=4), st.floats(0.25, 0.75), st.floats(0.25, 0.75))
def test_a_larger_share_never_lowers_n_where_sizes_are_equal(
    values: list[list[float]], one: float, other: float
) -> None:
    measured = {str(index): errors for index, errors in enumerate(values)}
    assume(one != other)
    less, more = (
        mixed_n(measured, dict.fromkeys(measured, 64), 4, share) for share in sorted((one, other))
    )
    assert all(less[name] <= more[name] for name in measured)


def test_importance_decides_which_matrix_loses_more() -> None:
    measured = {"a": [1.0, 2.0, 4.0], "b": [1.0, 2.0, 4.0]}
    sizes = {"a": 64, "b": 64}
    assert mixed_n(measured, sizes, 4, 0.5, importance={"a": 9.0, "b": 1.0}) == {"a": 1, "b": 3}
    assert mixed_n(measured, sizes, 4, 0.5) == {"a": 2, "b": 2}


@pytest.mark.parametrize("share", [0.0, 0.24, 0.76, 1.0])
def test_shares_out_of_reach_of_m_are_refused(share: float) -> None:
    with pytest.raises(PrunerZeroError, match=r"out of reach of N:4: choose one from 0.25 to 0.75"):
        mixed_n({"a": [1.0, 2.0, 3.0]}, {"a": 64}, 4, share)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([64, 192, 512]), convex), min_size=1, max_size=5),
    st.sampled_from([0.25, 0.5, 0.75]),
)
def test_matrices_of_any_sizes_meet_a_whole_mean_exactly_at_the_least_error(
    drawn: list[tuple[int, list[float]]], share: float
) -> None:
    sizes = {str(index): size for index, (size, _) in enumerate(drawn)}
    measured = {str(index): one for index, (_, one) in enumerate(drawn)}
    chosen = mixed_n(measured, sizes, 4, share)
    wanted = round(4 * share) * sum(sizes.values())
    assert sum(n * sizes[name] for name, n in chosen.items()) == wanted
    best = min(
        sum(measured[name][n - 1] for name, n in zip(sizes, choice, strict=True))
        for choice in product((1, 2, 3), repeat=len(sizes))
        if sum(n * size for n, size in zip(choice, sizes.values(), strict=True)) == wanted
    )
    assert sum(measured[name][n - 1] for name, n in chosen.items()) == pytest.approx(best)


def test_where_no_exchange_is_exact_all_matrices_get_the_mean() -> None:
    # The cheapest choice, 1 for the first and 3 for the second, would leave room for nothing.
    measured = {"a": [0.0, 9.0, 99.0], "b": [0.0, 1.0, 2.0]}
    assert mixed_n(measured, {"a": 640, "b": 576}, 4, 0.5) == {"a": 2, "b": 2}
    assert mixed_n(measured, {"a": 640, "b": 576}, 4, 0.4) == {"a": 1, "b": 2}


def test_thousands_of_experts_take_moments() -> None:
    sizes = {str(index): (4096, 1536, 1408, 1000)[index % 4] for index in range(8000)}
    measured = {name: [1.0, 2.0 + int(name) % 7, 9.0 + int(name) % 11] for name in sizes}
    start = time.process_time()
    chosen = mixed_n(measured, sizes, 4, 0.5)
    assert time.process_time() - start < 20
    assert sum(n * sizes[name] for name, n in chosen.items()) == 2 * sum(sizes.values())
    assert set(chosen.values()) == {1, 2, 3}
