"""Patterns: what they refuse, how they are written and read, and how many zeros they mean."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.pattern import Lazy, Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.threshold import pruned_count


@pytest.mark.parametrize(
    ("weights", "sparsity", "zeros"),
    [(100, 0.29, 29), (10, 0.7, 7), (10, 0.3, 3), (1000, 0.57, 570), (7, 0.5, 3), (5, 0, 0)],
)
def test_count_is_the_floor_of_the_typed_decimal(weights: int, sparsity: float, zeros: int) -> None:
    assert pruned_count(weights, sparsity) == zeros


@given(st.integers(0, 10**9), st.integers(0, 9999))
def test_count_of_every_typed_decimal(weights: int, digits: int) -> None:
    assert pruned_count(weights, digits / 10_000) == weights * digits // 10_000


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_count_never_reaches_all_weights(weights: int, sparsity: float) -> None:
    count = pruned_count(weights, sparsity)
    assert count == math.floor(Decimal(repr(sparsity)) * weights)
    assert count < weights or weights == 0


def test_count_takes_numpy_floats() -> None:
    assert pruned_count(100, float(np.float64(0.29))) == 29
    assert pruned_count(100, np.float64(0.29)) == 29


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(PrunerZeroError, match=r"sparsity .* outside \[0, 1\)"):
        Unstructured(sparsity)


def test_a_percentage_is_recognised() -> None:
    with pytest.raises(PrunerZeroError, match=r"0\.5 for 50 %"):
        Unstructured(50)


def test_unknown_scope_names_a_near_one() -> None:
    with pytest.raises(PrunerZeroError, match="did you mean 'matrix'"):
        Unstructured(0.5, "matrx")  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4), (0, 4), (-1, 4), (0, 0)])
def test_n_of_m_must_leave_and_prune_some(n: int, m: int) -> None:
    with pytest.raises(PrunerZeroError, match="0 < N < M"):
        SemiStructured(n, m)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (SemiStructured(2, 4), "2:4"),
        (Unstructured(0.5), "50% per row"),
        (Unstructured(0.0), "0% per row"),
        (Unstructured(0.625, "matrix"), "62.5% per matrix"),
        (Unstructured(0.7, "block"), "70% per block"),
        (Unstructured(0.29, "global"), "29% global"),
    ],
)
def test_str(pattern: Pattern, text: str) -> None:
    assert str(pattern) == text


@pytest.mark.parametrize(
    ("text", "pattern"), [("2:4", SemiStructured(2, 4)), (" 3 : 8 ", SemiStructured(3, 8))]
)
def test_n_of_m_is_read(text: str, pattern: Pattern) -> None:
    assert SemiStructured.parse(text) == pattern


@pytest.mark.parametrize("text", ["", "2:", "half", "2/4", "0.5", "50% per row", "4:4"])
def test_unreadable_patterns_are_one_line_errors(text: str) -> None:
    with pytest.raises(PrunerZeroError) as caught:
        SemiStructured.parse(text)
    assert "\n" not in str(caught.value)


def test_sparsity_of_both_kinds() -> None:
    assert Unstructured(0.6, "block").sparsity == 0.6
    assert SemiStructured(1, 4).sparsity == 0.25


def test_width_must_be_whole_groups() -> None:
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(PrunerZeroError) as caught:
        SemiStructured(2, 4).check(name, (3, 10))
    assert str(caught.value) == (
        f"input width 10 of {name} is not divisible by 4: choose another M or exclude the matrix"
    )
    SemiStructured(2, 4).check(name, (3, 12))
    Unstructured(0.5).check(name, (3, 10))


def test_looking_up_a_name_computes_no_tensor() -> None:
    computed: list[str] = []

    def compute(name: str) -> Tensor:
        computed.append(name)
        return torch.ones(1, 1)

    tensors = Lazy(["one"], compute)
    assert "one" in tensors
    assert "other" not in tensors
    assert not computed
    assert tensors["one"].item() == 1
