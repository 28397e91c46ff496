"""Patterns: what they refuse, how they are written and read, and how many zeros they mean."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.pattern import Lazy, Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.threshold import pruned_count


@example(100, 2900)
@example(1000, 5700)
@given(st.integers(0, 10**9), st.integers(0, 9999))
def test_count_is_the_floor_of_the_typed_decimal(weights: int, digits: int) -> None:
    assert pruned_count(weights, digits / 10_000) == weights * digits // 10_000
    assert pruned_count(weights, np.float64(digits / 10_000)) == weights * digits // 10_000


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_count_never_reaches_all_weights(weights: int, sparsity: float) -> None:
    count = pruned_count(weights, sparsity)
    assert count == math.floor(Decimal(repr(sparsity)) * weights)
    assert count < weights or weights == 0


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(PrunerZeroError, match=r"sparsity .* outside \[0, 1\)"):
        Unstructured(sparsity)


def test_a_percentage_is_recognised_and_an_unknown_scope_names_a_near_one() -> None:
    with pytest.raises(PrunerZeroError, match=r"0\.5 for 50 %"):
        Unstructured(50)
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
    assert pattern.sparsity == {"2:4": 0.5}.get(text, 0.375)


@pytest.mark.parametrize("text", ["", "2:", "half", "2/4", "0.5", "50% per row", "4:4"])
def test_unreadable_patterns_are_one_line_errors(text: str) -> None:
    with pytest.raises(PrunerZeroError) as caught:
        SemiStructured.parse(text)
    assert "\n" not in str(caught.value)


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
