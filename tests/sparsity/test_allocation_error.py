"""Allocation by error: against every choice there is, on envelopes drawn chord by chord."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity import by_error

GRID = (0.25, 0.5, 0.75, 0.9)

errors = st.floats(0, 10)
curves = st.dictionaries(
    st.sampled_from("abc"), st.tuples(errors, errors, errors, errors), min_size=1, max_size=3
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
