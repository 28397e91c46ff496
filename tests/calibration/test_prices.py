"""F, and the prices of matrices and blocks: what the predictions diverge by if they go."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.prices import PriceSums
from pruner_zero.calibration.statistics import InputPriceStatistic, MatrixStatistics
from pruner_zero.models.couplings import head_slices
from pruner_zero.models.matrices import Matrix, find_matrices
from pruner_zero.models.predictions import compare_logits
from tests.calibration.reference import plain_products
from tests.calibration.test_gradients import every_architecture
from tests.calibration.test_output_gradients import no_weight_learns
from tests.text.refusals import refusal
from tests.tiny_models import HIDDEN, tiny_model, tiny_windows

PRICES = ("F", "matrix_price", "block_price")


def prices(
    model: PreTrainedModel, windows: Tensor, seed: int = 0, kinds: tuple[str, ...] = PRICES
) -> dict[str, MatrixStatistics]:
    return collect_gradients(model, find_matrices(model), windows, kinds, seed=seed)


def half_mean_square(products: Tensor) -> Tensor:
    """(windows, tokens, units) -> (units,)."""
    return products.square().flatten(0, 1).mean(0).float() / 2


@every_architecture
def test_prices_are_half_the_mean_square_over_tokens(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows(3, 14)
    collected, expected = prices(model, windows), plain_products(model, windows)
    slices = head_slices(model)
    for matrix in find_matrices(model):
        of_matrix, products = collected[matrix.name], expected.inputs[matrix.name]
        F, width = of_matrix["F"], matrix.weight.shape[1]
        assert F.shape == (1, width)
        assert F.dtype == torch.float32
        units = slices.get(matrix.name, width)
        reference = half_mean_square(products.unflatten(2, (units, -1)).sum(3))
        close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5 * float(reference.sum()) + 1e-12}
        torch.testing.assert_close(F.view(units, -1).sum(1), reference, **close)
        # A unit's price is spread equally over its columns.
        assert torch.equal(
            F.view(units, -1), F.view(units, -1)[:, :1].expand(units, width // units)
        )
        whole = half_mean_square(products.sum(2, keepdim=True))
        torch.testing.assert_close(of_matrix["matrix_price"], whole[None], **close)
        block = half_mean_square(expected.blocks[matrix.block])
        torch.testing.assert_close(of_matrix["block_price"], block[None], rtol=1e-3, atol=1e-9)


@given(
    tokens=st.integers(1, 14),
    units=st.integers(1, 4),
    columns=st.integers(1, 3),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_price_of_a_slice_is_that_of_its_sum(
    tokens: int, units: int, columns: int, whole: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    linear, width = nn.Linear(units * columns, 3), units * columns
    matrix = Matrix("m", 0, linear.get_parameter("weight"), "m.weight")
    sums = PriceSums([matrix], {"F": InputPriceStatistic(whole)}, {"m": units}, tokens)
    windows = [torch.randn(1, tokens, width) for _ in range(2)]
    with sums.collecting(linear, {0: linear}):
        for window in windows:
            linear(window).exp().sum().backward()
    expected = [0.0] * (1 if whole else units)
    with torch.no_grad():
        for window in windows:
            for token in window[0]:
                s = token * (linear(token).exp() @ linear.weight)
                for unit in range(len(expected)):
                    part = s if whole else s[unit * columns : (unit + 1) * columns]
                    expected[unit] += float(part.sum()) ** 2 / (2 * 2 * tokens)
    price = sums.result(2)["F"]["m"]
    assert price.shape == (1, 1 if whole else width)
    torch.testing.assert_close(price.view(len(expected), -1).sum(1), torch.tensor(expected))


@torch.no_grad()
def test_a_price_is_the_divergence_where_a_unit_fades() -> None:
    # An MLP of the last block changes only the prediction at its own token, so that no product of
    # two tokens is left out; to second order, fading by e costs e² of the price.
    model, windows, fading = tiny_model("llama"), tiny_windows(48, 48), 0.02
    place = "model.layers.1.mlp.down_proj"
    kept = 1 - fading
    price = prices(model, windows)[place]
    dense = model(windows).logits.flatten(0, 1)
    weight = model.get_parameter(f"{place}.weight")
    units = [price["F"][0].argsort(descending=True)[:8], torch.arange(weight.shape[1])]
    for unit, expected in zip(units, (None, price["matrix_price"]), strict=True):
        before = weight.clone()
        if expected is None:
            for column in unit:
                weight[:, column] *= kept
                nats, _ = compare_logits(model(windows).logits.flatten(0, 1), dense)
                weight.copy_(before)
                ratio = float(nats.double().mean() / fading**2 / price["F"][0, column])
                assert 0.75 < ratio < 1.33
        else:
            weight *= kept
            nats, _ = compare_logits(model(windows).logits.flatten(0, 1), dense)
            weight.copy_(before)
            assert 0.75 < float(nats.double().mean() / fading**2 / expected) < 1.33


def test_a_channel_that_is_active_at_the_first_token_alone_has_a_price() -> None:
    """Later tokens attend to the first one: without such a channel real models break."""
    model, windows = tiny_model("llama"), tiny_windows(2, 14)

    def first_alone(_part: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([10 * output[:, :1], 0 * output[:, 1:]], 1)

    with model.model.layers[0].mlp.act_fn.register_forward_hook(first_alone):
        changed = prices(model, windows)["model.layers.0.mlp.down_proj"]["F"]
    assert (changed > 0).all()


def test_the_same_seed_draws_the_same_labels() -> None:
    model, windows = tiny_model("mixtral"), tiny_windows(2, 14)
    first, again, other = (prices(model, windows, seed) for seed in (3, 3, 4))
    for name, of_matrix in first.items():
        assert all(torch.equal(of_matrix[kind], again[name][kind]) for kind in PRICES)
    assert any(not torch.equal(first[name]["F"], other[name]["F"]) for name in first)


def test_statistics_of_the_text_stay_the_same_beside_prices() -> None:
    model, windows = tiny_model("llama"), tiny_windows(2, 14)
    beside = prices(model, windows, kinds=("G", "O", *PRICES))
    of_text, drawn = prices(model, windows, kinds=("G", "O")), prices(model, windows)
    for name, of_matrix in beside.items():
        expected = of_text[name] | drawn[name]
        assert of_matrix.keys() == expected.keys()
        assert all(torch.equal(of_matrix[kind], expected[kind]) for kind in expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kinds", [PRICES, ("block_price",)])
def test_no_weight_needs_a_gradient(architecture: str, kinds: tuple[str, ...]) -> None:
    model, windows = tiny_model(architecture), tiny_windows(2, 14)
    with no_weight_learns(model) as ran:
        collected = prices(model, windows, kinds=kinds)
    assert ran
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    for of_matrix in collected.values():
        assert all(value.numel() <= 4 * HIDDEN for value in of_matrix.values())


def test_a_bfloat16_model_gives_fp32_prices_near_those_of_the_fp32_model() -> None:
    windows = tiny_windows(32, 24)
    coarse = prices(tiny_model("llama").bfloat16(), windows)
    fine = prices(tiny_model("llama"), windows)
    for name, of_matrix in coarse.items():
        for kind, value in of_matrix.items():
            assert value.dtype == torch.float32
            # Some labels differ too.
            assert float((value - fine[name][kind]).norm() / fine[name][kind].norm()) < 0.3


def test_only_the_matrices_asked_for_are_watched() -> None:
    model, windows = tiny_model("mixtral"), tiny_windows(2, 14)
    wanted = find_matrices(model, include=["*experts.down_proj*"])
    statistics = collect_gradients(model, wanted, windows, PRICES)
    everything = prices(model, windows)
    assert list(statistics) == [matrix.name for matrix in wanted]
    for name, of_matrix in statistics.items():
        for kind in PRICES:
            torch.testing.assert_close(of_matrix[kind], everything[name][kind])


def test_float16_is_refused() -> None:
    assert "float16" in refusal(lambda: prices(tiny_model("llama").half(), tiny_windows(1, 14)))


@pytest.mark.fault("a gradient or a score that is NaN or infinite")
def test_a_price_that_is_no_number_names_its_matrix() -> None:
    model = tiny_model("llama")
    hook = model.model.layers[1].mlp.down_proj.register_full_backward_hook(
        lambda _part, gradients, _: (gradients[0] * torch.inf,)
    )
    with hook:
        assert "is not finite" in refusal(lambda: prices(model, tiny_windows(1, 14)))


def test_experts_whose_products_are_not_observed_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pruner_zero.calibration.inputs._Products._products", ())
    message = refusal(lambda: prices(tiny_model("mixtral"), tiny_windows(1, 14)))
    assert "choose a metric without F" in message
