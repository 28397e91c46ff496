"""Units of every block: which matrices share them, and that cutting them out changes no output."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Coupling, find_blocks, find_couplings, shrink
from tests.tiny_models import HIDDEN, INNER, tiny_model, tiny_windows

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_neox")
KEPT = 32


@torch.no_grad()
def removed(model: PreTrainedModel, couplings: Sequence[Coupling], seed: int = 0) -> None:
    """Set the consumers' columns of all but KEPT random units to zero, others in every block."""
    generator = torch.Generator().manual_seed(seed)
    for coupling in couplings:
        units = torch.randperm(coupling.count, generator=generator)[KEPT:]
        model.get_submodule(coupling.consumer).get_parameter("weight")[:, units] = 0


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(tiny_windows()).logits
    return result


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_every_block_has_its_mlp(architecture: str) -> None:
    model = tiny_model(architecture)
    couplings = find_couplings(model, "channels")
    assert [coupling.block for coupling in couplings] == [0, 1]
    for coupling in couplings:
        consumer = model.get_submodule(coupling.consumer).get_parameter("weight")
        assert consumer.shape == (HIDDEN, INNER) == (HIDDEN, coupling.count)
        assert len(coupling.producers) == (1 if architecture == "gpt_neox" else 2)
        for name in coupling.producers:
            weight = model.get_submodule(name).get_parameter("weight")
            assert weight.shape == (INNER, HIDDEN), name


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_cutting_units_out_is_setting_their_columns_to_zero(architecture: str) -> None:
    model = tiny_model(architecture)
    couplings = find_couplings(model, "channels")
    dense = logits(model)
    removed(model, couplings)
    masked = logits(model)
    assert (masked - dense).abs().max() > 1e-3
    shrink(model, couplings, "channels", KEPT)
    torch.testing.assert_close(logits(model), masked, atol=1e-5, rtol=1e-5)
    assert model.config.intermediate_size == KEPT
    rebuilt = AutoModelForCausalLM.from_config(model.config)
    shapes = {name: value.shape for name, value in rebuilt.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    for block in find_blocks(model):
        for linear in (m for m in block.modules() if isinstance(m, torch.nn.Linear)):
            assert linear.weight.shape == (linear.out_features, linear.in_features)


def test_biases_are_cut_with_their_rows() -> None:
    config = tiny_model("llama").config.to_dict() | {"mlp_bias": True}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    couplings = find_couplings(model, "channels")
    removed(model, couplings)
    masked = logits(model)
    shrink(model, couplings, "channels", KEPT)
    torch.testing.assert_close(logits(model), masked, atol=1e-5, rtol=1e-5)
    mlp = find_blocks(model)[0].get_submodule("mlp")
    lengths = {name: len(value) for name, value in mlp.named_parameters() if value.ndim == 1}
    assert lengths == {"gate_proj.bias": KEPT, "up_proj.bias": KEPT, "down_proj.bias": HIDDEN}


@torch.no_grad()
def test_a_block_with_more_zero_units_keeps_the_first_of_them() -> None:
    model = tiny_model("llama")
    first, second = find_couplings(model, "channels")
    down, other = (model.get_submodule(c.consumer).get_parameter("weight") for c in (first, second))
    down[:, 1:] = 0
    other[:, KEPT:] = 0
    before = down.clone()
    shrink(model, [first, second], "channels", KEPT)
    cut = model.get_submodule(first.consumer).get_parameter("weight")
    assert torch.equal(cut, before[:, :KEPT])


def test_units_that_are_not_zero_are_never_cut() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="has 48 units, not 32"):
        shrink(model, find_couplings(model, "channels"), "channels", KEPT)


@pytest.mark.parametrize(
    "architecture",
    ["phi3", "opt", "gpt2", "bloom", "falcon", "mixtral", "qwen3_moe", "gpt_oss", "llama4"],
)
def test_other_families_are_refused_by_name(architecture: str) -> None:
    with pytest.raises(PrunerZeroError, match=f"of the {architecture}(_text)? family") as caught:
        find_couplings(tiny_model(architecture), "channels")
    assert "\n" not in str(caught.value)


def test_a_width_that_no_configuration_can_say_is_refused() -> None:
    model = tiny_model("llama")
    model.config.intermediate_size = 99
    with pytest.raises(PrunerZeroError, match="as wide as intermediate_size"):
        find_couplings(model, "channels")


def test_a_norm_between_the_linear_maps_is_refused() -> None:
    model = tiny_model("llama")
    find_blocks(model)[1].get_submodule("mlp").norm = torch.nn.RMSNorm(INNER)
    with pytest.raises(PrunerZeroError, match="of the llama family"):
        find_couplings(model, "channels")
