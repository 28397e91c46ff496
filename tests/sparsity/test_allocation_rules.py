"""Rules of allocation: OWL against its formula, by error against every choice there is."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity import (
    Allocation,
    by_error,
    outlier_share,
    owl,
)

KINDS = ("q_proj", "up_proj", "down_proj")

# A share of outliers is never as small as a subnormal number, whose spread rounds to nothing.
outliers = st.lists(st.floats(0, 0.2, allow_subnormal=False), min_size=1, max_size=5)


def blocks_of(number: int) -> dict[str, int]:
    return {f"layers.{block}.{kind}": block for block in range(number) for kind in KINDS}


def equal_sizes(number: int) -> dict[str, int]:
    """Blocks of one size, from matrices of several."""
    sizes = {"q_proj": 100, "up_proj": 400, "down_proj": 300}
    return {name: sizes[name.rsplit(".", 1)[-1]] for name in blocks_of(number)}


def uneven_sizes(number: int) -> dict[str, int]:
    return {name: 100 + 37 * index for index, name in enumerate(blocks_of(number))}


def one_per_block(allocation: Allocation, number: int) -> list[float]:
    """The share of each block, once it is known that its matrices agree."""
    shares = [
        {allocation.sparsity[name] for name, block in blocks_of(number).items() if block == index}
        for index in range(number)
    ]
    assert all(len(values) == 1 for values in shares)
    return [values.pop() for values in shares]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_outliers_are_those_above_five_times_the_blocks_mean(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(shape, generator=generator) ** 20 for shape in [(3, 5), (8, 2), (1, 7)]]
    values = [value for matrix in scores for value in matrix.flatten().tolist()]
    mean = sum(values) / len(values)
    above = sum(value > 5 * mean for value in values)
    assert outlier_share(scores) == above / len(values)


def test_the_mean_is_of_the_whole_block_not_of_a_matrix() -> None:
    # Against their own mean neither matrix has an outlier.
    assert outlier_share([torch.full((9, 10), 0.01), torch.full((1, 10), 1.0)]) == 0.1


@settings(deadline=None)
@given(outliers, st.floats(0.3, 0.7))
def test_owl_is_the_released_formula_where_blocks_are_equal(
    ratios: list[float], sparsity: float
) -> None:
    number = len(ratios)
    allocation = owl(dict(enumerate(ratios)), blocks_of(number), equal_sizes(number), sparsity)
    D = np.array(ratios)
    if D.max() > D.min():
        # Released in terms of the kept share.
        kept = (D - D.min()) / (D.max() - D.min()) * 0.08 * 2
        kept = kept - kept.mean() + (1 - sparsity)
    else:
        kept = np.full(number, 1 - sparsity)
    np.testing.assert_allclose(one_per_block(allocation, number), 1 - kept, atol=1e-12)


@settings(deadline=None)
@given(outliers, st.floats(0, 0.99))
def test_owl_keeps_total_bounds_and_order(ratios: list[float], sparsity: float) -> None:
    number = len(ratios)
    sizes = uneven_sizes(number)
    allocation = owl(dict(enumerate(ratios)), blocks_of(number), sizes, sparsity)
    shares = one_per_block(allocation, number)
    assert allocation.total(sizes) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= share <= 0.99 for share in shares)
    for first in range(number):
        for second in range(number):
            if ratios[first] < ratios[second]:
                assert shares[first] >= shares[second]
    assert max(shares) - min(shares) <= 0.16 + 1e-12


def test_equal_blocks_are_pruned_alike() -> None:
    blocks, sizes = blocks_of(3), uneven_sizes(3)
    allocation = owl(dict.fromkeys(range(3), 0.02), blocks, sizes, 0.6)
    assert list(allocation.sparsity.values()) == pytest.approx([0.6] * len(sizes), abs=1e-14)


def test_an_impossible_allocation_is_refused() -> None:
    blocks, sizes = blocks_of(2), uneven_sizes(2)
    with pytest.raises(PrunerZeroError, match=r"set the sparsity to 0.99 or less, not 0.995"):
        owl({0: 0.1, 1: 0.2}, blocks, sizes, 0.995)
    with pytest.raises(PrunerZeroError, match="not all finite"):
        owl({0: 0.1, 1: math.nan}, blocks, sizes, 0.5)


GRID = (0.25, 0.5, 0.75, 0.9)

errors = st.floats(0, 10)
curves = st.dictionaries(
    st.sampled_from("abc"), st.tuples(errors, errors, errors, errors), min_size=1, max_size=3
)


def on_grid(values: Mapping[str, Sequence[float]]) -> dict[str, dict[float, float]]:
    return {name: dict(zip(GRID, curve, strict=True)) for name, curve in values.items()}


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
@given(curves, st.data())
def test_no_other_whole_number_of_zeros_has_less_error(
    values: dict[str, tuple[float, ...]], data: st.DataObject
) -> None:
    sizes = {name: data.draw(st.sampled_from([20, 40])) for name in values}
    total = sum(sizes.values())
    wanted = data.draw(st.integers(0, total * 9 // 10))
    allocation = by_error(on_grid(values), sizes, wanted / total)
    points = {name: [(0.0, 0.0), *zip(GRID, curve, strict=True)] for name, curve in values.items()}
    # The envelope of each matrix after each of its weights.
    table = {
        name: np.array(
            [envelope_at(k / size, points[name]) for k in range(size * 9 // 10)]
            + [values[name][-1]]
        )
        for name, size in sizes.items()
    }
    best = np.zeros(1)
    for curve in table.values():
        sums = np.full(len(best) + len(curve) - 1, np.inf)
        for k, error in enumerate(curve):
            sums[k : k + len(best)] = np.minimum(sums[k : k + len(best)], best + error)
        best = sums
    reached = sum(envelope_at(allocation.sparsity[name], points[name]) for name in sizes)
    assert reached == pytest.approx(best[wanted], abs=1e-9)
    assert allocation.total(sizes) == pytest.approx(wanted / total, abs=1e-12)


@settings(deadline=None)
@given(curves, st.floats(0.1, 0.8), st.floats(0.1, 0.8))
def test_more_sparsity_never_gives_a_weight_back(
    values: dict[str, tuple[float, ...]], first: float, second: float
) -> None:
    sizes = {name: 100 + 30 * index for index, name in enumerate(values)}
    less, more = (
        by_error(on_grid(values), sizes, sparsity) for sparsity in sorted((first, second))
    )
    for name in sizes:
        assert 0 <= less.sparsity[name] <= more.sparsity[name] + 1e-12
        assert more.sparsity[name] <= 0.9
    assert more.total(sizes) == pytest.approx(max(first, second), abs=1e-12)


def test_the_cheaper_matrix_is_pruned_first() -> None:
    measured = {"a": {0.5: 1.0, 0.9: 3.0}, "b": {0.5: 2.0, 0.9: 9.0}}
    sizes = {"a": 100, "b": 100}
    assert by_error(measured, sizes, 0.25).sparsity == {"a": 0.5, "b": 0.0}


def test_a_large_matrix_is_pruned_first_at_the_same_error() -> None:
    measured = {"small": {0.5: 1.0}, "large": {0.5: 1.0}}
    sizes = {"small": 100, "large": 300}
    assert by_error(measured, sizes, 0.375).sparsity == {"small": 0.0, "large": 0.5}


def test_a_bump_in_a_curve_is_crossed_not_stopped_at() -> None:
    # To 0.25 it costs much, from there on nothing: its chord to 0.5 beats the other's.
    measured = {"bump": {0.25: 1.0, 0.5: 1.0}, "other": {0.25: 0.7, 0.5: 1.4}}
    sizes = {"bump": 100, "other": 100}
    assert by_error(measured, sizes, 0.25).sparsity == {"bump": 0.5, "other": 0.0}


def test_a_sparsity_beyond_the_curves_is_refused() -> None:
    measured = {"a": {0.5: 1.0}, "b": {0.7: 1.0}}
    sizes = {"a": 100, "b": 100}
    with pytest.raises(PrunerZeroError, match=r"reach a sparsity of 0.6 only, not 0.65"):
        by_error(measured, sizes, 0.65)
    assert by_error(measured, sizes, 0.6).sparsity == {"a": 0.5, "b": 0.7}
    with pytest.raises(PrunerZeroError, match="errors of b are not finite"):
        by_error({"a": {0.5: 1.0}, "b": {0.5: float("nan")}}, sizes, 0.4)
