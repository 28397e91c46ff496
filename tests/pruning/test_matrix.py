"""Masks that follow the weights of a matrix while it is trained."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruner_zero.metric.metric import Metric
from pruner_zero.models.matrices import Matrix, find_matrices
from pruner_zero.pruning.masks import Mask, Statistics
from pruner_zero.pruning.matrix import open_mask
from pruner_zero.pruning.recipe import Scored
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.structure.units import UnitMask
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import Prune, language_model

PATTERNS = [
    Unstructured(0.5, "row"),
    Unstructured(0.3, "matrix"),
    Unstructured(0.5, "block"),
    SemiStructured(2, 4),
    SemiStructured(3, 8),
]


def matrix_of(weight: Tensor) -> Matrix:
    return Matrix("blocks.0.proj", 0, nn.Parameter(weight), "blocks.0.proj.weight")


def random_matrix(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Matrix, Statistics]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 16, generator=generator).to(dtype)
    inputs = torch.rand(1, 16, generator=generator) + 0.1
    gradients = torch.rand(6, 16, generator=generator) + 0.1
    return matrix_of(weight), Statistics({"X": inputs, "G": gradients})


@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(["W * X", "W * G^0.8", "G * X", "W * row_odds(W * X)", "W^2 * X"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 50),
)
def test_the_mask_of_the_dense_weights_is_the_first_one(
    pattern: Pattern, metric: str, dtype: torch.dtype, seed: int
) -> None:
    matrix, statistics = random_matrix(seed, dtype)
    scored = Scored(Metric.of(metric), pattern)
    scores = scored.metric.score({**statistics.values, "W": matrix.weight.float().abs()})
    kept = pattern.choose({"m": scores})["m"]
    follows = open_mask(matrix, statistics, scored, Mask(kept))
    assert follows is not None
    assert torch.equal(follows.dense, matrix.weight)
    assert torch.equal(follows.choose(matrix.weight.float()), kept)


@given(st.integers(0, 50), st.integers(1, 95))
def test_over_the_whole_model_a_matrix_keeps_its_number_of_weights(seed: int, zeros: int) -> None:
    matrix, statistics = random_matrix(seed)
    scores = matrix.weight.abs() * statistics.values["X"]
    kept = scores > scores.flatten().sort().values[zeros - 1]
    scored = Scored(Metric.of("W * X"), Unstructured(0.5, "global"))
    follows = open_mask(matrix, statistics, scored, Mask(kept))
    assert follows is not None
    assert torch.equal(follows.choose(matrix.weight), kept)
    trained = torch.randn(6, 16, generator=torch.Generator().manual_seed(seed + 1))
    order = (trained.abs() * statistics.values["X"]).flatten().argsort()
    wanted = torch.ones(6 * 16, dtype=torch.bool)
    wanted[order[:zeros]] = False
    assert torch.equal(follows.choose(trained), wanted.view(6, 16))


@pytest.mark.parametrize("metric", ["W * X", "G * X"])
def test_weights_of_zero_give_finite_scores(metric: str) -> None:
    matrix, statistics = random_matrix(0)
    matrix.weight[:, ::2] = 0
    scored = Scored(Metric.of(metric), Unstructured(0.5))
    kept = torch.ones(6, 16, dtype=torch.bool)
    follows = open_mask(matrix, statistics, scored, Mask(kept))
    assert follows is not None
    chosen = follows.choose(torch.randn(6, 16, generator=torch.Generator().manual_seed(1)))
    assert (chosen.sum(1) == 8).all()


@pytest.mark.parametrize(
    ("metric", "pattern", "mask"),
    [
        ("neg(W)", Unstructured(0.5), {}),
        ("W * X", Unstructured(0.5), {"kept": None}),
        ("W * X", Unstructured(0.5), {"reached": False}),
        ("W * X", UnitMask(0.5, (), ()), {}),
    ],
    ids=["scores below zero", "sweep", "not reached", "units"],
)
def test_other_masks_stay(metric: str, pattern: Pattern, mask: dict[str, Any]) -> None:
    matrix, statistics = random_matrix(0)
    given_mask = Mask(**{"kept": torch.ones(6, 16, dtype=torch.bool), **mask})
    assert open_mask(matrix, statistics, Scored(Metric.of(metric), pattern), given_mask) is None
    matrix.weight.zero_()
    scored = Scored(Metric.of("W * X"), Unstructured(0.5))
    assert open_mask(matrix, statistics, scored, Mask(torch.ones(6, 16) > 0)) is None


def zeros_by(method: str, pruned_by: Prune, **options: Any) -> dict[str, Tensor]:
    model = language_model("llama")
    pruned = pruned_by(model, method, **options)
    zeros = {matrix.name: matrix.weight == 0 for matrix in find_matrices(model.model)}
    assert [record.zeros for record in pruned.records] == [int(z.sum()) for z in zeros.values()]
    return zeros


@pytest.mark.parametrize("method", ["wanda", "wanda@global", "gblm@global"])
def test_training_of_blocks_moves_zeros_and_keeps_their_number(
    method: str, pruned_by: Prune
) -> None:
    before = zeros_by(method, pruned_by)
    after = zeros_by(f"{method}+reconstruct=20", pruned_by)
    assert sum(int((after[name] != zeros).sum()) for name, zeros in before.items()) > 0
    for name, zeros in before.items():
        assert int(after[name].sum()) == int(zeros.sum())
        if method == "wanda":
            assert torch.equal(after[name].sum(1), zeros.sum(1))


def test_groups_of_four_keep_two(pruned_by: Prune, windows: Windows) -> None:
    del windows
    for zeros in zeros_by("wanda+reconstruct=20", pruned_by, pattern="2:4").values():
        assert (zeros.unflatten(1, (-1, 4)).sum(2) == 2).all()


@pytest.mark.parametrize("method", ["wanda+obs", "sparsegpt"])
def test_the_weights_of_an_update_belong_to_its_mask(method: str, pruned_by: Prune) -> None:
    before, after = zeros_by(method, pruned_by), zeros_by(f"{method}+reconstruct=20", pruned_by)
    first = [name for name in before if ".0." in name]
    assert all(torch.equal(before[name], after[name]) for name in first)
