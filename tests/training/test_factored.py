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


def plain(weight: Tensor, given: list[Tensor]) -> Tensor:
    """The mean square of each gradient as a rank-one matrix; means over kept weights' area."""
    weight, mask = weight.clone(), weight != 0
    size = weight.square().mean().sqrt()
    average = torch.zeros_like(weight)
    for step, gradient in enumerate(given, 1):
        decay = 1 - step**-0.8
        average = decay * average + (1 - decay) * (gradient * mask).square()
        rows, columns = average.mean(1, keepdim=True), average.mean(0, keepdim=True)
        estimate = (rows * columns / average.mean() / mask.float().mean()).sqrt()
        move = torch.where(mask, gradient / estimate, 0.0)
        move /= max(1.0, float(move[mask].square().mean().sqrt()))
        weight -= 0.1 * size * move
    return weight


def test_it_trains_as_the_plain_one_and_keeps_zeros() -> None:
    weight, given = masked(16, 24), gradients(16, 24)
    assert all((weight != 0).any(axis).all() for axis in (0, 1))
    after = trained(weight, given)
    torch.testing.assert_close(after, plain(weight, given))
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


def test_a_transposed_view_is_trained_like_a_matrix_of_its_own() -> None:
    weight, given = masked(6, 9), gradients(6, 9)
    stored = weight.T.contiguous()
    kept = FactoredMatrix("w", stored.T)
    for gradient in given:
        kept.step(gradient.T.clone().T, 0.1)
    torch.testing.assert_close(stored.T, trained(weight, given))


def test_the_rows_that_are_processed_at_a_time_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, given = masked(16, 24), gradients(16, 24)
    expected = trained(weight, given)
    monkeypatch.setattr("pruner_zero.training.factored._CHUNK", 5 * 24)
    torch.testing.assert_close(trained(weight, given), expected)
