"""The optimizer in little memory, against a plain one with dense tensors."""

import pytest
import torch
from torch import Tensor, nn

from pruner_zero.recovery.factored import FactoredWeights


def masked(*shape: int, seed: int = 0) -> Tensor:
    """Weights of which half are zero."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return weight * (weight.abs() > 0.67)


def gradients(*shape: int, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    sizes = torch.rand(shape[-1], generator=generator) * 3
    return [torch.randn(*shape, generator=generator) * sizes for _ in range(count)]


def trained(weight: Tensor, given: list[Tensor], **options: object) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    kept = FactoredWeights("w", parameter, **options)  # type: ignore[arg-type]
    for gradient in given:
        kept.step(gradient.clone(), 0.1)
    return parameter.data


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


def test_each_expert_of_a_stack_is_trained_alone_and_others_stay() -> None:
    stack, given = masked(3, 6, 9), gradients(3, 6, 9)
    after = trained(stack, given, experts=[0, 2])
    assert torch.equal(after[1], stack[1])
    for expert in (0, 2):
        alone = trained(stack[expert], [gradient[expert] for gradient in given])
        torch.testing.assert_close(after[expert], alone)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_size_of_gradients_does_not_matter_nor_does_a_gradient_of_zeros(scale: float) -> None:
    weight, given = masked(6, 9), gradients(6, 9)
    expected = trained(weight, given)
    torch.testing.assert_close(trained(weight, [scale * gradient for gradient in given]), expected)
    assert torch.equal(trained(weight, [torch.zeros(6, 9)]), weight)


def test_it_holds_next_to_nothing_beside_the_weights() -> None:
    parameter = nn.Parameter(masked(60, 90))
    kept = FactoredWeights("w", parameter)
    kept.step(gradients(60, 90)[0], 0.1)
    held = [value for value in vars(kept).values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() for tensor in held if tensor is not parameter) < 200
