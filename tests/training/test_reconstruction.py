"""Reconstruction of a block: nearer to the dense block's outputs, with the same zeros."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import record_block_calls
from pruner_zero.models.matrices import Matrix, find_blocks, find_matrices
from pruner_zero.training import reconstruction
from pruner_zero.training.reconstruction import RATE, OpenMask, reconstruct, relative_error
from tests.recovery.conftest import prune_half
from tests.tiny_models import tiny_model, tiny_windows


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.models.next_token.has_fast_bfloat16", lambda _: False)


class Setting:
    """The first block of a tiny model, pruned by half, with its inputs and its dense outputs."""

    def __init__(self, architecture: str = "llama", windows: int = 6) -> None:
        self.model = tiny_model(architecture)
        calls = record_block_calls(self.model, tiny_windows(windows, 16))
        self.hidden, self.arguments = list(calls.hidden), calls.arguments[0]
        self.block = find_blocks(self.model)[0]
        self.target = self.outputs()
        self.matrices = [matrix for matrix in find_matrices(self.model) if matrix.block == 0]
        self.dense = {matrix: matrix.weight.clone() for matrix in self.matrices}
        self.zeros = prune_half(self.model)

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        outputs = []
        for hidden, (args, kwargs) in zip(self.hidden, self.arguments, strict=True):
            output = self.block(hidden, *args, **kwargs)
            outputs.append(output if isinstance(output, Tensor) else output[0])
        return outputs

    def error(self) -> float:
        pairs = zip(self.outputs(), self.target, strict=True)
        return sum(float((output - target).square().sum()) for output, target in pairs)

    def train(self, passes: int = 1, opened: Mapping[Matrix, OpenMask] | None = None) -> None:
        calls = (self.hidden, self.arguments, self.target)
        reconstruct(self.block, self.matrices, *calls, passes, open_masks=opened)


def larger_half(weights: Tensor) -> Tensor:
    """The mask of the larger half of the weights, True = kept."""
    order = weights.abs().flatten().argsort()
    kept = torch.ones(weights.numel(), dtype=torch.bool)
    kept[order[: weights.numel() // 2]] = False
    return kept.view(weights.shape)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_the_outputs_come_nearer_to_the_dense_ones_and_zeros_stay(architecture: str) -> None:
    setting = Setting(architecture)
    before, others = setting.error(), find_blocks(setting.model)[1]
    unchanged = {name: tensor.clone() for name, tensor in others.state_dict().items()}
    setting.train(60)
    assert setting.error() < 0.9 * before
    for name, parameter in setting.model.named_parameters():
        if name in setting.zeros:
            assert torch.equal(parameter.data == 0, setting.zeros[name]), name
    assert all(torch.equal(others.state_dict()[name], tensor) for name, tensor in unchanged.items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_open_masks_come_nearer_than_closed_ones_with_as_many_zeros(architecture: str) -> None:
    closed, opened = Setting(architecture), Setting(architecture)
    closed.train(12)
    masks = {matrix: OpenMask(dense, larger_half) for matrix, dense in opened.dense.items()}
    opened.train(12, masks)
    assert opened.error() < 0.95 * closed.error()
    moved = 0
    for matrix in opened.matrices:
        zeros = matrix.weight == 0
        assert int(zeros.sum()) == zeros.numel() // 2, matrix.name
        moved += int((zeros != matrix.view(opened.zeros[matrix.parameter_name])).sum())
    assert moved > 0


def test_masks_that_are_not_open_stay() -> None:
    setting = Setting("mixtral")
    chosen = [matrix for matrix in setting.matrices if matrix.expert == 1]
    masks = {matrix: OpenMask(setting.dense[matrix], larger_half) for matrix in chosen}
    setting.train(8, masks)
    stayed = [
        torch.equal(matrix.weight == 0, matrix.view(setting.zeros[matrix.parameter_name]))
        for matrix in setting.matrices
        if matrix not in masks
    ]
    assert all(stayed)


@pytest.mark.parametrize("opens", [False, True])
def test_steps_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch, opens: bool) -> None:
    """Masked gradients of the whole matrices, by torch's AdamW, in the same order of windows."""
    monkeypatch.setattr(reconstruction, "TOKENS", 32)
    ours, plain = Setting(windows=5), Setting(windows=5)
    opened = {matrix: OpenMask(dense, larger_half) for matrix, dense in ours.dense.items()}
    ours.train(passes=3, opened=opened if opens else None)
    plainly(plain, together=2, passes=3, opens=opens)
    wanted = dict(plain.block.named_parameters())
    for name, parameter in ours.block.named_parameters():
        torch.testing.assert_close(parameter.data, wanted[name].data, rtol=1e-4, atol=1e-6)


