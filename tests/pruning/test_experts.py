"""Experts that no token reaches are pruned by magnitude, with a note."""

from dataclasses import replace

import pytest
import torch

from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.models.block_calls import run_block
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.pruning.matrix import total_sparsity
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import Prune, language_model
from tests.pruning.plain import (
    places,
    row_zeros,
)
from tests.sparsity.reference import keep_matrices
from tests.tiny import Notes


@pytest.fixture(scope="module")
def few_tokens(windows: Windows) -> Windows:
    """Three tokens reach at most six of the eight experts of a block.

    Of two, the one that has a loss attends to itself alone: queries and keys have no gradient.
    """
    return replace(windows, tokens=windows.tokens[:1, :3])


@pytest.mark.parametrize("dense_inputs", [True, False])
@pytest.mark.parametrize(
    "method", ["wanda", "pruner-zero", "sparsegpt-score", "sparsegpt", "ria+obs", "W * O"]
)
def test_an_expert_no_token_reaches_is_pruned_by_magnitude_and_says_so(
    method: str, dense_inputs: bool, few_tokens: Windows, pruned_by: Prune
) -> None:
    ours, dense, heard = language_model("mixtral"), language_model("mixtral"), Notes()
    with reported_to(heard):
        records = pruned_by(ours, method, dense_inputs=dense_inputs, on=few_tokens).records
    silent = [record for record in records if record.note]
    assert silent
    weights = {place.name: place.weight for place in places(ours.model)}
    before = {place.name: place.weight for place in places(dense.model)}
    for record in silent:
        assert ".experts." in record.name
        assert record.note is not None
        assert record.note.endswith("; pruned by magnitude")
        assert any(record.name in remark and record.note in remark for remark in heard.lines)
        W = before[record.name].abs()
        if method == "sparsegpt":
            [keep] = keep_matrices([W], 0.5)
        else:
            keep = ~row_zeros(W, 0.5)
        assert torch.equal(weights[record.name], before[record.name].masked_fill(~keep, 0))
        assert record.sparsity == 0.5


def test_an_unreached_expert_keeps_its_share_under_global_competition(
    few_tokens: Windows, pruned_by: Prune
) -> None:
    ours = language_model("mixtral")
    records = pruned_by(ours, "wanda@global", on=few_tokens).records
    silent = [record for record in records if record.note]
    assert silent
    assert {record.sparsity for record in silent} == {0.5}
    assert total_sparsity(records) == 0.5


def reached_in(model: LanguageModel, windows: Windows, block: int) -> set[str]:
    """The matrices of the experts of one block that a token of `model` reaches."""
    calls, blocks = model.block_calls(windows.tokens), find_blocks(model.model)
    hidden = list(calls.hidden)
    for index in range(block):
        rest = calls.arguments[index]
        hidden = [run_block(blocks[index], x, r) for x, r in zip(hidden, rest, strict=True)]
    experts = find_matrices(model.model, include=[f"*.{block}.*experts*"])
    statistics, _ = collect_inputs(blocks[block], experts, hidden, calls.arguments[block])
    return {name for name, values in statistics.items() if values["X"].any()}


@pytest.mark.parametrize("method", ["wanda+obs", "wanda@global+obs"])
@torch.no_grad()
def test_an_expert_that_only_the_dense_model_reaches_keeps_its_dense_weights_under_its_mask(
    method: str, few_tokens: Windows, pruned_by: Prune
) -> None:
    ours, dense, halfway = (language_model("mixtral", seed=5) for _ in range(3))
    records = pruned_by(ours, method, on=few_tokens, sparsity=0.95).records
    # The second block is observed while the first block alone is pruned.
    find_blocks(halfway.model)[0].load_state_dict(find_blocks(ours.model)[0].state_dict())
    lost = reached_in(dense, few_tokens, 1) - reached_in(halfway, few_tokens, 1)
    assert lost
    weights = {place.name: place.weight for place in places(ours.model)}
    before = {place.name: place.weight for place in places(dense.model)}
    for record in records:
        if record.name in lost:
            weight = weights[record.name]
            assert weight.any()
            assert torch.equal(weight, before[record.name].masked_fill(weight == 0, 0))
            assert record.note is not None
            consequence = "only its mask is applied" if "@" in method else "pruned by magnitude"
            assert record.note == f"zero on the calibration text: X and XᵀX; {consequence}"
