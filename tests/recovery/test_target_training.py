"""Training in little memory, against a plain loop with the teacher, dense gradients and moments."""

import pytest
import torch
from torch import Tensor

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_matrices
from pruner_zero.recovery.distillation import distillation
from pruner_zero.recovery.target_training import RATE
from pruner_zero.recovery.train import rate
from pruner_zero.text.windows import Windows
from tests.recovery.conftest import prune_half
from tests.recovery.test_targets import few, plain_divergence  # noqa: F401
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows

BATCH, STEPS, HELD_OUT = 3, 5, 1


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.recovery.distillation.TOKENS", BATCH * 16)
    monkeypatch.setattr("pruner_zero.recovery.distillation.has_fast_bfloat16", lambda _: False)


def divergence(model: torch.nn.Module, teacher: torch.nn.Module, tokens: Tensor) -> Tensor:
    """The mean over all positions that have a next token."""
    with torch.no_grad():
        p = teacher(tokens).logits[:, :-1].flatten(0, 1).softmax(-1)
    return plain_divergence(model(tokens).logits[:, :-1].flatten(0, 1), p) / len(p)


def plain_training(model: torch.nn.Module, teacher: torch.nn.Module, tokens: Tensor) -> list[float]:
    """Train `model` in place; the losses."""
    count = len(tokens) - HELD_OUT
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(STEPS)])
    matrices = find_matrices(model)
    masks = [matrix.weight != 0 for matrix in matrices]
    sizes = [matrix.weight.square().mean().sqrt() for matrix in matrices]
    averages = [torch.zeros_like(matrix.weight) for matrix in matrices]
    losses = []
    for step in range(STEPS):
        loss = divergence(model, teacher, tokens[order[BATCH * step :][:BATCH]])
        model.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        decay = 1 - (step + 1) ** -0.8
        for matrix, mask, size, average in zip(matrices, masks, sizes, averages, strict=True):
            assert matrix.parameter.grad is not None
            gradient = matrix.view(matrix.parameter.grad) * mask
            average.mul_(decay).add_(gradient.square(), alpha=1 - decay)
            rows, columns = average.mean(1, keepdim=True), average.mean(0, keepdim=True)
            estimate = (rows * columns / average.mean() / mask.float().mean()).sqrt()
            move = torch.where(mask, gradient / estimate, 0.0).nan_to_num(0.0)
            move /= max(1.0, float(move[mask].square().mean().sqrt()))
            matrix.weight.sub_(RATE * rate((step + 0.5) / STEPS) * size * move)
    return losses


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_it_learns_what_a_plain_loop_with_a_teacher_learns(
    architecture: str,
) -> None:
    tokens = tiny_windows(8, 16)
    windows = Windows(tokens, "self", None, "as written", None, "sampled", 0)
    ours, plain, teacher = (tiny_model(architecture) for _ in range(3))
    train = distillation(LanguageModel(ours, tiny_tokenizer(), "m"), windows, STEPS)
    zeros = prune_half(ours)
    prune_half(plain)
    curve = train(ours, find_matrices(ours))
    with torch.no_grad():
        before = divergence(plain, teacher, tokens[-HELD_OUT:])
    losses = plain_training(plain, teacher, tokens)
    with torch.no_grad():
        after = divergence(plain, teacher, tokens[-HELD_OUT:])
    assert curve[0].validation_loss == pytest.approx(float(before), rel=2e-3)
    assert curve[-1].validation_loss == pytest.approx(float(after), rel=2e-3)
    assert curve[-1].train_loss == pytest.approx(sum(losses) / STEPS, rel=2e-3)
    assert curve[-1].tokens == STEPS * BATCH * 16
    pairs = zip(ours.named_parameters(), plain.parameters(), strict=True)
    for (name, parameter), expected in pairs:
        # The dense predictions are rounded to float16.
        scale = RATE * float(expected.detach().square().mean().sqrt())
        difference = (parameter - expected).detach()
        assert float(difference.square().mean().sqrt()) <= 0.05 * scale, name
        assert name not in zeros or torch.equal(parameter == 0, zeros[name]), name
        assert parameter.requires_grad
        assert parameter.grad is None
