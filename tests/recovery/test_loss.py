"""The distillation loss, and teachers that do not fit."""

from types import SimpleNamespace

import pytest
import torch

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.loss import next_token_loss
from pruner_zero.recovery.loss import distillation_loss
from pruner_zero.recovery.recover import check_teacher
from tests.recovery.conftest import pruned_model
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_it_is_the_mean_divergence_from_the_teacher_and_the_loss(share: float) -> None:
    pruned, _ = pruned_model()
    teacher, windows = tiny_model("llama"), tiny_windows(3)
    loss = distillation_loss(pruned.model, teacher, windows, share)
    wanted = []
    for window in windows.split(1):
        with torch.no_grad():
            p, q = (model(window).logits[0, :-1].softmax(-1) for model in (teacher, pruned.model))
        divergence = (p * (p / q).log()).sum(-1).mean()
        text_loss = next_token_loss(pruned.model, window)
        wanted.append(share * divergence + (1 - share) * text_loss)
    torch.testing.assert_close(loss, torch.stack(wanted).mean())
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_of_any_dtype_is_asked_where_products_are_in_bfloat16(dtype: torch.dtype) -> None:
    pruned, _ = pruned_model()
    windows = tiny_windows(3)
    wanted = distillation_loss(pruned.model, tiny_model("llama"), windows, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(pruned.model, tiny_model("llama").to(dtype), windows, 1.0)
    torch.testing.assert_close(loss, wanted, rtol=0.05, atol=0)


def test_a_model_does_not_diverge_from_itself() -> None:
    model = tiny_model("gpt2")
    assert float(distillation_loss(model, model, tiny_windows(1), 1.0).detach()) == pytest.approx(
        0, abs=1e-6
    )


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


def test_its_gradient_is_that_of_the_plain_formula() -> None:
    """Two windows, and so many tokens that they are taken up in several chunks."""
    generator = torch.Generator().manual_seed(5)
    windows = torch.randint(0, 2**17, (2, 70), generator=generator)

    class Logits(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(70, 2**17, generator=generator) * scale)

        def forward(self, windows: torch.Tensor, use_cache: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=self.table * torch.ones(len(windows), 1, 1))

    student, teacher = Logits(1.0), Logits(2.0)
    distillation_loss(student, teacher, windows, 0.75).mul(3).backward()
    predicted = student.table.detach().requires_grad_()
    log_p = predicted[:-1].log_softmax(-1)
    log_t = teacher.table.detach()[:-1].log_softmax(-1)
    divergence = (log_t.exp() * (log_t - log_p)).sum(-1).mean()
    labels = windows[:, 1:].T
    text_loss = -log_p.gather(-1, labels).mean()
    (3 * (0.75 * divergence + 0.25 * text_loss)).backward()
    torch.testing.assert_close(student.table.grad, predicted.grad, rtol=1e-4, atol=1e-9)
