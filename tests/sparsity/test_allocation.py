"""Allocations: the contents of their file, and the exact zeros that follow from them."""

import json
import math
from collections.abc import Iterable
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity import (
    Allocation,
    Granularity,
    Unstructured,
    exact,
    keep_mask,
    pruned_count,
    read_allocation,
)

Shapes = dict[str, tuple[int, int]]

names = st.text(min_size=1, max_size=8)
shares = st.floats(0, 0.9)
granularities = st.sampled_from(["row", "matrix"])


@st.composite
def allocated(draw: st.DrawFn, most: int = 6) -> tuple[Allocation, Shapes]:
    """Up to `most` matrices with a share each; wide enough to lose nine tenths of a row."""
    number = draw(st.integers(1, most))
    shapes = {
        f"layers.{index}": (draw(st.integers(1, 12)), draw(st.integers(11, 40)))
        for index in range(number)
    }
    return Allocation({name: draw(shares) for name in shapes}), shapes


def counts(
    allocation: Allocation, shapes: Shapes, sparsity: float, granularity: Granularity
) -> dict[str, int]:
    """The zeros of each matrix under the exact allocation, as a mask counts them."""
    rounded = exact(allocation, shapes, sparsity, granularity).sparsity
    groups = {name: rows if granularity == "row" else 1 for name, (rows, _) in shapes.items()}
    return {
        name: groups[name] * pruned_count(rows * columns // groups[name], rounded[name])
        for name, (rows, columns) in shapes.items()
    }


def sizes_of(shapes: Shapes) -> dict[str, int]:
    return {name: rows * columns for name, (rows, columns) in shapes.items()}


@given(st.dictionaries(names, st.floats(0, 1, exclude_max=True), max_size=5))
def test_json_reads_back(sparsity: dict[str, float]) -> None:
    allocation = Allocation(sparsity)
    assert Allocation.from_json(json.dumps({"sparsity": sparsity})) == allocation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[0.5]", "must hold"),
        ("{}", "must hold"),
        ('{"sparsity": [0.5]}', "must hold"),
        ('{"sparsity": {"a": 0.5}, "mean": 0.5}', "'mean'"),
        ('{"sparsity": {"a": "half"}}', "'half': write a number"),
        ('{"sparsity": {"a": true}}', "True: write a number"),
        ('{"sparsity": {"a": null}}', "None: write a number"),
        ('{"sparsity": {"a": 1.0}}', r"of a is 1.0, outside \[0, 1\)"),
        ('{"sparsity": {"a": -0.1}}', r"outside \[0, 1\)"),
        ('{"sparsity": {"a": 50}}', r"outside \[0, 1\)"),
        ('{"sparsity": {"a": NaN}}', r"outside \[0, 1\)"),
    ],
)
def test_other_texts_are_one_line_errors(text: str, message: str) -> None:
    with pytest.raises(PrunerZeroError, match=message) as caught:
        Allocation.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_and_named_in_its_errors(tmp_path: Path) -> None:
    file = tmp_path / "allocation.json"
    with pytest.raises(PrunerZeroError, match=r"allocation.json cannot be read: No such file"):
        read_allocation(file)
    file.write_text('{"sparsity": {"a": 0.25, "b": 0}}')
    assert read_allocation(file) == Allocation({"a": 0.25, "b": 0.0})
    file.write_text('{"sparsity": {"a": 2}}')
    with pytest.raises(PrunerZeroError, match=r"allocation.json: .* of a is 2"):
        read_allocation(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(PrunerZeroError, match="not a text file"):
        read_allocation(file)


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    matrices = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    allocation = Allocation(dict.fromkeys([*matrices, "model.layers.0.mlp.up_porj"], 0.5))
    with pytest.raises(PrunerZeroError) as caught:
        allocation.check(matrices)
    assert str(caught.value) == (
        "the allocation names 'model.layers.0.mlp.up_porj', which is no matrix to prune "
        "(the nearest is 'model.layers.0.mlp.up_proj'): correct the name or take it out"
    )


def test_missing_names_are_told_and_counted() -> None:
    Allocation({"a": 0.5, "b": 0.5}).check(["b", "a"])
    with pytest.raises(PrunerZeroError, match=r"no sparsity for b: add it, or exclude"):
        Allocation({"a": 0.5}).check(["a", "b"])
    with pytest.raises(PrunerZeroError, match=r"no sparsity for b and 2 more"):
        Allocation({"a": 0.5}).check(["a", "b", "c", "d"])


def test_total_weighs_by_size() -> None:
    assert Allocation({"a": 0.2, "b": 0.8}).total({"a": 300, "b": 100}) == pytest.approx(0.35)


@settings(deadline=None)
@given(allocated())
def test_zeros_by_matrix_are_exact(case: tuple[Allocation, Shapes]) -> None:
    allocation, shapes = case
    sizes = sizes_of(shapes)
    sparsity = allocation.total(sizes)
    zeros = counts(allocation, shapes, sparsity, "matrix")
    assert sum(zeros.values()) == pruned_count(sum(sizes.values()), sparsity)
    for name, size in sizes.items():
        # The target is below the shares' own sum by less than one zero.
        ideal = allocation.sparsity[name] * size
        assert math.floor(ideal - 1) <= zeros[name] <= math.ceil(ideal + 1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(0, 700), min_size=3, max_size=3))
