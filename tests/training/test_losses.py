"""The distillation loss, and teachers that do not fit."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.recovery.recover import check_teacher
from pruner_zero.training.losses import taught_loss, text_loss
from pruner_zero.training.train import Loss
from tests.recovery.conftest import pruned_model
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows


def summed(loss: Loss, logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The loss and its gradient of `logits` (positions, vocabulary), `size` positions at a time."""
    slices = [slice(first, first + size) for first in range(0, len(logits), size)]
    parts = [loss(part, logits[part]) for part in slices]
    return torch.stack([value for value, _ in parts]).sum(), torch.cat([g for _, g in parts])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_it_is_the_divergence_from_the_teacher_and_the_loss_with_their_gradient(
    share: float,
) -> None:
    pruned, _ = pruned_model()
    teacher, windows = tiny_model("llama"), tiny_windows(3)
    with torch.no_grad():
        p = teacher(windows).logits[:, :-1].flatten(0, 1).softmax(-1)
        logits = pruned.model(windows).logits[:, :-1].flatten(0, 1)
    loss = taught_loss(windows, teacher, share) if share else text_loss(windows)
    value, gradient = summed(loss, logits, 7)
    logits.requires_grad_()
    q, labels = logits.softmax(-1), windows[:, 1:].flatten()
    text = functional.cross_entropy(logits, labels, reduction="sum")
    wanted = share * (p * (p / q).log()).sum() + (1 - share) * text
    wanted.backward()
    # The teacher's predictions are rounded to float16.
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-3, atol=1e-3)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_of_any_dtype_is_asked_where_products_are_in_bfloat16(dtype: torch.dtype) -> None:
    windows = tiny_windows(3)
    logits = pruned_model()[0].model(windows).logits[:, :-1].flatten(0, 1).detach()
    wanted, _ = summed(taught_loss(windows, tiny_model("llama"), 1.0), logits, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = taught_loss(windows, tiny_model("llama").to(dtype), 1.0)
        value, _ = summed(loss, logits, 64)
    torch.testing.assert_close(value, wanted, rtol=0.05, atol=0)


def test_a_teacher_of_other_tokens_is_refused() -> None:
    pruned, _ = pruned_model()
    check_teacher(LanguageModel(tiny_model("gpt2"), tiny_tokenizer(), "gpt2"), pruned)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["a new one"])
    teacher = LanguageModel(tiny_model("llama"), tokenizer, "teacher")
    line = refusal(lambda: check_teacher(teacher, pruned))
    assert (
        line
        == "--teacher teacher has other tokens than llama: give the dense model that was pruned"
    )
    narrow = tiny_model("llama")
    narrow.resize_token_embeddings(200)
    teacher = LanguageModel(narrow, tiny_tokenizer(), "teacher")
    assert "has other tokens" in refusal(lambda: check_teacher(teacher, pruned))
