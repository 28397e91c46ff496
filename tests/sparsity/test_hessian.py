"""The Hessian of one input: the textbook's factors, honest damping, each factored once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.hessian import Hessian, shrinkage_for
from pruner_zero.sparsity.least_squares import keep_columns
from pruner_zero.sparsity.selection import Unstructured
from pruner_zero.sparsity.update import Layer
from tests.sparsity import reference
from tests.sparsity.test_sweep import assert_close, layer

# Positive definite at damping 0.1, not at 0.01.
NEARLY_SINGULAR = torch.full((8, 8), 1.05).fill_diagonal_(1.0)


def test_the_factor_is_the_cholesky_factor_of_the_inverse_and_the_terminal_its_diagonal() -> None:
    _, gram = layer(1, 60)
    hessian, copy = Hessian(gram), gram.clone()
    expected = torch.linalg.cholesky(torch.linalg.inv(reference.damped(gram)), upper=True)
    assert hessian.used_damping == 0.01
    assert_close(hessian.inverse_factor, expected)
    assert torch.equal(hessian.inverse_factor, hessian.inverse_factor.triu())
    terminal = Hessian(gram).diagonal
    assert terminal.shape == (1, 60)
    assert_close(terminal[0], expected.diagonal())
    _ = hessian.damped()
    assert torch.equal(gram, copy)


def test_channels_that_were_never_active_get_what_the_damping_leaves() -> None:
    _, gram = layer(6, 20)
    gram[:, [3, 11]] = 0.0
    gram[[3, 11]] = 0.0
    terminal = Hessian(gram).diagonal
    assert set(terminal[0].topk(2).indices.tolist()) == {3, 11}
    assert_close(terminal[0, [3, 11]], (0.01 * gram.diagonal().mean()).rsqrt().expand(2))
    # In whatever units the gram is.
    assert_close(Hessian(gram / 1e4).diagonal, 100 * terminal)
    assert Hessian(torch.zeros(8, 8)).diagonal.tolist() == [[1.0] * 8]


def test_a_failed_factorisation_raises_the_damping_up_to_1() -> None:
    hessian = Hessian(NEARLY_SINGULAR)
    U = hessian.inverse_factor
    assert hessian.used_damping == pytest.approx(0.1)
    assert_close(U.T @ U, torch.linalg.inv(reference.damped(NEARLY_SINGULAR, 0.1)))
    assert_close(hessian.damped(), reference.damped(NEARLY_SINGULAR, 0.1))
    gram = torch.full((4, 4), -5.0).fill_diagonal_(1.0)
    with pytest.raises(PrunerZeroError, match="down_proj is not positive definite even at damping"):
        _ = Hessian(gram, name="down_proj").diagonal


def test_a_gram_that_is_not_finite_is_an_error_at_once() -> None:
    _, gram = layer(4, 8)
    for bad in (torch.nan, torch.inf):
        broken = gram.clone()
        broken[2, 3] = bad
        with pytest.raises(PrunerZeroError, match="XᵀX of o_proj is not finite"):
            Hessian(broken, name="o_proj")


@pytest.mark.parametrize("damping", [0.0, -0.1, 2.0, float("nan")])
def test_damping_has_a_range(damping: float) -> None:
    with pytest.raises(PrunerZeroError, match="damping"):
        Hessian(torch.eye(3), damping=damping)
    assert Hessian(torch.eye(3), damping=1.0).used_damping == 1.0


def test_everything_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    factor = torch.linalg.cholesky_ex

    def counted(matrix: Tensor, **options: Any) -> Any:
        calls.append(len(matrix))
        return factor(matrix, **options)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    hessian = Hessian(layer(4, 24)[1])
    for _ in range(3):
        _ = hessian.inverse_factor, hessian.used_damping, hessian.diagonal
    assert calls == [24]
    before = hessian.inverse_factor
    hessian.forget()
    assert torch.equal(hessian.inverse_factor, before)
    assert calls == [24, 24]


def test_shrinkage_adds_to_each_channel_its_own_share() -> None:
    _, gram = layer(1, 60)
    gram[:, 7] = gram[7] = 0.0
    added = torch.diag(gram.diagonal() * 0.5 + gram.diagonal().mean() * 0.02)
    added[7, 7] += 1.0
    shrunk = Hessian(gram, damping=0.02, shrinkage=0.5)
    assert_close(shrunk.damped(), gram + added)
    inverse = torch.linalg.inv(gram + added)
    assert_close(shrunk.inverse_factor, torch.linalg.cholesky(inverse, upper=True))


def test_shrinkage_lowers_the_error_on_tokens_that_least_squares_have_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(96, 96, generator=generator) * 0.1 + torch.eye(96)
    fitted = torch.randn(128, 96, generator=generator) @ mixed
    others = torch.randn(4096, 96, generator=generator) @ mixed
    weight = torch.randn(16, 96, generator=generator)
    mask = (torch.arange(96) % 2 == 0).repeat(16, 1)
    errors = {}
    for shrinkage in (0.0, shrinkage_for(96, 128)):
        hessian = Hessian(fitted.t() @ fitted, shrinkage=shrinkage)
        solved = keep_columns(Layer(weight, hessian, Unstructured(0.5), mask)).weight
        errors[shrinkage] = float(((weight - solved) @ others.t()).square().sum())
    assert errors[shrinkage_for(96, 128)] < 0.9 * errors[0.0]
