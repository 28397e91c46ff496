"""Whole blocks go by influence, and the model that is left loads anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.prune_result import PruneResult
from pruner_zero.report.page import report
from pruner_zero.structure.blocks import Blocks, drop_blocks
from tests.pruning.conftest import language_model
from tests.structure.statistics import statistic
from tests.structure.test_couplings import logits
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows, windows_of

DEPTH = 6
SUPPORTED = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"),
    *("phi3", "falcon", "mixtral", "qwen3_moe"),
)
WITH_BIASES = ("opt", "gpt2", "gpt_neox", "bloom", "gpt_oss")
SMALL: dict[str, Any] = {"structure": "blocks", "sparsity": 0.34, "windows": 3, "seqlen": 24}


def pruned(model: Any, text: str, **settings: Any) -> PruneResult:
    tokenizer = tiny_tokenizer() if isinstance(model, PreTrainedModel) else None
    return prune(model, tokenizer=tokenizer, calibration=[text], **{**SMALL, **settings})


def influence_of(model: LanguageModel, tokens: torch.Tensor) -> list[float]:
    """The influence of every block; all matrices of a block have the same."""
    values: dict[int, set[float]] = {}
    collected = statistic(model, tokens, "influence")
    for matrix in find_matrices(model.model):
        values.setdefault(matrix.block, set()).add(float(collected[matrix.name]))
    assert all(len(of_block) == 1 for of_block in values.values())
    return [of_block.pop() for of_block in values.values()]


@torch.no_grad()
def masked(architecture: str, dropped: list[int]) -> torch.Tensor:
    """The logits of a model whose blocks `dropped` have only zeros in their linear maps."""
    model = tiny_model(architecture, blocks=DEPTH)
    for matrix in find_matrices(model):
        if matrix.block in dropped:
            matrix.weight.zero_()
    return logits(model)


def test_influence_is_the_mean_over_tokens_of_one_minus_the_cosine() -> None:
    model, tokens = language_model("llama", blocks=3), tiny_windows()
    with torch.no_grad():
        states = model.model.model(tokens, output_hidden_states=True).hidden_states
    # The last state has passed the final norm.
    expected = [
        1 - float(cosine_similarity(states[i], states[i + 1], dim=-1).mean()) for i in range(2)
    ]
    assert influence_of(model, tokens)[:2] == pytest.approx(expected, abs=1e-5)


def test_blocks_of_least_influence_go_but_never_the_first_or_the_last() -> None:
    model, tokens = language_model("llama", blocks=DEPTH), tiny_windows()
    with torch.no_grad():
        # These leave almost everything as it is.
        for index in (0, 3, 4, DEPTH - 1):
            for parameter in find_blocks(model.model)[index].parameters():
                parameter.mul_(0.1)
    scores = statistic(model, tokens, "influence")
    chosen = Blocks(0.34, folds=False).decide(model, windows_of(tokens), scores)
    assert chosen.dropped == (3, 4)
    influence = influence_of(model, tokens)
    assert list(chosen.influence) == sorted(range(1, DEPTH - 1), key=influence.__getitem__)[:2]
    assert chosen.influence == {index: influence[index] for index in chosen.influence}


@pytest.mark.parametrize(("share", "gone"), [(0.999, 1), (0.76, 2), (0.65, 3)])
def test_the_fewest_blocks_that_reach_the_parameters_are_dropped(
    share: float, gone: int, prose: str
) -> None:
    model = tiny_model("llama", blocks=DEPTH)
    dense = model.num_parameters()
    block = sum(parameter.numel() for parameter in find_blocks(model)[0].parameters())
    result = pruned(model, prose, sparsity=None, parameters=share)
    assert result.parameters == (dense, dense - gone * block)
    assert dense - gone * block <= share * dense < dense - (gone - 1) * block
    cut = result.recipe.cut
    assert isinstance(cut, Blocks)
    by_share = pruned(tiny_model("llama", blocks=DEPTH), prose, sparsity=gone / DEPTH)
    assert isinstance(by_share.recipe.cut, Blocks)
    assert len(cut.dropped) == gone
    assert cut.influence == by_share.recipe.cut.influence


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_dropping_blocks_is_setting_their_matrices_to_zero(architecture: str) -> None:
    """For a while, after which they come back, and for good."""
    model = tiny_model(architecture, blocks=DEPTH)
    before, blocks, config = logits(model), find_blocks(model), model.config.to_dict()
    expected = masked(architecture, [1, 2])
    with Blocks(0.5, dropped=(1, 2)).undone(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert [*find_blocks(model)] == [*blocks]
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), before)
    drop_blocks(model, [1, 2])
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert model.config.num_hidden_layers == DEPTH - 2


def test_an_odd_run_of_blocks_keeps_the_kind_of_each_that_stays() -> None:
    """Made anew from its pattern, the list would have given later blocks the other kind."""
    model = tiny_model("gemma3", blocks=DEPTH)
    kinds = list(model.config.layer_types)
    drop_blocks(model, [1, 4])
    assert model.config.layer_types == [kinds[index] for index in (0, 2, 3, 5)]
    torch.testing.assert_close(logits(model), masked("gemma3", [1, 4]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"distill": 2}], ids=str)
def test_the_record_and_the_card_name_the_dropped_blocks(
    settings: dict[str, Any], prose: str, tmp_path: Path
) -> None:
    result = pruned(tiny_model("llama", blocks=DEPTH), prose, output=tmp_path / "out", **settings)
    before, after = result.parameters
    assert len(find_blocks(result.language_model.model)) == DEPTH - 2
    record = json.loads((tmp_path / "out/pruning.json").read_text())
    first, second = sorted(map(int, record["block_influence"]))
    into = [str(index - 1) for index in (first, second) if index - 1 != first]
    went = f"33.33% of the blocks: {first}, {second}"
    assert record["pattern"] == f"{went}, folded into {', '.join(into)}"
    assert list(record["folded"]) == into
    assert all(0 <= left < 1 for left in record["folded"].values())
    assert record["expression"] is None
    assert {entry["block"] for entry in record["matrices"] if entry["zeros"]} == {first, second}
    assert result.sparsity == pytest.approx(1 / 3)
    assert result.caption().endswith("parameters are left, by block influence")
    card = (tmp_path / "out/README.md").read_text()
    assert f"It has {after:,} of {before:,} parameters" in card
    assert "metric" not in card
    assert not (tmp_path / "out/metric.json").exists()
    page = report([tmp_path / "out"], tmp_path / "report.html").read_text()
    assert ", by block influence, 1 minus the cosine" in page


def test_nothing_is_folded_without_an_update(prose: str) -> None:
    model, dense = (tiny_model("llama", blocks=DEPTH) for _ in range(2))
    result = pruned(model, prose, update="none")
    cut = result.recipe.cut
    assert isinstance(cut, Blocks)
    assert cut.folded == {}
    drop_blocks(dense, cut.dropped)
    assert torch.equal(logits(model), logits(dense))


@pytest.mark.parametrize("architecture", WITH_BIASES)
def test_blocks_that_add_biases_are_refused(architecture: str, prose: str) -> None:
    model = tiny_model(architecture, blocks=DEPTH)
    with pytest.raises(PrunerZeroError, match=f"of the {architecture} family: even without"):
        pruned(model, prose)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "llama4"])
def test_blocks_whose_kinds_no_configuration_could_tell_are_refused(architecture: str) -> None:
    with pytest.raises(PrunerZeroError, match="its configuration cannot describe those that stay"):
        drop_blocks(tiny_model(architecture, blocks=DEPTH), [0])


def test_blocks_of_a_model_whose_outputs_overflow_are_not_judged() -> None:
    model = tiny_model("llama", blocks=DEPTH)
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.down_proj.weight").fill_(3e38)
    language_model = LanguageModel(model, tiny_tokenizer(), "llama")
    with pytest.raises(PrunerZeroError, match=r"block \d cannot be scored.*--dtype bfloat16"):
        statistic(language_model, tiny_windows(), "influence")


def test_a_list_of_tokens_that_end_a_text_is_no_list_of_blocks() -> None:
    model = tiny_model("llama", blocks=3)
    model.config.eos_token_id = [1, 2, 3]
    drop_blocks(model, [1])
    assert model.config.num_hidden_layers == 2
    assert model.config.eos_token_id == [1, 2, 3]
