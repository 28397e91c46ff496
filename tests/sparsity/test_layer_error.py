"""The cost of pruning a matrix: the closed form against running the layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.sparsity.layer_error import output_sensitivity, pruning_cost, row_errors


def layer(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(7, 12, generator=generator), torch.randn(40, 12, generator=generator))


@given(st.integers(0, 1000))
def test_a_rows_error_is_the_squared_change_of_its_output(seed: int) -> None:
    weight, tokens = layer(seed)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    change = tokens @ (weight * mask).T - tokens @ weight.T
    actual = row_errors(weight.masked_fill(mask, 0), tokens.T @ tokens)
    torch.testing.assert_close(actual, change.square().sum(0), rtol=1e-4, atol=1e-4)
    coarse = row_errors(weight.masked_fill(mask, 0), (tokens.T @ tokens).bfloat16())
    torch.testing.assert_close(coarse, actual, rtol=0.05, atol=0.5)


def test_a_rows_sensitivity_is_the_mean_squared_gradient_at_its_output() -> None:
    _, tokens = layer(1)
    outputs = torch.randn(40, 7, generator=torch.Generator().manual_seed(2))
    # One window a token: the gradient of a weight is that of its output times its input.
    squares = sum(
        torch.outer(gradient, token).square()
        for gradient, token in zip(outputs, tokens, strict=True)
    )
    assert isinstance(squares, torch.Tensor)
    actual = output_sensitivity(squares.sqrt(), tokens.T @ tokens)
    weights = tokens.square().sum(1)
    expected = (outputs.square() * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(actual, expected)


def test_stacked_matrices_have_the_sensitivities_of_each() -> None:
    G = torch.rand(3, 7, 12, generator=torch.Generator().manual_seed(0))
    grams = torch.stack([tokens.T @ tokens for _, tokens in map(layer, range(3))])
    each = [output_sensitivity(values, gram) for values, gram in zip(G, grams, strict=True)]
    torch.testing.assert_close(output_sensitivity(G, grams), torch.stack(each))


def test_what_a_matrix_loses_costs_more_the_less_is_left() -> None:
    norms, sensitivity = torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    costs = [
        pruning_cost(torch.full((4,), lost), norms, sensitivity) / lost
        for lost in (0.01, 0.1, 0.5, 0.9, 1.0)
    ]
    assert costs == sorted(costs)
    assert costs[1] == pytest.approx(10 / 0.9**8)
    assert pruning_cost(torch.full((4,), 0.1), norms) == pytest.approx(0.1 / 0.9**8)
    assert pruning_cost(torch.ones(4), norms, sensitivity, share=2) < float("inf")


def test_a_matrix_that_loses_everything_counts_as_if_a_thousandth_were_left() -> None:
    norms = torch.tensor([3.0, 1.0])
    assert pruning_cost(norms, norms) == pytest.approx(0.001**-8)
    assert pruning_cost(2 * norms, norms) == pytest.approx(2 * 0.001**-8)
