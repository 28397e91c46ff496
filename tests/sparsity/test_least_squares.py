"""Least squares on the columns that stay: what NumPy's solver finds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.least_squares import keep_columns, remove_columns
from pruner_zero.sparsity.update import Layer
from tests.sparsity import reference
from tests.sparsity.kernels import HALF, layer_of
from tests.sparsity.test_sweep import assert_close, layer


def loud_layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs with a few directions and channels a hundred times as large, as models have."""
    weight, _ = layer(rows, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * columns, columns, generator=generator)
    directions = 30 * torch.randn(2 * columns, 3, generator=generator)
    inputs += directions @ torch.randn(3, columns, generator=generator)
    inputs[:, ::17] *= 100
    return weight, inputs.T @ inputs


def lstsq(weight: Tensor, H: Tensor, columns: Tensor) -> Tensor:
    """The weights w' with zeros outside `columns` nearest to w under H, in float64."""
    root = torch.linalg.cholesky(H, upper=True).numpy()
    goal = root @ weight.double().numpy().T
    solved = np.zeros(weight.shape)
    solved[:, columns] = np.linalg.lstsq(root[:, columns], goal)[0].T
    return torch.from_numpy(solved)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(2, 40), st.integers(0, 2**31), st.floats(0, 1), st.booleans())
def test_kept_columns_have_the_weights_that_a_least_squares_solver_finds(
    rows: int, count: int, seed: int, sparsity: float, held: bool
) -> None:
    """By the reduced normal equations, and by an inverse that is at hand."""
    weight, gram = layer(rows, count, seed)
    columns = torch.rand(count, generator=torch.Generator().manual_seed(seed)) >= sparsity
    mask = columns.repeat(rows, 1)
    mask[0] = False
    given = layer_of(weight, gram, mask)
    if held:
        _ = given.hessian.inverse
    updated = keep_columns(given)
    expected = lstsq(weight, reference.damped(gram), columns)
    expected[0] = 0
    assert_close(updated.weight, expected)
    assert torch.equal(updated.mask, mask)
    assert not updated.weight[~mask].any()
    assert not torch.signbit(updated.weight[~mask]).any()


def test_an_inverse_at_hand_needs_no_copy_of_the_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = loud_layer(8, 32)
    columns, hessian = torch.arange(32) < 20, Hessian(gram)
    expected = remove_columns(weight, hessian, ~columns)
    assert expected is not None

    def refuse(*_: object) -> None:
        raise AssertionError("H is not needed")

    monkeypatch.setattr(Hessian, "damped", refuse)
    updated = keep_columns(Layer(weight, hessian, HALF, columns.repeat(8, 1)))
    assert torch.equal(updated.weight, expected)


def test_inputs_that_are_always_zero_have_weights_of_zero() -> None:
    weight, gram = loud_layer(4, 24)
    gram[:, 3] = gram[3] = 0
    columns = torch.arange(24) < 12
    updated = keep_columns(layer_of(weight, gram, columns.repeat(4, 1))).weight
    assert not updated[:, 3].any()
    least = lstsq(weight.index_fill(1, torch.tensor([3]), 0), reference.damped(gram), columns)
    assert_close(updated, least.index_fill(1, torch.tensor([3]), 0))


@pytest.mark.parametrize("loud", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("damping", [1e-6, 1e-2])
def test_loud_channels_and_little_damping_are_solved(loud: float, damping: float) -> None:
    weight, _ = layer(8, 160)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 160, generator=generator)
    inputs += loud * torch.randn(40, 1, generator=generator)
    gram = inputs.T @ inputs
    columns = torch.arange(160) % 3 > 0
    given = layer_of(weight, gram, columns.repeat(8, 1), damping=damping)
    H = reference.damped(gram, given.hessian.used_damping)
    left = reference.error_under(H, weight - keep_columns(given).weight)
    plain = reference.error_under(H, weight * ~columns)
    best = reference.error_under(H, weight.double() - lstsq(weight, H, columns))
    assert best <= left * (1 + 1e-6)
    assert left <= 1.01 * best + 1e-4 * plain


def test_a_multiple_of_the_gram_and_bfloat16_weights() -> None:
    weight, gram = layer(8, 64)
    mask = (torch.arange(64) < 40).repeat(8, 1)
    plain = keep_columns(layer_of(weight.bfloat16(), gram, mask)).weight
    assert_close(keep_columns(layer_of(weight.bfloat16(), gram / 512, mask)).weight, plain)
    assert plain.dtype == torch.float32


def test_what_cannot_be_solved_is_refused() -> None:
    weight, gram = layer(4, 8)
    with pytest.raises(ValueError, match="rows of matrix keep different columns"):
        keep_columns(layer_of(weight, gram, torch.eye(4, 8).bool()))
    with pytest.raises(ValueError, match="must be chosen before this update"):
        keep_columns(layer_of(weight, gram))
    with pytest.raises(ValueError, match="its weight"):
        layer_of(weight, gram, torch.ones(4, 4).bool())
    with pytest.raises(PrunerZeroError, match="weights of up are not finite: exclude the matrix"):
        layer_of(weight.fill_(torch.inf), gram, name="up")
