"""The optimizer in little memory, against a plain one with dense tensors."""

import pytest
import torch
from torch import Tensor

from pruner_zero.training.factored import FactoredMatrix


def masked(*shape: int, seed: int = 0) -> Tensor:
    """Weights of which half are zero."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return weight * (weight.abs() > 0.67)


def gradients(*shape: int, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    sizes = torch.rand(shape[-1], generator=generator) * 3
    return [torch.randn(*shape, generator=generator) * sizes for _ in range(count)]


def trained(weight: Tensor, given: list[Tensor]) -> Tensor:
    weight = weight.clone()
    kept = FactoredMatrix("w", weight)
    for gradient in given:
        kept.step(gradient.clone(), 0.1)
    return weight


class Plain:
    """The mean square of each gradient as a rank-one matrix; means over kept weights' area."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.mask, self.steps = weight, weight != 0, 0
        self.size, self.average = weight.square().mean().sqrt(), torch.zeros_like(weight)

    def step(self, gradient: Tensor, rate: float) -> None:
        self.steps += 1
        decay = 1 - self.steps**-0.8
        self.average = decay * self.average + (1 - decay) * (gradient * self.mask).square()
        rows, columns = (self.average.mean(axis, keepdim=True) for axis in (1, 0))
        estimate = (rows * columns / self.average.mean() / self.mask.float().mean()).sqrt()
        move = torch.where(self.mask, gradient / estimate, 0.0).nan_to_num(0.0)
        move /= max(1.0, float(move[self.mask].square().mean().sqrt()))
        self.weight -= rate * self.size * move


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("at_once", [2**18, 5 * 24])
def test_it_trains_as_the_plain_one_and_keeps_zeros(
    transposed: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows are processed at a time, and for a view like a matrix of its own."""
    monkeypatch.setattr("pruner_zero.training.factored._CHUNK", at_once)
    weight, given = masked(16, 24), gradients(16, 24)
    assert all((weight != 0).any(axis).all() for axis in (0, 1))
    after, plain = weight.T.contiguous().T if transposed else weight.clone(), Plain(weight.clone())
    kept = FactoredMatrix("w", after)
    for gradient in given:
        kept.step(gradient.T.clone().T if transposed else gradient.clone(), 0.1)
        plain.step(gradient, 0.1)
    torch.testing.assert_close(after, plain.weight)
    assert torch.equal(after == 0, weight == 0)


def test_whole_rows_and_columns_of_zeros_change_nothing() -> None:
    """A model whose units are only masked learns what the smaller one learns."""
    weight, given = masked(6, 9), gradients(6, 9)
    rows, columns = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 2, 4, 5, 7])
    wide = torch.zeros_like(weight)
    wide[rows[:, None], columns] = small = weight[rows[:, None], columns]
    smaller = trained(small, [gradient[rows[:, None], columns] for gradient in given])
    torch.testing.assert_close(trained(wide, given)[rows[:, None], columns], smaller)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_size_of_gradients_does_not_matter_nor_does_a_gradient_of_zeros(scale: float) -> None:
    weight, given = masked(6, 9), gradients(6, 9)
    expected = trained(weight, given)
    torch.testing.assert_close(trained(weight, [scale * gradient for gradient in given]), expected)
    assert torch.equal(trained(weight, [torch.zeros(6, 9)]), weight)


def test_it_holds_next_to_nothing_beside_the_weights() -> None:
    kept = FactoredMatrix("w", masked(60, 90))
    kept.step(gradients(60, 90)[0], 0.1)
    held = [value for value in vars(kept).values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() for tensor in held if tensor is not kept.weight) < 200
