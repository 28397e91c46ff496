"""Matrices with the same input share one Hessian, which is factored once and freed."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate
from pruner_zero.models.matrices import find_matrices
from pruner_zero.pruning.masks import DenseStatistics, block_statistics
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import OpenStore, Prune, language_model, recipe_of

# Of a block of llama: q, k and v; o; gate and up; down.
INPUTS = 4


@pytest.mark.parametrize("dense_inputs", [True, False])
@pytest.mark.parametrize("text", ["wanda+obs", "sparsegpt"])
def test_each_input_is_factored_once(
    dense_inputs: bool,
    text: str,
    pruned_by: Prune,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    factor = torch.linalg.cholesky_ex

    def counted(matrix: Tensor, **options: Any) -> Any:
        calls.append(len(matrix))
        return factor(matrix, **options)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    model = language_model("llama", blocks=2)
    pruned_by(model, text, dense_inputs=dense_inputs)
    assert len(calls) == 2 * INPUTS


def test_a_hessian_is_freed_with_the_last_matrix_of_its_input() -> None:
    gram = torch.eye(4)
    tokens = torch.tensor([[16.0]])
    shared = {"X": torch.ones(1, 4), "gram": gram, "tokens": tokens}
    collected = {"q": shared, "k": shared, "o": {"X": torch.ones(1, 4), "gram": gram}}
    statistics = block_statistics(collected)
    assert not collected
    hessian = statistics["q"].hessian
    assert hessian is not None
    assert hessian is statistics["k"].hessian
    assert hessian is not statistics["o"].hessian
    assert hessian.shrinkage == 2 * 4 / 16
    assert list(statistics["q"].values) == ["X"]
    # Least squares of columns alone ask for the shrinkage.
    assert statistics["o"].hessian is not None
    assert statistics["o"].hessian.shrinkage == 0
    alive = weakref.ref(hessian)
    del hessian, statistics["q"], shared
    assert alive() is not None
    del statistics["k"]
    gc.collect()
    assert alive() is None


def test_scores_see_the_hessian_that_the_update_sees(
    windows: Windows, new_store: OpenStore
) -> None:
    method = recipe_of("W / D@channels=0.5")
    assert method.kinds(update=False) == method.kinds() == {"gram", "tokens"}
    model = language_model("llama", blocks=2)
    matrix = find_matrices(model.model)[0]
    store = new_store(model)
    calibrate(model, windows, method.kinds(), store)
    dense = DenseStatistics(store)
    shrinkages = []
    for kinds in (["gram"], ["gram", "tokens"], ["gram"]):
        hessian = dense.read(matrix, kinds).hessian
        assert hessian is not None
        shrinkages.append(hessian.shrinkage)
    shrunk = 2 * matrix.weight.shape[1] / windows.tokens.numel()
    assert shrinkages == [0, pytest.approx(shrunk), 0]


def test_stored_statistics_are_read_once_for_each_input(
    windows: Windows, new_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model("llama", blocks=2)
    matrices = find_matrices(model.model)
    store = new_store(model)
    calibrate(model, windows, {"X", "gram"}, store)
    reads: list[str] = []
    read = StatisticsStore.read

    def counted(self: StatisticsStore, kind: str, *arguments: Any, **options: Any) -> Any:
        reads.append(kind)
        return read(self, kind, *arguments, **options)

    monkeypatch.setattr(StatisticsStore, "read", counted)
    dense = DenseStatistics(store)
    living: list[weakref.ref[Hessian]] = []
    for matrix in matrices:
        statistics = dense.read(matrix, ["X", "gram"])
        assert list(statistics.values) == ["X"]
        assert statistics.hessian is not None
        expected = read(store, "gram", matrix.block)[matrix.name]
        assert torch.equal(statistics.hessian.gram, expected)
        if all(reference() is not statistics.hessian for reference in living):
            living.append(weakref.ref(statistics.hessian))
        assert sum(reference() is not None for reference in living) == 1
    assert reads.count("gram") == 2 * INPUTS
    assert reads.count("X") == len(matrices)
