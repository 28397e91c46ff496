"""G equals the gradients of plain backward passes, accumulated window by window."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.models.matrices import find_matrices
from tests.calibration.reference import plain_gradients
from tests.text.refusals import refusal
from tests.tiny_models import ARCHITECTURES, FUSED_EXPERTS, tiny_model, tiny_windows

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)

# Architectures that store weights (in, out), by whether the weights are of fused experts.
STORED_IN_OUT = {False: ("gpt2",), True: ("gpt_oss", "llama4")}


def gradients(model: PreTrainedModel, windows: Tensor) -> dict[str, Tensor]:
    statistics = collect_gradients(model, find_matrices(model), windows)
    return {name: values["G"] for name, values in statistics.items()}


@every_architecture
def test_g_equals_the_sum_of_a_plain_loop(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows()
    expected = plain_gradients(model, windows)
    collected = gradients(model, windows)
    for matrix in find_matrices(model):
        G = collected[matrix.name]
        assert G.shape == matrix.weight.shape
        assert G.dtype == torch.float32
        reference = expected[matrix.parameter_name]
        if matrix.expert is not None:
            reference = reference[matrix.expert]
        if architecture in STORED_IN_OUT[matrix.expert is not None]:
            reference = reference.T
        scale = float(reference.max()) or 1.0
        torch.testing.assert_close(G, reference.float(), rtol=1e-4, atol=1e-5 * scale)


def test_the_order_of_windows_changes_nothing() -> None:
    model, windows = tiny_model("llama"), tiny_windows(4)
    in_order, reversed_order = gradients(model, windows), gradients(model, windows.flip(0))
    for name in in_order:
        torch.testing.assert_close(in_order[name], reversed_order[name])


@every_architecture
@pytest.mark.parametrize("kind", ["G", "O"])
def test_flags_gradients_and_hooks_are_left_as_they_were(kind: str, architecture: str) -> None:
    model = tiny_model(architecture)
    parameters = list(model.parameters())
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(index % 3 != 0)
        if index % 2:
            parameter.grad = torch.full_like(parameter, 7.0)
    flags = [parameter.requires_grad for parameter in parameters]
    grads = [parameter.grad for parameter in parameters]
    weights = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():  # as the pipeline calls it
        collect_gradients(model, find_matrices(model), tiny_windows(1), [kind])
    assert not any(module._forward_hooks for module in model.modules())
    assert [parameter.requires_grad for parameter in parameters] == flags
    for parameter, grad, weight in zip(parameters, grads, weights, strict=True):
        assert parameter.grad is grad
        assert grad is None or bool((grad == 7).all())
        assert not parameter._post_accumulate_grad_hooks
        assert torch.equal(parameter, weight)


def test_flags_are_put_back_after_a_failure_too() -> None:
    model = tiny_model("llama")
    model.lm_head.weight.requires_grad_(False)
    with pytest.raises(IndexError):
        gradients(model, torch.full((1, 4), 10_000))
    assert not model.lm_head.weight.requires_grad
    assert model.model.norm.weight.requires_grad
    assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["G", "O"])
def test_only_the_matrices_asked_for_are_watched(kind: str) -> None:
    model = tiny_model("llama")
    wanted = find_matrices(model, include=["*.down_proj"])
    statistics = collect_gradients(model, wanted, tiny_windows(), [kind])
    everything = collect_gradients(model, find_matrices(model), tiny_windows(), [kind])
    assert list(statistics) == [matrix.name for matrix in wanted]
    for name in statistics:
        torch.testing.assert_close(statistics[name][kind], everything[name][kind])


def test_a_bfloat16_model_gives_fp32_g_near_g_of_the_fp32_model() -> None:
    windows = tiny_windows()
    coarse = gradients(tiny_model("llama").bfloat16(), windows)
    fine = gradients(tiny_model("llama"), windows)
    for name, G in coarse.items():
        assert G.dtype == torch.float32
        assert float((G - fine[name]).norm() / fine[name].norm()) < 0.1


def test_float16_is_refused_before_any_work() -> None:
    model = tiny_model("llama").half()

    def fail(*_: object) -> None:
        raise AssertionError("the model was run")

    model.register_forward_pre_hook(fail)
    message = refusal(lambda: gradients(model, tiny_windows()))
    assert "float16" in message
    assert "--dtype bfloat16" in message


@pytest.mark.fault("a gradient or a score that is NaN or infinite")
def test_a_gradient_that_is_no_number_names_its_matrix() -> None:
    model = tiny_model("llama")
    wanted = find_matrices(model)[9]
    wanted.parameter.register_hook(lambda grad: grad * torch.inf)
    message = refusal(lambda: gradients(model, tiny_windows()))
    assert f"the gradient of {wanted.name} is not finite" in message


@pytest.mark.fault("a gradient or a score that is NaN or infinite")
@pytest.mark.parametrize("architecture", FUSED_EXPERTS)
def test_a_gradient_that_is_no_number_names_its_expert(architecture: str) -> None:
    model = tiny_model(architecture)
    wanted = find_matrices(model, include=["*.1.*experts.down_proj*"])
    stack = wanted[0].parameter
    spoilt = torch.zeros_like(stack)
    spoilt[5, 0, 0] = torch.nan
    stack.register_hook(lambda grad: grad + spoilt)
    message = refusal(lambda: collect_gradients(model, wanted, tiny_windows()))
    assert f"the gradient of {wanted[5].name} is not finite" in message


@pytest.mark.parametrize("kind", ["G", "O"])
@pytest.mark.parametrize("architecture", FUSED_EXPERTS)
def test_an_expert_that_no_token_reaches_has_zeros(architecture: str, kind: str) -> None:
    model = tiny_model(architecture)
    experts = find_matrices(model, include=["*.1.*experts*"])
    collected = collect_gradients(model, experts, tiny_windows(1, 2), [kind]).values()
    silent = [values for values in collected if not values[kind].any()]
    assert 8 <= len(silent) < len(experts)
