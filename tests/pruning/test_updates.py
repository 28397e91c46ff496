"""Updates after a mask: as the functions of the sparsity room, with their remarks; a user's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruner_zero import prune
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.matrices import Matrix, find_matrices
from pruner_zero.offload.model import load_offloaded
from pruner_zero.pruning.masks import Mask, Statistics, masks_of
from pruner_zero.pruning.matrix import MatrixRecord, prune_matrix, sweeps
from pruner_zero.pruning.recipe import Recipe, Scored
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.update import Layer, Update, Updated
from pruner_zero.text.token_windows import Windows
from tests.masks import keep_mask
from tests.pruning.conftest import Prune, language_model, recipe_of
from tests.sparsity.kernels import sparsegpt
from tests.sparsity.reference import damped, error_under, keep_groups
from tests.sparsity.test_sweep import layer
from tests.tiny import tiny_tokenizer
from tests.tiny_models import SHARING, tiny_model


def matrix_of(weight: Tensor) -> Matrix:
    """A matrix of its own, not part of a model."""
    return Matrix("up_proj", 0, nn.Parameter(weight.clone(), requires_grad=False), "weight")


def example(rows: int = 24, columns: int = 160) -> tuple[Tensor, Tensor, Statistics]:
    """A weight, a gram, and the X, G and Hessian that fit together."""
    weight, gram = layer(rows, columns)
    G = torch.rand(rows, columns, generator=torch.Generator().manual_seed(1))
    return weight, gram, Statistics({"X": gram.diagonal().sqrt()[None], "G": G}, Hessian(gram))


def prune_one(
    matrix: Matrix, statistics: Statistics, method: Recipe, mask: Tensor | None = None
) -> MatrixRecord:
    """Prune a matrix that competes with no other, under `mask` if there is one."""
    chosen = Mask(mask)
    if mask is None:
        assert isinstance(method.masks, Scored)
        read = {matrix: statistics}.__getitem__
        chosen = masks_of([matrix], method.masks, read, sweep=sweeps(method))[matrix.name]
    return prune_matrix(matrix, statistics, method, chosen)


def pruned(text: str, pattern: Pattern, mask: Tensor | None = None) -> Tensor:
    """The weights that a method leaves of the example."""
    weight, _, statistics = example()
    matrix = matrix_of(weight)
    share = {"sparsity": pattern.sparsity, "scope": pattern.scope}
    method = recipe_of(text, **({"pattern": pattern} if pattern.scope is None else share))
    record = prune_one(matrix, statistics, method, mask)
    assert record.zeros == int((matrix.weight == 0).sum())
    assert record.damping == (0.01 if method.update else None)
    assert (record.note, record.shrinkage) == (None, None)
    return matrix.weight.detach()


PATTERNS = [Unstructured(0.5), Unstructured(0.6, "block"), SemiStructured(2, 4)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_update_equals_the_function_of_the_sparsity_room(pattern: Pattern) -> None:
    weight, gram, statistics = example()
    mask = keep_mask(weight.abs() * statistics.values["X"], pattern)
    swept = sparsegpt(weight, gram, pattern, mask=mask).weight
    assert torch.equal(pruned("wanda", pattern), weight * mask)
    assert torch.equal(pruned("wanda+obs", pattern), swept)
    chosen = sparsegpt(weight, gram, pattern).weight
    assert torch.equal(pruned("sparsegpt", pattern), chosen)
    H = damped(gram)
    assert error_under(H, weight - swept) < 0.9 * error_under(H, weight - weight * mask)


def test_an_update_starts_from_a_given_mask() -> None:
    mask = torch.rand(24, 160, generator=torch.Generator().manual_seed(2)) > 0.4
    assert torch.equal(pruned("wanda+obs", Unstructured(0.5), mask) == 0, ~mask)


@pytest.mark.parametrize("text", ["wanda+obs", "sparsegpt"])
def test_raised_damping_is_noted(text: str) -> None:
    weight, _ = layer(4, 8)
    gram = torch.full((8, 8), 1.05).fill_diagonal_(1.0)
    statistics = Statistics({"X": torch.ones(1, 8)}, Hessian(gram))
    record = prune_one(matrix_of(weight), statistics, recipe_of(text))
    assert record.damping == pytest.approx(0.1)
    assert record.note == "damping raised to 0.1 for the Cholesky factor"


@pytest.mark.parametrize("text", ["wanda", "sparsegpt@row", "wanda+obs"])
def test_a_matrix_without_inputs_is_pruned_by_magnitude_and_left_alone(text: str) -> None:
    weight, _, statistics = example()
    silent = {"X": torch.zeros(1, 160), "G": statistics.values["G"]}
    statistics = Statistics(silent, Hessian(torch.zeros(160, 160)))
    matrix = matrix_of(weight)
    record = prune_one(matrix, statistics, recipe_of(text))
    assert record.note is not None
    assert record.note.endswith("inputs are not known: pruned by magnitude")
    assert torch.equal(matrix.weight, weight * keep_groups(weight.abs(), 160, 80))


def test_a_mask_over_all_matrices_can_be_updated_block_by_block(pruned_by: Prune) -> None:
    kept = {}
    for dense_inputs in (True, False):
        model = language_model("llama")
        pruned_by(model, "W * G@global+obs", dense_inputs=dense_inputs)
        kept[dense_inputs] = [matrix.weight for matrix in find_matrices(model.model)]
    for dense, sequential in zip(kept[True], kept[False], strict=True):
        assert torch.equal(dense == 0, sequential == 0)
    assert not torch.equal(kept[True][-1], kept[False][-1])


def test_an_update_of_the_users_own_follows_the_mask(prose: str, tmp_path: Any) -> None:
    """Each row keeps its norm."""

    def rescale(given: Layer) -> Updated:
        kept = given.weight * given.required_mask
        factor = given.weight.norm(dim=1, keepdim=True) / kept.norm(dim=1, keepdim=True)
        return Updated(kept * factor, given.required_mask)

    rescaled = Update("rescale", rescale, "each row scaled to its old norm")
    model, dense = tiny_model("llama"), tiny_model("llama")
    result = prune(
        model,
        "magnitude",
        update=rescaled,
        tokenizer=tiny_tokenizer(),
        calibration=[prose],
        sparsity=0.5,
        windows=4,
        seqlen=16,
        cache=tmp_path,
    )
    for matrix, before in zip(find_matrices(model), find_matrices(dense), strict=True):
        assert (matrix.weight == 0).sum(1).eq(matrix.weight.shape[1] // 2).all()
        torch.testing.assert_close(matrix.weight.norm(dim=1), before.weight.norm(dim=1))
    assert result.settings.update == result.to_json()["update"] == "rescale"
    assert "then: each row scaled to its old norm" in result.recipe.lines()


def test_offloaded_blocks_that_share_keys_and_values_are_refused(
    windows: Windows, tmp_path: Any
) -> None:
    """What a block passes on beside its output is in no file to go on from."""
    tiny_model(SHARING, blocks=4).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PrunerZeroError, match="more than their output: leave out --offload"):
        load_offloaded(tmp_path).block_calls(windows.tokens)
