"""One budget: the units of all kinds that cost the least per parameter go, in any block."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM

from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_sizes import block_sizes, has_code
from pruner_zero.models.couplings import find_couplings
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_blocks, find_matrices, size_of
from pruner_zero.pruning.prune import plan, prune
from pruner_zero.pruning.prune_result import PruneResult
from pruner_zero.structure.budget import Budget
from tests.structure.test_folders import check_loads_alone
from tests.structure.test_tokens import TEXT, byte_level
from tests.structure.test_vocabulary import model as model_of
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows, windows_of

PLAIN: dict[str, Any] = {"reconstruct": 0, "distill": 0, "windows": 3, "seqlen": 24}


def pruned(architecture: str, prose: str, **settings: Any) -> PruneResult:
    model, options = tiny_model(architecture), {**PLAIN, **settings}
    return prune(model, calibration=[prose], tokenizer=tiny_tokenizer(), **options)


@pytest.mark.parametrize(
    ("architecture", "share"), [("llama", 0.9), ("qwen2", 0.94), ("qwen3", 0.9), ("mistral", 0.9)]
)
def test_channels_and_heads_of_all_blocks_compete(
    architecture: str, share: float, prose: str
) -> None:
    most = int(share * size_of(tiny_model(architecture))[0])
    result = pruned(architecture, prose, structure="channels,heads", parameters=most)
    model = result.language_model.model
    assert size_of(model)[0] == result.parameters[1] <= most
    sizes = block_sizes(model.config)
    block: Any
    for block, size in zip(find_blocks(model), sizes, strict=True):
        assert block.mlp.down_proj.in_features == size["intermediate_size"]
        assert size["intermediate_size"] in (32, 48)
        assert block.self_attn.k_proj.out_features == size["num_key_value_heads"] * 8
    assert len({tuple(size.values()) for size in sizes}) > 1
    kept = result.to_json()["kept"]
    assert kept["channels"] == {str(i): s["intermediate_size"] for i, s in enumerate(sizes)}
    assert kept["heads"] == {str(i): s["num_key_value_heads"] for i, s in enumerate(sizes)}


def test_the_channels_that_go_are_those_of_the_least_price_in_the_whole_model(prose: str) -> None:
    model = tiny_model("llama")
    windows = tiny_windows()
    run = plan(model, calibration=[prose], tokenizer=tiny_tokenizer(), structure="channels",
               sparsity=0.3, **PLAIN)  # fmt: skip
    couplings = find_couplings(model, "channels")
    prices = collect_gradients(model, find_matrices(model), windows, ["F"])
    rows = [prices[coupling.consumer]["F"][0].double() for coupling in couplings]
    cut = run.recipe.cut
    assert isinstance(cut, Budget)
    scores = {
        name: values["F"].sqrt() * normalize(model.get_parameter(f"{name}.weight").abs(), dim=0)
        for name, values in prices.items()
    }
    half = replace(cut, multiple=1, sparsity=0.5, parameters=None).fit(run.language_model)
    decided = half.decide(run.language_model, windows_of(windows), scores)
    everything = torch.cat(rows)
    gone = sum(c.count - kept for c, kept in zip(couplings, decided.kept, strict=True))
    assert gone >= sum(coupling.count for coupling in couplings) // 2
    ordered = [row.sort()[0] for row in rows]
    removed = [row[: len(row) - kept] for row, kept in zip(ordered, decided.kept, strict=True)]
    dearest = torch.cat(removed).max()
    for row, kept in zip(ordered, decided.kept, strict=True):
        # A quarter of the channels of a block stays, whatever their price.
        assert kept == len(row) // 4 or row[len(row) - kept] >= dearest * (1 - 1e-6)
    assert decided.price == pytest.approx(torch.cat(removed).sum().item(), rel=1e-6)
    assert gone < len(everything)


@pytest.mark.parametrize("calibration", [TEXT, None])
def test_tokens_compete_too_where_only_a_size_is_named(calibration: str | None) -> None:
    tokenizer = byte_level()
    options = {**PLAIN, "distill": 2, "calibration": calibration}
    with pytest.raises(PrunerZeroError, match="choose --parameters") as caught:
        prune(model_of(len(tokenizer)), tokenizer=tokenizer, parameters=0.5, **options)
    most = int(str(caught.value).split("choose --parameters ")[1].split(",")[0])
    result = prune(model_of(len(tokenizer)), tokenizer=tokenizer, parameters=most, **options)
    model = result.language_model.model
    assert size_of(model)[0] <= most
    described = result.to_json()
    assert described["tokens"] == model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert set(described["kept"]) == {"channels", "heads"}
    assert described["price"] > 0


def test_equal_widths_keep_the_family_as_it_is(prose: str) -> None:
    result = pruned("llama", prose, structure="channels,heads", parameters=0.9, metric="fisher")
    model = result.language_model.model
    assert not has_code(model.config)
    assert len({tuple(size.values()) for size in block_sizes(model.config)}) == 1


def test_a_folder_loads_alone_and_by_this_package_and_can_be_cut_again(
    prose: str, tmp_path: Path
) -> None:
    result = pruned(
        "llama", prose, parameters=0.9, structure="channels,heads", output=tmp_path / "small"
    )
    windows = tiny_windows()
    with torch.no_grad():
        expected = result.language_model.model(windows).logits
    check_loads_alone(tmp_path, {"small": expected})
    loaded = load_model(tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(windows).logits, expected, atol=1e-5, rtol=1e-5)
    again = prune(
        tmp_path / "small",
        calibration=[prose],
        structure="channels,heads",
        parameters=0.97,
        **PLAIN,
    )
    assert again.parameters[1] < again.parameters[0] == result.parameters[1]
    card = (tmp_path / "small" / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert json.loads((tmp_path / "small" / "pruning.json").read_text())["price"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"structure": "channels,heads", "sparsity": 0.5}, "give it alone"),
        ({"parameters": 0.5, "sparsity": 0.5}, "give it alone"),
        ({"structure": "channels,blocks", "parameters": 0.5}, "choose one of channels"),
        ({"structure": "channels", "parameters": 0.01}, "the nearest that can"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    settings: dict[str, Any], said: str, prose: str
) -> None:
    with pytest.raises(PrunerZeroError, match=said) as caught:
        pruned("llama", prose, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "differ"),
    [("gemma2", True), ("gpt_neox", False)],
)
def test_blocks_differ_where_that_was_tried_and_are_equal_elsewhere(
    architecture: str, differ: bool, prose: str, tmp_path: Path
) -> None:
    result = pruned(
        architecture, prose, structure="channels", sparsity=0.15, output=tmp_path / "small"
    )
    model, windows = result.language_model.model, tiny_windows()
    assert has_code(model.config) == differ
    with torch.no_grad():
        loaded = load_model(tmp_path / "small").model(windows).logits
        torch.testing.assert_close(loaded, model(windows).logits, atol=1e-5, rtol=1e-5)


def test_a_family_without_enough_channels_and_heads_is_refused(prose: str) -> None:
    with pytest.raises(PrunerZeroError, match=r"vocabulary \(experts go by --structure experts\)"):
        pruned("mixtral", prose, parameters=0.3)
    with pytest.raises(PrunerZeroError, match="phi3 family has no channels and heads"):
        pruned("phi3", prose, parameters=0.9)


def test_numbers_of_heads_that_the_family_refuses_are_refused_before_any_cut(prose: str) -> None:
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    options = {**PLAIN, "structure": "channels,heads", "metric": "fisher", "parameters": 0.9}
    run = plan(model, calibration=[prose], tokenizer=tiny_tokenizer(), **options)
    cut = run.recipe.cut
    assert isinstance(cut, Budget)
    for heads, refused in ((3, True), (2, False)):
        kept = tuple(heads if c.structure == "heads" else c.count for c in cut.couplings)
        with pytest.raises(PrunerZeroError, match="another size") if refused else nullcontext():
            replace(cut, kept=kept).check_described(model)