def plainly(setting: Setting, together: int, passes: int, opens: bool) -> None:
    weights = [matrix.parameter for matrix in setting.matrices]
    masks = [weight.data != 0 for weight in weights]
    beneath = [setting.dense[matrix].clone() for matrix in setting.matrices]
    if opens:
        for matrix, dense in setting.dense.items():
            matrix.weight.copy_(dense)
    sizes = [float(weight.data.square().mean().sqrt()) for weight in weights]
    optimizer = torch.optim.AdamW(
        [{"params": [weight]} for weight in weights],
        betas=(0.9, 0.95),
        eps=1e-12,
        weight_decay=0.0,
    )
    generator = torch.Generator().manual_seed(0)
    each, step = len(setting.hidden) // together, 0
    for _ in range(passes):
        order = torch.randperm(len(setting.hidden), generator=generator).tolist()
        for batch in (order[i * together : (i + 1) * together] for i in range(each)):
            share = step / (passes * each)
            rise = 0.1 + 0.9 * share / 0.05
            fall = (1 - math.cos(math.pi * (1 - share) / 0.95)) / 2
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = RATE * size * (rise if share < 0.05 else fall)
            optimizer.zero_grad()
            choosing = opens and step < round(0.8 * passes * each)
            if choosing and step % 2 == 0:
                masks = [larger_half(dense) for dense in beneath]
            for weight, dense, mask in zip(weights, beneath, masks, strict=True):
                weight.data = dense * mask if opens else weight.data
            errors, sizes_of_channels = torch.zeros(()), torch.zeros(())
            for window in batch:
                args, kwargs = setting.arguments[window]
                output = setting.block(setting.hidden[window], *args, **kwargs)
                target = setting.target[window]
                for token in range(target.shape[1]):
                    size = target[0, token].square().mean()
                    errors = errors + (output[0, token] - target[0, token]).square() / size
                    sizes_of_channels = sizes_of_channels + target[0, token].square() / size
            (errors / sizes_of_channels).mean().backward()
            for weight, dense, mask in zip(weights, beneath, masks, strict=True):
                assert weight.grad is not None
                weight.grad *= 1 if choosing else mask
                weight.data = dense if opens else weight.data
            optimizer.step()
            step += 1
    for weight, dense, mask in zip(weights, beneath, masks, strict=True):
        weight.data = dense * mask if opens else weight.data


def test_a_token_of_large_activations_counts_no_more_than_another() -> None:
    """Models give the first token activations that are a hundred times those of others."""
    goal = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(0))
    output = 1.1 * goal
    assert float(relative_error(output, goal)) == pytest.approx(0.01)
    goal[0, 0] *= 100
    assert float(relative_error(1.1 * goal, goal)) == pytest.approx(0.01)
    errors = torch.zeros(8)
    for token in range(8):
        output = goal.clone()
        output[0, token] *= 1.1
        errors[token] = relative_error(output, goal)
    assert float(errors.max() / errors.min()) < 10


def test_every_channel_counts_alike() -> None:
    """Some models have a channel with nine tenths of the mean square."""
    goal = torch.randn(1, 400, 5, generator=torch.Generator().manual_seed(0))
    goal[..., 2] *= 100
    for channel in range(5):
        output = goal.clone()
        output[..., channel] *= 1.1
        assert float(relative_error(output, goal)) == pytest.approx(0.01 / 5)


def test_a_token_whose_target_is_zero_gives_a_finite_error() -> None:
    assert math.isfinite(float(relative_error(torch.ones(1, 2, 3) * 1e-20, torch.zeros(1, 2, 3))))


def test_weights_in_half_precision_stay_in_it() -> None:
    setting = Setting()
    setting.model.bfloat16()
    setting.train(2)
    assert {parameter.dtype for parameter in setting.block.parameters()} == {torch.bfloat16}


def test_an_error_that_is_not_finite_names_the_block() -> None:
    setting = Setting()
    setting.target[2] = setting.target[2] * math.inf
    with pytest.raises(PrunerZeroError, match="block 0 diverged: leave out"):
        setting.train()


def test_of_some_experts_the_others_stay_and_the_rate_is_of_their_own_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting, sizes, scale = Setting("mixtral"), [], reconstruction.rate_scale

    def noted(weights: Tensor, experts: list[int] | None = None) -> float:
        sizes.append(experts)
        return scale(weights, experts)

    monkeypatch.setattr(reconstruction, "rate_scale", noted)
    setting.matrices = [matrix for matrix in setting.matrices if matrix.expert in (None, 1)]
    stacks = {m.parameter for m in setting.matrices if m.expert == 1}
    before = {stack: stack.data.clone() for stack in stacks}
    setting.train(2)
    assert [1] in sizes
    for stack in stacks:
        changed = [not torch.equal(a, b) for a, b in zip(stack.data, before[stack], strict=True)]
        assert changed == [number == 1 for number in range(len(stack))]


def test_the_rate_is_a_share_of_the_size_of_the_weights_but_not_of_next_to_nothing() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    scales = [reconstruction.rate_scale(weight * size) for size in (1, 0.1, 1e-6)]
    assert scales == pytest.approx([math.sqrt(2.5), math.sqrt(2.5) / 10, 1e-3])
    stack = torch.stack([torch.full((2, 3), float(size)) for size in (1, 10, 2)])
    assert reconstruction.rate_scale(stack, [0, 2]) == pytest.approx(math.sqrt((1 + 4) / 2))
