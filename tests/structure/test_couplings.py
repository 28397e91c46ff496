"""Units of every block: which matrices share them, and that cutting them out changes no output."""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.couplings import Coupling, find_couplings
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices, size_of
from pruner_zero.structure.units import EqualWidths
from tests.tiny_models import ARCHITECTURES, HIDDEN, INNER, VOCABULARY, tiny_model, tiny_windows

SUPPORTED: dict[Structure, tuple[str, ...]] = {
    "channels": ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox"),
    "heads": (
        *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"),
        *("mixtral", "qwen3_moe", "llama4"),
    ),
}
CASES = [(kind, architecture) for kind, several in SUPPORTED.items() for architecture in several]
OTHERS = [
    (kind, name)
    for kind, several in SUPPORTED.items()
    for name in ARCHITECTURES
    if name not in several
]
KEPT: dict[Structure, int] = {"channels": 32, "heads": 1}


def fitted(couplings: Sequence[Coupling], structure: Structure, kept: int) -> EqualWidths:
    """The cut by which `kept` units of each coupling stay."""
    return EqualWidths(0.5, structure, couplings=tuple(couplings), kept=(kept,) * len(couplings))


@torch.no_grad()
def removed(model: PreTrainedModel, couplings: Sequence[Coupling], kept: int) -> None:
    """Set the consumers' columns of all but `kept` random units to zero, others in every block."""
    generator = torch.Generator().manual_seed(0)
    for coupling in couplings:
        units = torch.randperm(coupling.count, generator=generator)[kept:]
        weight = model.get_submodule(coupling.consumer).get_parameter("weight")
        weight.view(len(weight), coupling.count, -1)[:, units] = 0


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(tiny_windows()).logits
    return result


@pytest.mark.parametrize(("structure", "architecture"), CASES)
def test_cutting_units_out_is_setting_their_columns_to_zero(
    structure: Structure, architecture: str
) -> None:
    model = tiny_model(architecture)
    couplings, kept = find_couplings(model, structure), KEPT[structure]
    dense = logits(model)
    removed(model, couplings, kept)
    masked = logits(model)
    assert (masked - dense).abs().max() > 1e-3
    cut = fitted(couplings, structure, kept)
    predicted = cut.size(model)
    cut.cut(model)
    assert size_of(model) == predicted == (model.num_parameters(), 4 * model.num_parameters())
    torch.testing.assert_close(logits(model), masked, atol=1e-5, rtol=1e-5)
    if structure == "channels":
        assert model.config.intermediate_size == kept
    else:
        config = model.config
        heads = config.num_key_value_heads, config.num_attention_heads, config.head_dim
        assert heads == (kept, 2 * kept, 8)
    rebuilt = AutoModelForCausalLM.from_config(model.config)
    shapes = {name: value.shape for name, value in rebuilt.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    for block in find_blocks(model):
        for linear in (m for m in block.modules() if isinstance(m, torch.nn.Linear)):
            assert linear.weight.shape == (linear.out_features, linear.in_features)


def test_transformers_says_which_numbers_of_heads_load() -> None:
    """LLaMA's width has to be a multiple of the number of heads."""
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=16, num_key_value_heads=8, num_hidden_layers=1,
        intermediate_size=32, vocab_size=VOCABULARY,
    )  # fmt: skip
    model = LanguageModel(AutoModelForCausalLM.from_config(config), None, "tiny")
    with pytest.raises(PrunerZeroError, match=r"choose --sparsity 0\.5, which leaves 4"):
        EqualWidths(0.25, "heads").fit(model)
    assert EqualWidths(0.5, "heads").fit(model).kept == (4,)


def test_biases_are_cut_with_their_rows() -> None:
    config = tiny_model("llama").config.to_dict() | {"mlp_bias": True}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    couplings = find_couplings(model, "channels")
    removed(model, couplings, 32)
    masked = logits(model)
    fitted(couplings, "channels", 32).cut(model)
    torch.testing.assert_close(logits(model), masked, atol=1e-5, rtol=1e-5)
    mlp = find_blocks(model)[0].get_submodule("mlp")
    lengths = {name: len(value) for name, value in mlp.named_parameters() if value.ndim == 1}
    assert lengths == {"gate_proj.bias": 32, "up_proj.bias": 32, "down_proj.bias": HIDDEN}


@torch.no_grad()
def test_a_block_with_more_zero_units_keeps_the_first_of_them() -> None:
    model = tiny_model("llama")
    first, second = find_couplings(model, "channels")
    down, second_down = (
        model.get_submodule(c.consumer).get_parameter("weight") for c in (first, second)
    )
    down[:, 1:] = 0
    second_down[:, 32:] = 0
    before = down.clone()
    fitted([first, second], "channels", 32).cut(model)
    cut = model.get_submodule(first.consumer).get_parameter("weight")
    assert torch.equal(cut, before[:, :32])


@pytest.mark.parametrize("blocks_removed", [2, 1])
@pytest.mark.parametrize("structure", ["channels", "heads"])
def test_units_come_back_when_the_context_ends(structure: Structure, blocks_removed: int) -> None:
    """Also where the second block cannot be cut, after the first was."""
    model = tiny_model("llama")
    couplings, kept = find_couplings(model, structure), KEPT[structure]
    removed(model, couplings[:blocks_removed], kept)
    masked, parameters = logits(model), dict(model.named_parameters())
    config, dense = model.config.to_dict(), size_of(model)[0]
    fails = pytest.raises(ValueError, match="units, not") if blocks_removed == 1 else nullcontext()
    with fails, fitted(couplings, structure, kept).undone(model):
        assert size_of(model)[0] < dense
        torch.testing.assert_close(logits(model), masked, atol=1e-5, rtol=1e-5)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), masked)


def test_weights_from_before_are_freed_although_their_parameters_are_known() -> None:
    model = tiny_model("llama")
    couplings = find_couplings(model, "channels")
    removed(model, couplings, 32)
    known = find_matrices(model)
    fitted(couplings, "channels", 32).cut(model)
    assert [id(m.parameter) for m in find_matrices(model)] == [id(m.parameter) for m in known]
    held = sum(m.parameter.untyped_storage().nbytes() for m in known)
    assert held == sum(m.weight.nbytes for m in find_matrices(model))


@pytest.mark.parametrize(("structure", "architecture"), OTHERS)
def test_other_families_are_refused_by_name(structure: Structure, architecture: str) -> None:
    line = f"--structure {structure} cannot remove any of the {architecture}(_text)? family"
    with pytest.raises(PrunerZeroError, match=line) as caught:
        find_couplings(tiny_model(architecture), structure)
    assert "\n" not in str(caught.value)


def test_a_width_that_no_configuration_can_say_is_refused() -> None:
    model = tiny_model("llama")
    model.config.intermediate_size = 99
    with pytest.raises(PrunerZeroError, match="as wide as intermediate_size"):
        find_couplings(model, "channels")


def test_a_norm_between_the_linear_maps_is_refused() -> None:
    model = tiny_model("llama")
    find_blocks(model)[1].get_submodule("mlp").norm = torch.nn.RMSNorm(INNER)
    find_blocks(model)[0].get_submodule("self_attn").norm = torch.nn.RMSNorm(HIDDEN)
    for structure in SUPPORTED:
        with pytest.raises(PrunerZeroError, match="of the llama family"):
            find_couplings(model, structure)