def test_zeros_by_matrix_are_the_nearest_of_all_with_that_total(eighths: list[int]) -> None:
    # Four matrices of 100 weights whose ideal zeros, in eighths, have a whole sum.
    eighths = [*eighths, 80 + -sum(eighths) % 8]
    wanted = sum(eighths) // 8
    allocation = Allocation({str(index): value / 800 for index, value in enumerate(eighths)})
    shapes = dict.fromkeys(allocation.sparsity, (10, 10))
    rounded = counts(allocation, shapes, wanted / 400, "matrix")

    def distance(zeros: Iterable[int]) -> int:
        return sum(abs(8 * zero - value) for zero, value in zip(zeros, eighths, strict=True))

    around = [(value // 8, value // 8 + 1) for value in eighths]
    best = min(distance(zeros) for zeros in product(*around) if sum(zeros) == wanted)
    assert sum(rounded.values()) == wanted
    assert distance(rounded.values()) == best


@settings(deadline=None)
@given(allocated())
def test_zeros_by_row_are_whole_columns_and_nothing_more_fits(
    case: tuple[Allocation, Shapes],
) -> None:
    allocation, shapes = case
    sizes = sizes_of(shapes)
    sparsity = allocation.total(sizes)
    zeros = counts(allocation, shapes, sparsity, "row")
    short = pruned_count(sum(sizes.values()), sparsity) - sum(zeros.values())
    assert 0 <= short < max(rows for rows, _ in shapes.values())
    for name, (rows, columns) in shapes.items():
        assert zeros[name] % rows == 0
        per_row, ideal = zeros[name] // rows, allocation.sparsity[name] * columns
        assert math.floor(ideal - 1) <= per_row <= math.ceil(ideal + 1e-6)
        # The shares' own sum exceeds the target by less than one zero, so ideal by under 1 / rows.
        if ideal % 1 > 1 / rows and per_row == math.floor(ideal):
            assert rows > short


def test_a_matrix_that_has_its_whole_share_takes_nothing_from_another() -> None:
    # 5.25 of each of the first's four rows: the zero left over would fit the second alone.
    allocation = Allocation({"a": 0.525, "b": 0.5})
    assert counts(allocation, {"a": (4, 10), "b": (1, 10)}, 0.52, "row") == {"a": 20, "b": 5}


@settings(deadline=None)
@given(allocated(), granularities)
def test_of_equal_shapes_the_larger_share_never_gets_fewer_zeros(
    case: tuple[Allocation, Shapes], granularity: Granularity
) -> None:
    allocation, shapes = case
    shapes = dict.fromkeys(shapes, (6, 20))
    zeros = counts(allocation, shapes, allocation.total(sizes_of(shapes)), granularity)
    ascending = sorted(shapes, key=lambda name: allocation.sparsity[name])
    for lower, higher in pairwise(ascending):
        gap = allocation.sparsity[higher] - allocation.sparsity[lower]
        assert zeros[lower] <= zeros[higher] or gap < 1e-6


@settings(deadline=None)
@given(allocated(), granularities)
def test_masks_of_the_exact_allocation_hold_these_zeros(
    case: tuple[Allocation, Shapes], granularity: Granularity
) -> None:
    allocation, shapes = case
    sparsity = allocation.total(sizes_of(shapes))
    zeros = counts(allocation, shapes, sparsity, granularity)
    rounded = exact(allocation, shapes, sparsity, granularity)
    for name, shape in shapes.items():
        scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        mask = keep_mask(scores, Unstructured(rounded.sparsity[name], granularity))
        assert int((~mask).sum()) == zeros[name]


def test_a_share_that_no_decimal_names_still_gives_its_zeros() -> None:
    # floor(3 · 0.3333333333333333) is 0: the plain quotient would lose the zero.
    shapes = {"a": (5, 3)}
    rounded = exact(Allocation({"a": 0.3334}), shapes, 0.3334, "row")
    assert int((~keep_mask(torch.rand(5, 3), Unstructured(rounded.sparsity["a"]))).sum()) == 5


def test_a_plain_share_stays_as_it_was_written() -> None:
    shapes = {"a": (4, 10), "b": (4, 20)}
    allocation = Allocation({"a": 0.5, "b": 0.2})
    assert exact(allocation, shapes, 0.3, "row") == allocation


@pytest.mark.parametrize("granularity", ["row", "matrix"])
def test_every_group_keeps_a_weight(granularity: Granularity) -> None:
    shapes = {"a": (2, 8), "b": (2, 8)}
    zeros = counts(Allocation({"a": 0.99, "b": 0.99}), shapes, 0.99, granularity)
    assert set(zeros.values()) == ({14} if granularity == "row" else {15})


def test_shares_with_few_decimals_are_shifted_to_the_total() -> None:
    shapes = {f"layers.{index}": (30, 100) for index in range(7)}
    written = {name: round(0.35 + index * 0.0501, 3) for index, name in enumerate(shapes)}
    zeros = counts(Allocation(written), shapes, 0.5, "matrix")
    assert sum(zeros.values()) == 10_500
    assert all(abs(zeros[name] / 3000 - written[name]) < 0.001 for name in shapes)


def test_an_allocation_of_another_sparsity_is_refused() -> None:
    shapes = {"a": (4, 10), "b": (4, 10)}
    with pytest.raises(PrunerZeroError, match=r"prunes 0.6 of the weights, not 0.5: set"):
        counts(Allocation({"a": 0.5, "b": 0.7}), shapes, 0.5, "row")


def test_an_allocation_of_other_matrices_is_refused() -> None:
    with pytest.raises(PrunerZeroError, match=r"names 'b'"):
        counts(Allocation({"a": 0.5, "b": 0.5}), {"a": (4, 10)}, 0.5, "row")
