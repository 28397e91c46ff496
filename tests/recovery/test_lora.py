"""Masked LoRA: the ordinary gradient through the mask, and a merge that revives nothing."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from pruner_zero.models import find_matrices, next_token_loss, parameters_of
from pruner_zero.recovery.lora import MaskedAdapters
from tests.recovery.conftest import pruned_model
from tests.tiny_models import ARCHITECTURES, tiny_windows

RANK, ALPHA = 3, 12.0


def adapters_of(model: torch.nn.Module) -> list[MaskedAdapters]:
    """Adapters of all matrices, their B filled, so that every product counts."""
    matrices = find_matrices(model)
    generator = torch.Generator().manual_seed(5)
    adapters = [
        MaskedAdapters(
            parameter,
            [matrix for matrix in matrices if matrix.parameter is parameter],
            rank=RANK,
            alpha=ALPHA,
            generator=generator,
        )
        for parameter in parameters_of(matrices).values()
    ]
    for adapter in adapters:
        for name, tensor in adapter.tensors.items():
            if name.endswith("lora_B"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return adapters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_those_of_the_masked_product(architecture: str) -> None:
    language_model, zeros = pruned_model(architecture)
    model, window = language_model.model, tiny_windows(1)
    matrices = find_matrices(model)
    before = {matrix.name: matrix.weight.clone() for matrix in matrices}
    adapters = adapters_of(model)
    # Autograd through a model whose weights are written out as W + mask * scale * B A.
    leaves = {
        name: tensor.clone().requires_grad_()
        for adapter in adapters
        for name, tensor in adapter.tensors.items()
    }
    stacks: dict[str, list[Tensor]] = {}
    for matrix in matrices:
        product = leaves[f"{matrix.name}.lora_B"] @ leaves[f"{matrix.name}.lora_A"]
        merged = before[matrix.name] + (before[matrix.name] != 0) * product * (ALPHA / RANK)
        stacks.setdefault(matrix.parameter_name, []).append(
            merged.T if matrix.transposed else merged
        )
    values = {
        name: torch.stack(parts) if len(parts) > 1 or parameter.ndim == 3 else parts[0]
        for (name, parts), parameter in zip(
            stacks.items(), parameters_of(matrices).values(), strict=True
        )
    }
    logits = functional_call(model, values, (window,), {"use_cache": False}).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, window[0, 1:]).backward()
    for adapter in adapters:
        adapter.write()
    for name, parameter in parameters_of(matrices).items():
        torch.testing.assert_close(parameter.data, values[name].detach())
        assert not parameter.data[zeros[name]].any()
    next_token_loss(model, window).backward()
    for adapter in adapters:
        if adapter.parameter.grad is not None:
            adapter.pull(adapter.parameter.grad)
        for name, tensor in adapter.tensors.items():
            expected = leaves[name].grad
            assert expected is not None
            torch.testing.assert_close(tensor.grad, expected, rtol=1e-4, atol=1e-6)
            assert adapter.matrices[0].expert is not None or expected.any(), name


def test_at_first_nothing_is_added_and_A_is_drawn_as_usual() -> None:  # noqa: N802
    language_model, _ = pruned_model()
    matrix = find_matrices(language_model.model)[0]
    before = matrix.parameter.data.clone()
    adapters = MaskedAdapters(
        matrix.parameter, [matrix], rank=64, alpha=1, generator=torch.Generator()
    )
    adapters.write()
    assert torch.equal(matrix.parameter.data, before)
    A = adapters.tensors[f"{matrix.name}.lora_A"]
    bound = 1 / math.sqrt(matrix.weight.shape[1])
    assert A.abs().max() <= bound
    assert A.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_the_ordinary_merge_fills_the_zeros() -> None:
    """PEFT's own layers: same adapter, same sum, and after merging no zero is left."""
    peft = pytest.importorskip("peft")
    language_model, zeros = pruned_model()
    model, window = language_model.model, tiny_windows(1)
    matrix = next(
        candidate for candidate in find_matrices(model) if candidate.name.endswith("0.mlp.up_proj")
    )
    places = zeros[matrix.parameter_name]
    assert places.float().mean() == 0.5
    # Without zeros the mask keeps all, and ours is the ordinary adapter.
    matrix.parameter.data[places] = 0.01
    weight = matrix.weight.clone()
    ours = MaskedAdapters(
        matrix.parameter,
        [matrix],
        rank=RANK,
        alpha=ALPHA,
        generator=torch.Generator().manual_seed(0),
    )
    A, B = ours.tensors.values()
    B.copy_(torch.randn(B.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    ours.write()
    next_token_loss(model, window).backward()
    assert matrix.parameter.grad is not None
    ours.pull(matrix.parameter.grad)
    merged = matrix.weight.clone()

    matrix.weight.copy_(weight)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layers.0.mlp.up_proj"])
    wrapped = peft.get_peft_model(model, config)
    layer = wrapped.base_model.model.model.layers[0].mlp.up_proj
    layer.lora_A["default"].weight.data.copy_(A)
    layer.lora_B["default"].weight.data.copy_(B)
    next_token_loss(wrapped, window).backward()
    torch.testing.assert_close(A.grad, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(B.grad, layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-6)
    plain = wrapped.merge_and_unload().model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(plain.data, merged)
    assert (plain - weight)[places].bool().float().mean() > 0.99
