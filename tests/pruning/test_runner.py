"""Pruned models are what plain loops and sorts make them, in both orders of work."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.matrices import find_blocks
from pruner_zero.pruning.checks import check_recipe
from pruner_zero.pruning.matrix import total_sparsity
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import Prune, language_model, recipe_of
from tests.pruning.plain import (
    SCORES,
    blocks_of,
    gradients,
    group_zeros,
    in_order,
    inputs,
    places,
    prune_plainly,
    row_zeros,
)
from tests.sparsity.reference import (
    keep_groups,
    keep_matrices,
    obs_columns,
    sparsegpt_choosing,
)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_models(model: nn.Module, expected: nn.Module) -> None:
    for (name, tensor), wanted in zip(
        model.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, wanted), name


@pytest.mark.parametrize("metric", sorted(SCORES))
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_rows_are_pruned_as_a_plain_loop_prunes_them(
    architecture: str, metric: str, windows: Windows, pruned_by: Prune
) -> None:
    ours, plain = language_model(architecture), language_model(architecture)
    records = pruned_by(ours, metric, sparsity=0.4).records
    masks = prune_plainly(
        plain.model,
        windows.tokens,
        SCORES[metric],
        lambda scores: row_zeros(scores, 0.4),
    )
    assert_equal_models(ours.model, plain.model)
    assert {record.name: record.zeros for record in records} == {
        name: int(mask.sum()) for name, mask in masks.items()
    }
    assert [record.note for record in records] == [None] * len(records)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_n_of_m_is_pruned_as_a_plain_loop_prunes_it(
    architecture: str, windows: Windows, pruned_by: Prune
) -> None:
    ours, plain = language_model(architecture), language_model(architecture)
    records = pruned_by(ours, "wanda", pattern="3:8").records
    prune_plainly(
        plain.model,
        windows.tokens,
        SCORES["wanda"],
        lambda scores: group_zeros(scores, 3, 8),
    )
    assert_equal_models(ours.model, plain.model)
    assert total_sparsity(records) == 3 / 8


def test_updates_of_dense_inputs_and_of_those_of_pruned_blocks_differ(pruned_by: Prune) -> None:
    dense, sequential = language_model("llama"), language_model("llama")
    pruned_by(dense, "wanda+obs", dense_inputs=True)
    pruned_by(sequential, "wanda+obs")
    assert dense.fingerprint() != sequential.fingerprint()


@pytest.mark.parametrize("metric", ["wanda", "pruner-zero"])
def test_global_competition_is_one_stable_sort_over_everything(
    metric: str, windows: Windows, pruned_by: Prune
) -> None:
    ours, plain = language_model("llama"), language_model("llama")
    records = pruned_by(ours, f"{metric}@global", sparsity=0.37).records
    every = places(plain.model)
    G = gradients(plain.model, windows.tokens)
    tokens: dict[str, Tensor] = {}
    for index in range(2):
        tokens |= inputs(plain.model, windows.tokens, index)
    scores = [
        SCORES[metric](
            place.weight.abs(),
            tokens[place.name].norm(dim=0, keepdim=True) / len(windows) ** 0.5,
            G[place.name],
        )
        for place in every
    ]
    for place, keep in zip(every, keep_matrices(scores, 0.37), strict=True):
        place.weight.masked_fill_(~keep, 0)
    assert_equal_models(ours.model, plain.model)
    weights = sum(place.weight.numel() for place in every)
    assert sum(record.zeros for record in records) == int(weights * 0.37)
    assert len({record.sparsity for record in records}) > 1


def test_the_matrix_scope_gives_each_matrix_its_share(pruned_by: Prune) -> None:
    ours = language_model("llama")
    records = pruned_by(ours, "magnitude@matrix", sparsity=0.3).records
    for place, record in zip(places(language_model("llama").model), records, strict=True):
        [keep] = keep_matrices([place.weight.abs()], 0.3)
        assert record.zeros == int((~keep).sum()) == int(place.weight.numel() * 0.3)


@pytest.mark.parametrize("dense_inputs", [True, False])
@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_sparsegpt_is_the_column_by_column_textbook(
    pattern: str, dense_inputs: bool, windows: Windows, pruned_by: Prune
) -> None:
    ours, plain = language_model("llama"), language_model("llama")
    options: dict[str, Any] = {"pattern": pattern} if pattern == "2:4" else {}
    width = 4 if options else 128

    def keep(scores: Tensor, _column: int) -> Tensor:
        return keep_groups(scores, 4, 2) if width == 4 else keep_matrices([scores], 0.5)[0]

    pruned_by(ours, "sparsegpt", dense_inputs=dense_inputs, **options)
    for place, x in in_order(plain.model, windows.tokens, dense_inputs):
        gram = 2 / len(windows) * x.T @ x
        place.weight.copy_(sparsegpt_choosing(place.weight, gram, width, keep)[0])
    for pruned, expected in zip(places(ours.model), places(plain.model), strict=True):
        torch.testing.assert_close(pruned.weight, expected.weight, atol=1e-4, rtol=1e-4)
        assert torch.equal(pruned.weight == 0, expected.weight == 0), pruned.name


def test_any_metric_takes_the_update_under_its_own_mask(windows: Windows, pruned_by: Prune) -> None:
    ours, plain = language_model("gpt2"), language_model("gpt2")
    records = pruned_by(ours, "wanda+obs", dense_inputs=True).records
    masks = prune_plainly(
        language_model("gpt2").model,
        windows.tokens,
        SCORES["wanda"],
        lambda scores: row_zeros(scores, 0.5),
    )
    for mine, dense in zip(places(ours.model), places(plain.model), strict=True):
        x = inputs(plain.model, windows.tokens, dense.block)[dense.name]
        expected = obs_columns(dense.weight, x.T @ x, ~masks[dense.name])
        torch.testing.assert_close(mine.weight, expected.float(), atol=1e-4, rtol=1e-4)
        assert torch.equal(mine.weight == 0, masks[dense.name])
    assert {record.damping for record in records} == {0.01}


def test_the_update_follows_the_masks_of_a_global_competition(pruned_by: Prune) -> None:
    masked, updated = language_model("llama"), language_model("llama")
    pruned_by(masked, "wanda@global")
    pruned_by(updated, "wanda@global+obs")
    differ = False
    for before, after in zip(places(masked.model), places(updated.model), strict=True):
        assert torch.equal(before.weight == 0, after.weight == 0)
        differ = differ or not torch.equal(before.weight, after.weight)
    assert differ


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_only_what_is_included_and_not_excluded_changes(method: str, pruned_by: Prune) -> None:
    ours = language_model("llama", blocks=3)
    dense = state(ours.model)
    chosen = recipe_of(method)
    include, exclude = ("*.mlp.*", "*.1.self_attn.*"), ("*.1.mlp.*", "*.2.*")
    matrices = check_recipe(ours, chosen, include, exclude)
    records = pruned_by(ours, chosen, matrices=matrices).records
    changed = {
        name.removesuffix(".weight")
        for name, tensor in ours.model.state_dict().items()
        if not torch.equal(tensor, dense[name])
    }
    mlp = {f"model.layers.0.mlp.{kind}_proj" for kind in ("gate", "up", "down")}
    attention = {f"model.layers.1.self_attn.{kind}_proj" for kind in "qkvo"}
    assert changed == mlp | attention == {record.name for record in records}


def test_a_metric_that_cannot_rank_names_the_matrix(pruned_by: Prune) -> None:
    ours = language_model("llama")
    with pytest.raises(
        PrunerZeroError, match=r"W - W cannot score model\.layers\.0\.self_attn\.q_proj: all "
    ):
        pruned_by(ours, "W - W")


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_pruned_weights_are_positive_zeros_in_bfloat16_too(
    architecture: str, pruned_by: Prune
) -> None:
    ours = language_model(architecture)
    ours.model.to(torch.bfloat16)
    with torch.no_grad():
        places(ours.model)[0].weight[0] = -0.0
    records = pruned_by(ours, "gblm+obs").records
    for place, record in zip(places(ours.model), records, strict=True):
        zeros = place.weight[place.weight == 0]
        assert not torch.signbit(zeros).any()
        assert record.zeros == len(zeros)
        assert place.weight.dtype == torch.bfloat16


def test_the_blocks_of_a_plain_loop_are_the_blocks_of_the_model() -> None:
    # Guards the reference itself.
    for architecture in ("llama", "gpt2", "mixtral"):
        model = language_model(architecture).model
        assert list(blocks_of(model)[1]) == find_blocks(model)


@pytest.mark.parametrize(
    "name", ["model.layers.1.input_layernorm.weight", "model.norm.weight", "lm_head.weight"]
)
def test_a_parameter_that_holds_nan_is_named_before_anything_is_done(name: str) -> None:
    ours = language_model("llama")
    with torch.no_grad():
        ours.model.get_parameter(name).view(-1)[0] = torch.nan
    method = recipe_of("magnitude")
    with pytest.raises(PrunerZeroError, match=rf"^{re.escape(name)} has 1 weights that are NaN"):
        check_recipe(ours, method)


def test_nan_in_a_matrix_that_is_left_out_is_no_obstacle() -> None:
    ours = language_model("llama")
    with torch.no_grad():
        ours.model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = torch.nan
    method = recipe_of("magnitude")
    with pytest.raises(PrunerZeroError, match="exclude the matrix"):
        check_recipe(ours, method)
    assert len(check_recipe(ours, method, exclude=["*.1.mlp.up_proj"])) == 13
