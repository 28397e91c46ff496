"""Published rules: against plain statements of their formulas, exact in total, inside bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity import (
    Allocation,
    from_offsets,
    outlier_share,
    owl,
    uniform,
)

KINDS = ("q_proj", "up_proj", "down_proj")

sparsities = st.floats(0.05, 0.95)
outliers = st.lists(st.floats(0, 0.2), min_size=1, max_size=5)
offsets = st.floats(-40, 40)


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


def test_uniform_gives_the_share_itself() -> None:
    assert uniform({"a": 10, "b": 20}, 0.3) == Allocation({"a": 0.3, "b": 0.3})
    with pytest.raises(PrunerZeroError, match="outside"):
        uniform({"a": 10}, 1.0)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_outliers_are_those_above_a_multiple_of_the_blocks_mean(seed: int, multiple: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(shape, generator=generator) ** 4 for shape in [(3, 5), (8, 2), (1, 7)]]
    values = [value for matrix in scores for value in matrix.flatten().tolist()]
    mean = sum(values) / len(values)
    above = sum(value > multiple * mean for value in values)
    assert outlier_share(scores, multiple) == above / len(values)


def test_the_mean_is_of_the_whole_block_not_of_a_matrix() -> None:
    # Against their own mean neither matrix has an outlier.
    assert outlier_share([torch.full((9, 10), 0.01), torch.full((1, 10), 1.0)]) == 0.1


@settings(deadline=None)
@given(outliers, st.floats(0.3, 0.7), st.floats(0, 0.14))
def test_owl_is_the_released_formula_where_blocks_are_equal(
    found: list[float], sparsity: float, limit: float
) -> None:
    number = len(found)
    allocation = owl(
        dict(enumerate(found)), blocks_of(number), equal_sizes(number), sparsity, limit=limit
    )
    D = np.array(found)
    if D.max() > D.min():
        # Released in terms of the kept share.
        kept = (D - D.min()) / (D.max() - D.min()) * limit * 2
        kept = kept - kept.mean() + (1 - sparsity)
    else:
        kept = np.full(number, 1 - sparsity)
    np.testing.assert_allclose(one_per_block(allocation, number), 1 - kept, atol=1e-12)


@settings(deadline=None)
@given(outliers, sparsities, st.floats(0, 0.6))
def test_owl_keeps_total_bounds_and_order(
    found: list[float], sparsity: float, limit: float
) -> None:
    number = len(found)
    sizes = uneven_sizes(number)
    allocation = owl(
        dict(enumerate(found)), blocks_of(number), sizes, sparsity, limit=limit, bounds=(0.02, 0.97)
    )
    shares = one_per_block(allocation, number)
    assert allocation.total(sizes) == pytest.approx(sparsity, abs=1e-12)
    assert all(0.02 <= share <= 0.97 for share in shares)
    for index in range(number):
        for other in range(number):
            if found[index] < found[other]:
                assert shares[index] >= shares[other]
    assert max(shares) - min(shares) <= 2 * limit + 1e-12


def test_equal_blocks_are_pruned_alike() -> None:
    blocks, sizes = blocks_of(3), uneven_sizes(3)
    allocation = owl(dict.fromkeys(range(3), 0.02), blocks, sizes, 0.6)
    assert list(allocation.sparsity.values()) == pytest.approx([0.6] * len(sizes), abs=1e-14)


@settings(deadline=None)
@given(
    st.lists(offsets, min_size=1, max_size=4),
    st.tuples(offsets, offsets, offsets),
    sparsities,
    offsets,
)
def test_offsets_are_logits_around_an_exact_total(
    block_offsets: list[float], by_kind: tuple[float, float, float], sparsity: float, shift: float
) -> None:
    number = len(block_offsets)
    blocks, sizes = blocks_of(number), uneven_sizes(number)
    kinds = {name: name.rsplit(".", 1)[-1] for name in sizes}
    kind_offsets = dict(zip(KINDS, by_kind, strict=True))
    low, high = bounds = (0.03, 0.96)
    allocation = from_offsets(
        block_offsets, kind_offsets, blocks, kinds, sizes, sparsity, bounds=bounds
    )
    assert allocation.total(sizes) == pytest.approx(sparsity, abs=1e-12)
    given = {name: block_offsets[blocks[name]] + kind_offsets[kinds[name]] for name in sizes}
    constants = []
    for name, share in allocation.sparsity.items():
        assert low <= share <= high
        if low < share < high:
            constants.append(math.log(share / (1 - share)) - given[name])
    # One constant for all that are free; whoever is clipped would lie beyond its bound.
    assert constants == pytest.approx(constants[:1] * len(constants), abs=1e-8)
    for name, share in allocation.sparsity.items():
        logit = (constants or [0.0])[0] + given[name]
        if constants and share in bounds:
            free = 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
            assert free <= low + 1e-9 if share == low else free >= high - 1e-9

    moved = from_offsets(
        [offset + shift for offset in block_offsets],
        kind_offsets,
        blocks,
        kinds,
        sizes,
        sparsity,
        bounds=bounds,
    )
    assert list(moved.sparsity.values()) == pytest.approx(
        list(allocation.sparsity.values()), abs=1e-9
    )


def test_zero_offsets_are_uniform() -> None:
    blocks, sizes = blocks_of(2), uneven_sizes(2)
    kinds = {name: name.rsplit(".", 1)[-1] for name in sizes}
    zero = dict.fromkeys(KINDS, 0.0)
    for sparsity in (0.0, 0.5, 0.7):
        allocation = from_offsets([0, 0], zero, blocks, kinds, sizes, sparsity)
        assert list(allocation.sparsity.values()) == pytest.approx([sparsity] * 6, abs=1e-14)


def test_offsets_reach_the_bounds_themselves() -> None:
    sizes = {"a": 10, "b": 10}
    arguments = ({"a": 0, "b": 1}, dict.fromkeys(sizes, "k"), sizes)
    far = from_offsets([-600.0, 600.0], {"k": 0.0}, *arguments, 0.4, bounds=(0.2, 0.6))
    assert far.sparsity == {"a": pytest.approx(0.2), "b": pytest.approx(0.6)}


def test_what_cannot_be_allocated_is_refused() -> None:
    blocks, sizes = blocks_of(2), uneven_sizes(2)
    shares = {0: 0.1, 1: 0.2}
    with pytest.raises(PrunerZeroError, match=r"sparsity 0.3 is outside .* bounds \[0.4, 0.9\]"):
        owl(shares, blocks, sizes, 0.3, bounds=(0.4, 0.9))
    with pytest.raises(PrunerZeroError, match=r"limit of OWL is -0.1"):
        owl(shares, blocks, sizes, 0.5, limit=-0.1)
    with pytest.raises(PrunerZeroError, match="not all finite"):
        owl({0: 0.1, 1: math.nan}, blocks, sizes, 0.5)
    kinds = dict.fromkeys(sizes, "k")
    with pytest.raises(PrunerZeroError, match="finite"):
        from_offsets([0.0, math.inf], {"k": 0.0}, blocks, kinds, sizes, 0.5)


@given(st.data(), st.integers(1, 4), st.floats(-3, 3))
def test_shares_to_start_from_stay_where_offsets_are_zero_and_are_moved_by_them(
    data: st.DataObject, number: int, offset: float
) -> None:
    blocks, sizes = blocks_of(number), uneven_sizes(number)
    kinds = {name: name.rsplit(".", 1)[-1] for name in sizes}
    none = dict.fromkeys(KINDS, 0.0)
    start = {name: data.draw(st.floats(0, 0.99), label=name) for name in sizes}
    total = Allocation(start).total(sizes)
    kept = from_offsets([0.0] * number, none, blocks, kinds, sizes, total, start=start)
    assert list(kept.sparsity.values()) == pytest.approx(list(start.values()), abs=1e-7)
    moved = from_offsets([offset] * number, none, blocks, kinds, sizes, total, start=start)
    assert list(moved.sparsity.values()) == pytest.approx(list(start.values()), abs=1e-7)
    first = KINDS[0]
    pushed = from_offsets(
        [0.0] * number, none | {first: abs(offset)}, blocks, kinds, sizes, total, start=start
    )
    assert pushed.total(sizes) == pytest.approx(total, abs=1e-9)
    for name, share in pushed.sparsity.items():
        change = share - start[name]
        assert change >= -1e-7 if kinds[name] == first else change <= 1e-7
