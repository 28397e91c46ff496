"""Blocks and matrices: all linear maps inside the decoder blocks, seen as (out, in)."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from pruner_zero.models.matrices import Matrix, check_weights, find_blocks, find_matrices
from tests.models.expected import expected_matrices
from tests.text.refusals import refusal
from tests.tiny_models import ARCHITECTURES, FUSED_EXPERTS, tiny_model, tiny_windows

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def named(matrices: list[Matrix], ending: str) -> Matrix:
    return next(matrix for matrix in matrices if matrix.name.endswith(ending))


@every_architecture
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_blocks_are_found_in_order(architecture: str, blocks: int) -> None:
    model = tiny_model(architecture, blocks=blocks)
    modules = find_blocks(model)
    assert len(modules) == blocks
    names = [name for name, module in model.named_modules() if module in modules]
    assert [name.rsplit(".", 1)[1] for name in names] == [str(index) for index in range(blocks)]


@every_architecture
def test_the_matrices_are_the_linear_maps_inside_the_blocks_block_by_block(
    architecture: str,
) -> None:
    model = tiny_model(architecture)
    matrices = find_matrices(model)
    shapes = {matrix.name: tuple(matrix.weight.shape) for matrix in matrices}
    assert shapes == expected_matrices(architecture)
    assert len(matrices) == len(shapes)
    assert [matrix.block for matrix in matrices] == sorted(matrix.block for matrix in matrices)
    for matrix in matrices:
        assert matrix.name.endswith(f".{matrix.block}.{matrix.local_name}")
        assert model.get_parameter(matrix.parameter_name) is matrix.parameter
    addresses = {matrix.parameter.data_ptr() for matrix in matrices}
    assert model.get_input_embeddings().weight.data_ptr() not in addresses
    assert model.get_output_embeddings().weight.data_ptr() not in addresses


@every_architecture
def test_a_module_multiplies_by_the_weight_of_its_matrix(architecture: str) -> None:
    model = tiny_model(architecture)
    calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def remember(module: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        # llama4's router returns its logits second; falcon adds to an output in place.
        product = output[1] if isinstance(output, tuple) else output
        calls[module] = (inputs[0], product.clone())

    plain = [matrix for matrix in find_matrices(model) if matrix.expert is None]
    for matrix in plain:
        model.get_submodule(matrix.name).register_forward_hook(remember)
    with torch.no_grad():
        model(tiny_windows(1))
        for matrix in plain:
            module = model.get_submodule(matrix.name)
            assert isinstance(module, (nn.Linear, Conv1D))
            incoming, outgoing = calls[module]
            product = incoming @ matrix.weight.T
            if module.bias is not None:
                product = product + module.bias
            torch.testing.assert_close(product, outgoing, rtol=1e-5, atol=1e-5)


@every_architecture
@torch.no_grad()
def test_writing_to_a_weight_changes_what_the_model_says(architecture: str) -> None:
    model = tiny_model(architecture)
    windows = tiny_windows(3, 40)  # enough for every expert to be chosen
    before = model(windows).logits
    for matrix in find_matrices(model):
        kept = matrix.weight.clone()
        matrix.weight.zero_()
        assert not torch.equal(model(windows).logits, before), matrix.name
        matrix.weight.copy_(kept)
    assert torch.equal(model(windows).logits, before)


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_next", "afmoe"])
def test_what_chooses_experts_is_not_pruned_and_a_shared_expert_is(family: str) -> None:
    """The shared expert is as narrow as there are experts, so that widths alone do not tell."""
    count = 4
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 64}
    experts = {"num_experts": count, "moe_intermediate_size": count, "num_dense_layers": 0}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    shared = {"shared_expert_intermediate_size": count}
    config = AutoConfig.for_model(family, **sizes, **experts, **layers, **shared)
    with torch.device("meta"):
        matrices = find_matrices(AutoModelForCausalLM.from_config(config))
    kinds = {matrix.local_name for matrix in matrices if "self_attn" not in matrix.name}
    shared_expert = "mlp.shared_experts" if family == "afmoe" else "mlp.shared_expert"
    of_experts = {
        f"mlp.experts.{name}[{i}]" for name in ("gate_up_proj", "down_proj") for i in range(count)
    }
    of_shared = {f"{shared_expert}.{name}_proj" for name in ("gate", "up", "down")}
    assert {kind for kind in kinds if kind.startswith("mlp.")} == of_experts | of_shared


def test_include_and_exclude_are_shell_patterns_over_names() -> None:
    model = tiny_model("llama")
    kinds = {matrix.local_name for matrix in find_matrices(model, ["*.mlp.*"], ["*.down_proj"])}
    assert kinds == {"mlp.gate_proj", "mlp.up_proj"}
    first = find_matrices(model, ["model.layers.[0-0].*"])
    assert {matrix.block for matrix in first} == {0}
    both = find_matrices(model, ["*.q_proj", "*.k_proj"])
    assert len(both) == 4


@pytest.mark.parametrize("architecture", FUSED_EXPERTS)
def test_the_name_of_an_expert_matches_itself(architecture: str) -> None:
    # Its brackets would mean a set of characters otherwise.
    model = tiny_model(architecture)
    for matrix in find_matrices(model):
        assert [selected.name for selected in find_matrices(model, [matrix.name])] == [matrix.name]
    assert len(find_matrices(model, ["*.down_proj[[]3]"])) == len(
        find_matrices(model, ["*.down_proj[3]"])
    )


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused_with_an_example(option: str) -> None:
    model = tiny_model("llama")
    message = refusal(lambda: find_matrices(model, **{option: ["*.mpl.*"]}))
    assert "'*.mpl.*'" in message
    assert "model.layers.0.self_attn.q_proj" in message


def test_a_model_without_blocks_or_nothing_to_prune_is_refused() -> None:
    assert "Linear" in refusal(lambda: find_blocks(nn.Linear(2, 2)))
    model = tiny_model("llama")
    assert "--exclude" in refusal(lambda: find_matrices(model, exclude=["*"]))


def test_quantized_weights_are_refused() -> None:
    matrices = find_matrices(tiny_model("llama"))
    matrices[2].parameter.requires_grad_(False)
    matrices[2].parameter.data = matrices[2].parameter.data.to(torch.int8)
    message = refusal(lambda: check_weights(matrices))
    assert message.startswith(f"{matrices[2].name} is quantized: give the model with its weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("architecture", "ending"),
    [("llama", "1.mlp.up_proj"), ("gpt_oss", "1.mlp.experts.down_proj[3]")],
)
def test_a_weight_that_is_no_number_is_named(architecture: str, ending: str, value: float) -> None:
    matrices = find_matrices(tiny_model(architecture))
    check_weights(matrices)
    named(matrices, ending).weight[1, 2] = value
    message = refusal(lambda: check_weights(matrices))
    assert f"model.layers.{ending} has 1 weights" in message
