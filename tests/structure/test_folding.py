"""Folding: the block before dropped ones learns what they added, by plain least squares."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks
from pruner_zero.structure.blocks import DAMPING, fold_blocks
from tests.pruning.conftest import language_model
from tests.tiny_models import tiny_windows

DEPTH = 6


def second(model: LanguageModel, index: int) -> Any:
    """The second linear map of the MLP of a block."""
    block: Any = find_blocks(model.model)[index]
    return block.mlp.down_proj


@torch.no_grad()
def passed(model: LanguageModel, tokens: Tensor, skipped: Sequence[int] = ()) -> list[Tensor]:
    """The hidden states (n, seqlen, width) that enter each block, and those that leave the last."""
    states: list[Tensor] = []

    def hook(index: int) -> Any:
        def see(_: Any, arguments: tuple[Tensor], out: Tensor) -> Tensor:
            states.append(arguments[0])
            return arguments[0] if index in skipped else out

        return see

    blocks = find_blocks(model.model)
    handles = [block.register_forward_hook(hook(index)) for index, block in enumerate(blocks)]
    last = blocks[-1].register_forward_hook(lambda _, arguments, out: states.append(out))
    model.model(tokens)
    for handle in (*handles, last):
        handle.remove()
    return states


@torch.no_grad()
def solved(
    model: LanguageModel, tokens: Tensor, index: int, gone: Sequence[int], before: Sequence[int]
) -> tuple[Tensor, float]:
    """The weight that ridge regression in fp64 finds for block `index`, and the share left."""
    linear = second(model, index)
    incoming: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, arguments: incoming.append(arguments[0]))
    states = passed(model, tokens, before)
    handle.remove()
    A = incoming[0].flatten(0, -2).double()
    B = (states[gone[-1] + 1] - states[index + 1]).flatten(0, -2).double()
    gram = A.T @ A
    gram += DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    change = torch.linalg.solve(gram, A.T @ B)
    weight: Tensor = linear.weight.double() + change.T
    return weight, float((B - A @ change).square().sum() / B.square().sum())


def assert_close(weight: Tensor, expected: Tensor) -> None:
    """Float32 beside float64, with little damping."""
    error = (weight.double() - expected).norm()
    assert error < 1e-3 * expected.norm()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_the_map_before_a_run_is_what_ridge_regression_finds(architecture: str) -> None:
    model, tokens = language_model(architecture, blocks=DEPTH), tiny_windows()
    weight, left = solved(model, tokens, 1, (2, 3), ())
    others = [second(model, place).weight.clone() for place in range(DEPTH)]
    folded = fold_blocks(model, tokens, (2, 3))
    assert list(folded) == [1]
    # The damping, too, is among what is minimised.
    assert folded[1] == pytest.approx(left, abs=0.02)
    for place in range(DEPTH):
        now = second(model, place).weight
        if place == 1:
            assert_close(now, weight)
        else:
            assert torch.equal(now, others[place])


def test_a_later_run_learns_from_the_states_of_the_smaller_model() -> None:
    model, tokens = language_model("llama", blocks=DEPTH), tiny_windows()
    folded = fold_blocks(model, tokens, (1, 4))
    assert list(folded) == [0, 3]
    again = language_model("llama", blocks=DEPTH)
    assert list(fold_blocks(again, tokens, (1,))) == [0]
    weight, _ = solved(again, tokens, 3, (4,), (1,))
    now = second(model, 3).weight
    assert_close(now, weight)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "mixtral"])
def test_a_block_that_adds_no_linear_map_stays_as_it_is(architecture: str) -> None:
    model, tokens = language_model(architecture, blocks=DEPTH), tiny_windows()
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    assert fold_blocks(model, tokens, (2, 3)) == {}
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@torch.no_grad()
def test_inputs_whose_squares_overflow_name_the_map() -> None:
    model = language_model("llama", blocks=DEPTH)
    block: Any = find_blocks(model.model)[1]
    block.mlp.up_proj.weight.mul_(1e25)
    block.mlp.down_proj.weight.mul_(1e-25)
    message = r"XᵀX of model\.layers\.1\.mlp\.down_proj is not finite"
    with pytest.raises(PrunerZeroError, match=message):
        fold_blocks(model, tiny_windows(2, 16), [2])
