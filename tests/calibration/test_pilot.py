"""P: what half of each row, that of the lowest |W|·X, changes in the loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.pilot import PilotSums
from pruner_zero.calibration.statistics import STATISTICS, MaskPriceStatistic
from pruner_zero.models.matrices import Matrix, find_matrices
from tests.calibration.reference import scaled_gradients
from tests.calibration.test_gradients import every_architecture
from tests.calibration.test_output_gradients import distinct_windows, no_weight_learns
from tests.text.refusals import refusal
from tests.tiny_models import tiny_model, tiny_windows


def norms_of(model: PreTrainedModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        matrix.name: 0.1 + torch.rand(1, matrix.weight.shape[1], generator=generator)
        for matrix in find_matrices(model)
    }


def prices(model: PreTrainedModel, windows: Tensor) -> dict[str, Tensor]:
    matrices, norms = find_matrices(model), norms_of(model)
    statistics = collect_gradients(model, matrices, windows, ["P"], norms=norms)
    return {name: of_matrix["P"] for name, of_matrix in statistics.items()}


def pilot(weight: Tensor, norms: Tensor) -> Tensor:
    """What the mask takes away of `weight` (out, in), by a plain sort."""
    gone = torch.zeros_like(weight)
    for row, target in zip(weight, gone, strict=True):
        columns = (row.abs().float() * norms[0]).argsort()[: (len(row) + 1) // 2]
        target[columns] = row[columns]
    return gone


@every_architecture
def test_of_single_predictions_it_is_the_product_with_the_gradient_of_the_weights(
    architecture: str,
) -> None:
    # The loss of two tokens is of the prediction at the first one alone, so that the sum over
    # tokens of d · y is that over weights.
    model, windows = tiny_model(architecture), distinct_windows(6, 2)
    collected, norms = prices(model, windows), norms_of(model)
    gradients = [scaled_gradients(model, window) for window in windows]
    for matrix in find_matrices(model):
        gone = pilot(matrix.weight.detach(), norms[matrix.name]).double()
        total = 0.0
        for of_window in gradients:
            gradient = matrix.view(of_window[matrix.parameter_name]) / 100
            total += abs(float((gone * gradient).sum()))
        expected = torch.tensor([[(total / 12) ** 2 / 2 / gone.numel()]])
        assert collected[matrix.name].dtype == torch.float32
        torch.testing.assert_close(collected[matrix.name], expected, rtol=1e-3, atol=1e-14)


@given(tokens=st.integers(2, 9), width=st.integers(1, 7), seed=st.integers(0, 99))
def test_it_is_the_mean_over_tokens(tokens: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    linear, norms = nn.Linear(width, 3), 0.1 + torch.rand(1, width)
    matrix = Matrix("m", 0, linear.get_parameter("weight"), "weight")
    sums = PilotSums([matrix], {"P": MaskPriceStatistic()}, {"m": norms}, tokens)
    windows = [torch.randn(1, tokens, width) for _ in range(2)]
    total, gone = 0.0, pilot(linear.weight.detach(), norms)
    with sums.collecting(linear):
        for window in windows:
            (linear(window).exp().sum() / (tokens - 1)).backward()
            for token in window[0]:
                total += abs(float(linear(token).exp().detach() @ (gone @ token)))
    expected = (total / (2 * tokens)) ** 2 / 2 / gone.numel()
    price = sums.result(2)["P"]["m"]
    assert price.shape == (1, 1)
    torch.testing.assert_close(float(price), expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_no_weight_needs_a_gradient(architecture: str) -> None:
    model = tiny_model(architecture)
    with no_weight_learns(model) as ran:
        collected = prices(model, tiny_windows())
    assert ran
    assert all(price.any() for name, price in collected.items() if "experts" not in name)


def test_it_comes_with_other_statistics_of_the_same_pass() -> None:
    model, windows = tiny_model("llama"), tiny_windows()
    matrices, norms = find_matrices(model), norms_of(model)
    alone = prices(model, windows)
    all_kinds = ["G", "O", "P", "F"]
    together = collect_gradients(model, matrices, windows, all_kinds, norms=norms)
    others = collect_gradients(model, matrices, windows, ["G", "O", "F"])
    for name, values in together.items():
        torch.testing.assert_close(values["P"], alone[name])
        assert all(torch.equal(values[kind], others[name][kind]) for kind in others[name])


@pytest.mark.parametrize("beside", [[], ["G"]])
def test_it_is_of_the_first_tokens_alone(
    beside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = tiny_model("llama"), tiny_windows(4, 10)
    expected = prices(model, windows[:2])
    few = {**STATISTICS, "P": MaskPriceStatistic(20)}
    monkeypatch.setattr("pruner_zero.calibration.statistics.STATISTICS", few)
    matrices, norms = find_matrices(model), norms_of(model)
    collected = collect_gradients(model, matrices, windows, ["P", *beside], norms=norms)
    for name, price in expected.items():
        torch.testing.assert_close(collected[name]["P"], price)


def test_float16_is_refused() -> None:
    model = tiny_model("llama").half()
    assert "without G, O, F and P" in refusal(lambda: prices(model, tiny_windows()))
