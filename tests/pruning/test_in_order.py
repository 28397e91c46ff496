"""Least squares on what the pruned blocks before give, also after masks of all matrices."""

from pathlib import Path

import pytest
import torch

from pruner_zero.choices import Mode
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.matrices import find_matrices
from pruner_zero.offload.model import load_offloaded
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import Prune, language_model
from tests.pruning.plain import inputs, places
from tests.tiny import tiny_tokenizer
from tests.tiny_models import SHARING, tiny_model


def test_the_weights_solve_the_problem_that_was_set(windows: Windows, pruned_by: Prune) -> None:
    """Row by row in the second block: least squares on the inputs that the pruned model gives."""
    dense, model = language_model("llama"), language_model("llama")
    pruned_by(model, "wanda+exact")
    # The inputs of the second block's first matrices do not depend on the block itself.
    name = next(place.name for place in places(model.model) if place.block == 1)
    incoming = inputs(model.model, windows.tokens, 1)[name].double()
    matrix = next(candidate for candidate in find_matrices(model.model) if candidate.name == name)
    before = next(candidate for candidate in find_matrices(dense.model) if candidate.name == name)
    row, target = matrix.weight[0].double(), incoming @ before.weight[0].double()
    support = row != 0
    gram = incoming.T @ incoming
    shrunk = gram.diagonal() * 2 * incoming.shape[1] / incoming.shape[0]
    added = (0.01 * gram.diagonal().mean() + shrunk)[support]
    damped = gram[support][:, support] + added.diag()
    right = incoming[:, support].T @ target + added * before.weight[0].double()[support]
    expected = torch.linalg.solve(damped, right)
    torch.testing.assert_close(row[support], expected, rtol=0.02, atol=0.02)


def test_a_mask_over_all_matrices_can_be_updated_block_by_block(pruned_by: Prune) -> None:
    kept = {}
    modes: tuple[Mode, ...] = ("one-shot", "sequential")
    for mode in modes:
        model = language_model("llama")
        pruned_by(model, "W * G@global+exact", mode)
        kept[mode] = [matrix.weight for matrix in find_matrices(model.model)]
    for one_shot, sequential in zip(kept["one-shot"], kept["sequential"], strict=True):
        assert torch.equal(one_shot == 0, sequential == 0)
    assert not torch.equal(kept["one-shot"][-1], kept["sequential"][-1])


def test_offloaded_blocks_that_share_keys_and_values_are_refused(
    windows: Windows, tmp_path: Path
) -> None:
    """What a block passes on beside its output is in no file to go on from."""
    tiny_model(SHARING, blocks=4).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PrunerZeroError, match="more than their output: leave out --offload"):
        load_offloaded(tmp_path).block_calls(windows.tokens)
