"""Updates that aim at the dense model's outputs, and masks of all matrices updated in order."""

from pathlib import Path

import pytest
import torch

from pruner_zero.choices import Mode
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.offload.model import load_offloaded
from pruner_zero.pruning.matrix import total_sparsity
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import Prune, language_model, recipe_of
from tests.pruning.plain import inputs, places
from tests.tiny import tiny_tokenizer
from tests.tiny_models import SHARING, tiny_model


@pytest.mark.parametrize("update", ["exact", "refine+exact", "obs"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gemma3"])
def test_it_keeps_the_zeros_and_stays_finite_on_every_architecture(
    architecture: str, update: str, windows: Windows, pruned_by: Prune
) -> None:
    model = language_model(architecture, blocks=3)
    records = pruned_by(model, f"wanda+asymmetric+{update}").records
    assert total_sparsity(records) == pytest.approx(0.5, abs=0.01)
    assert model.model(windows.tokens).logits.isfinite().all()


def test_the_first_block_has_nothing_to_make_up_for(pruned_by: Prune) -> None:
    weights = {}
    for text in ("wanda+exact", "wanda+asymmetric+exact"):
        model = language_model("llama")
        pruned_by(model, text)
        weights[text] = {matrix.name: matrix.weight for matrix in find_matrices(model.model)}
    for name, weight in weights["wanda+exact"].items():
        asymmetric = weights["wanda+asymmetric+exact"][name]
        if ".0." in name:
            torch.testing.assert_close(asymmetric, weight, rtol=1e-3, atol=1e-3)
        else:
            assert not torch.allclose(asymmetric, weight, rtol=1e-3, atol=1e-3)


def test_the_weights_solve_the_problem_that_was_set(windows: Windows, pruned_by: Prune) -> None:
    """Row by row in the second block: least squares on the inputs that the pruned model gives."""
    dense, model = language_model("llama"), language_model("llama")
    pruned_by(model, "wanda+asymmetric+exact")
    # The inputs of the second block's first matrices do not depend on the block itself.
    name = next(place.name for place in places(model.model) if place.block == 1)
    incoming = inputs(model.model, windows.tokens, 1)[name].double()
    aimed = inputs(dense.model, windows.tokens, 1)[name].double()
    matrix = next(candidate for candidate in find_matrices(model.model) if candidate.name == name)
    before = next(candidate for candidate in find_matrices(dense.model) if candidate.name == name)
    # A quarter of the way from what the dense weights give here to the dense model's output.
    row, target = matrix.weight[0].double(), (aimed + 3 * incoming) / 4 @ before.weight[0].double()
    support = row != 0
    gram = incoming.T @ incoming
    shrunk = gram.diagonal() * 2 * incoming.shape[1] / incoming.shape[0]
    added = (0.01 * gram.diagonal().mean() + shrunk)[support]
    damped = gram[support][:, support] + added.diag()
    right = incoming[:, support].T @ target + added * before.weight[0].double()[support]
    expected = torch.linalg.solve(damped, right)
    torch.testing.assert_close(row[support], expected, rtol=0.02, atol=0.02)


def test_swaps_aim_at_the_dense_outputs_too_and_leave_the_weights_that_stay(
    windows: Windows, pruned_by: Prune
) -> None:
    dense, model, plain = (language_model("llama") for _ in range(3))
    pruned_by(model, "wanda+refine+asymmetric")
    pruned_by(plain, "wanda+refine")
    for place, before in zip(places(model.model), places(dense.model), strict=True):
        kept = place.weight != 0
        assert torch.equal(place.weight, before.weight * kept)
        assert (kept.sum(1) == kept.shape[1] // 2).all()
    name = next(place.name for place in places(model.model) if place.block == 1)
    weight = next(place.weight for place in places(dense.model) if place.name == name)
    incoming, aimed = (inputs(source.model, windows.tokens, 1)[name] for source in (model, dense))
    target = weight.double() @ ((aimed.double() + 3 * incoming.double()) / 4).T

    def apart(masked: LanguageModel) -> float:
        pruned = next(place.weight for place in places(masked.model) if place.name == name)
        return float((target - pruned.double() @ incoming.double().T).square().sum())

    # The first block is the same for both, so the inputs are too.
    assert apart(model) < apart(plain)


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


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(PrunerZeroError, match=r"add \+obs, \+exact or \+refine"):
        recipe_of("wanda+asymmetric")
    with pytest.raises(PrunerZeroError, match="--mode sequential"):
        _ = recipe_of("wanda+asymmetric+exact", "one-shot").order
    assert recipe_of("W@global+asymmetric+obs").order == "sequential"


def test_offloaded_blocks_that_share_keys_and_values_are_refused(
    windows: Windows, tmp_path: Path
) -> None:
    """What a block passes on beside its output is in no file to go on from."""
    tiny_model(SHARING, blocks=4).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PrunerZeroError, match="more than their output: leave out --offload"):
        load_offloaded(tmp_path).block_calls(windows.tokens)
